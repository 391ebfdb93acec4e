"""The test of one column by hand, its false alarms, and planted shifts."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from serving.drift.comparison import (
    FALSE_ALARMS,
    LEAST_REQUESTS,
    compare,
    moved,
    p_value,
    population_stability,
    two_sided_t,
)
from tests.serving.drift.made import some_record, some_values, tally_of


def test_psi_of_halves_against_a_quarter_and_three_quarters_is_a_quarter_of_log_3() -> None:
    psi = population_stability(np.array([0.5, 0.5]), np.array([0.25, 0.75]))
    assert psi == pytest.approx(0.25 * math.log(3))
    with pytest.raises(ValueError, match="bins"):
        population_stability(np.ones(2), np.ones(3))


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=10))
def test_psi_is_zero_for_equal_shares_and_symmetric(masses: list[float]) -> None:
    shares = np.array(masses) / sum(masses)
    other = shares[::-1]
    assert population_stability(shares, shares) == 0
    assert population_stability(shares, other) == pytest.approx(population_stability(other, shares))


def test_the_p_value_is_students_with_both_errors_and_counts_the_bins() -> None:
    shares, live = np.array([0.5, 0.5]), np.array([0.4, 0.6])
    error = np.full(2, 0.03)
    p = p_value(shares, error, live, np.full(2, 0.04), units=(300, 1_000), groups=32)
    t = 0.1 / math.hypot(0.03, 0.04)  # both above what independent values would have: .029 and .016
    assert p == pytest.approx(2 * 2 * stats.t.sf(t, 31))


@given(st.floats(0, 40), st.integers(1, 40))
def test_students_t_is_that_of_scipy(t: float, degrees: int) -> None:
    assert two_sided_t(t, degrees) == pytest.approx(2 * stats.t.sf(t, degrees), rel=1e-6, abs=1e-13)


def test_one_with_one_degree_of_freedom_leaves_a_half() -> None:
    assert two_sided_t(1.0, 1) == pytest.approx(0.5)


def test_a_live_column_that_does_not_vary_is_given_the_variation_of_training() -> None:
    """.1 of 400 with an error of .03, four times the variance of independent values, and none of 100."""
    shares, live = np.array([0.9, 0.1]), np.array([1.0, 0.0])
    p = p_value(shares, np.full(2, 0.03), live, np.zeros(2), units=(400, 100), groups=32)
    pooled = 0.08 * 0.92
    variance = 0.03**2 + pooled * 4 / 100
    assert p == pytest.approx(2 * 2 * stats.t.sf(0.1 / math.sqrt(variance), 31))


def test_few_requests_or_few_users_give_no_verdict() -> None:
    record = some_record()
    few = tally_of(record, some_values(LEAST_REQUESTS - 1))
    one_user = some_values(2 * LEAST_REQUESTS)
    one_user.group_R[:] = 3
    for tally, said in ((few, "too few requests"), (tally_of(record, one_user), "too few users")):
        assert {one.verdict for one in compare(record, tally, false_alarms=0.01)} == {said}


def test_a_hundred_drift_free_days_alarm_at_most_thrice() -> None:
    """One in a hundred is stated; more than three have a probability of 2 %, and the seeds are fixed."""
    record = some_record()
    days = [tally_of(record, some_values(600, seed=100 + day)) for day in range(100)]
    alarms = [bool(moved(compare(record, day, false_alarms=FALSE_ALARMS["day"]))) for day in days]
    assert sum(alarms) <= 3


@pytest.mark.parametrize(
    ("place", "change", "name"),
    [
        (1, lambda value_N: value_N + 0.7, "price"),
        (1, lambda value_N: value_N * 2, "price"),
        (1, lambda value_N: value_N * 0, "price"),
        (2, lambda value_N: np.where(np.arange(len(value_N)) % 9 == 0, 1, value_N), "product unknown"),
        (0, lambda value_N: value_N * 2, "score"),
    ],
)
def test_a_planted_shift_alarms_and_names_its_column_alone(place: int, change: object, name: str) -> None:
    record, values = some_record(), some_values(1_500, seed=5)
    values.candidate_NC[:, place] = change(values.candidate_NC[:, place])  # type: ignore[operator]
    compared = compare(record, tally_of(record, values), false_alarms=FALSE_ALARMS["hour"])
    assert [one.name for one in moved(compared)] == [name]
    assert compared[0].name == name
    assert compared[0].constant == (not values.candidate_NC[:, place].any())


def test_a_shift_of_a_users_feature_alarms_and_one_too_small_to_matter_does_not() -> None:
    record, values = some_record(20_000), some_values(20_000, seed=5)
    values.request_RC[:, 0] += 1
    tally = tally_of(record, values)
    assert [one.name for one in moved(compare(record, tally, false_alarms=0.01))] == ["age"]
    values = some_values(20_000, seed=6)
    values.candidate_NC[:, 2] = np.where(
        np.arange(len(values.candidate_NC)) % 40 == 0, 1, values.candidate_NC[:, 2]
    )
    (one,) = [
        one
        for one in compare(record, tally_of(record, values), false_alarms=0.01)
        if one.name == "product unknown"
    ]
    assert one.p < 1e-9
    assert one.shift == pytest.approx(0.0225, abs=0.01)
    assert one.verdict == "same"


def test_requests_as_they_were_have_no_shift() -> None:
    record = some_record()
    compared = compare(record, tally_of(record, some_values(4_000, seed=1)), false_alarms=0.01)
    assert {(one.shift, one.p, one.psi) for one in compared} == {(0, 1, 0)}
    assert all(one.live == pytest.approx(one.trained) for one in compared)
