"""Intervals by hand, against slow formulations, and by what they promise: coverage."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from experiments.statistics.intervals import (
    Interval,
    UserWeightedAuc,
    bootstrap_aucs,
    both_noises,
    fieller,
    paired_difference,
    paired_share,
    percentile_interval,
    summarize_seeds,
    verdict,
)
from ranking.metrics import roc_auc

rows_of_users = st.lists(
    st.tuples(st.integers(0, 1), st.integers(-2, 2), st.integers(0, 5)), min_size=2, max_size=40
)


def test_summary_by_hand_uses_the_sample_standard_deviation():
    summary = summarize_seeds([1.0, 3.0])
    assert (summary.mean, summary.sd, summary.seeds) == (2.0, pytest.approx(math.sqrt(2)), 2)


def test_one_seed_has_a_mean_and_no_spread():
    assert summarize_seeds([0.7]).sd is None
    assert paired_difference([0.8], [0.7]) == Interval(mean=pytest.approx(0.1), low=None, high=None)


def test_paired_interval_by_hand_with_the_tabulated_t_value():
    # Differences 1, 2, 3: mean 2, sd 1; t(0.975, 2 degrees of freedom) = 4.302653.
    interval = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half))


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.floats(-5, 5))
def test_what_a_seed_does_to_both_sides_cancels(seed_effect_S, gain):
    baseline_S = np.array(seed_effect_S)
    interval = paired_difference(baseline_S + gain, baseline_S)
    assert (interval.low, interval.high) == pytest.approx((gain, gain), abs=1e-12)


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=2, max_size=8))
def test_swapping_the_sides_mirrors_the_interval(pairs):
    candidate_S, baseline_S = zip(*pairs, strict=True)
    one, other = paired_difference(candidate_S, baseline_S), paired_difference(baseline_S, candidate_S)
    assert (one.mean, one.low, one.high) == pytest.approx((-other.mean, -other.high, -other.low))


def test_the_paired_interval_covers_the_true_mean_as_often_as_promised():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        interval = paired_difference(rng.normal(0.3, 1, 5), rng.normal(0, 1, 5))
        covered += interval.low <= 0.3 <= interval.high
    # Binomial(1000, 0.95) has a standard deviation of 6.9.
    assert abs(covered - 950) < 4 * 6.9


def test_unequal_seeds_cannot_be_paired():
    with pytest.raises(ValueError, match="same seeds on both sides, at least one; got 2 and 1"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="at least one"):
        summarize_seeds([])


@pytest.mark.parametrize(
    ("low", "high", "excluded"),
    [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False), (0.0, 0.1, False), (None, None, False)],
)
def test_an_interval_excludes_zero_only_when_it_lies_on_one_side(low, high, excluded):
    assert Interval(mean=0.0, low=low, high=high).excludes_zero is excluded


@pytest.mark.parametrize(
    ("intervals", "said"),
    [
        ([(0.1, 0.2), (0.05, 0.3)], "above"),
        ([(-0.2, -0.1), (-0.3, -0.05)], "below"),
        ([(0.1, 0.2), (-0.05, 0.3)], "not told apart"),
        ([(-0.1, 0.2), (0.05, 0.3)], "not told apart"),
        ([(-0.2, -0.1), (-0.3, 0.0)], "not told apart"),
        ([(0.1, 0.2), (-0.3, -0.1)], "not told apart"),
        ([(None, None), (0.05, 0.3)], "not told apart"),
    ],
)
def test_a_difference_is_told_only_where_all_its_intervals_agree(intervals, said):
    assert verdict(*(Interval(mean=0.1, low=low, high=high) for low, high in intervals)) == said


@given(rows_of_users, st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_user_weighted_auc_equals_the_weighted_auc(rows, weights_U):
    labels_N, scores_N, users_N = (np.array(column) for column in zip(*rows, strict=True))
    weights_U = np.array(weights_U, dtype=float)
    weight_N = weights_U[users_N]
    assume((weight_N @ labels_N) * (weight_N @ (1 - labels_N)) > 0)
    fast = UserWeightedAuc(labels_N, scores_N, users_N)(weights_U)
    assert fast == pytest.approx(roc_auc(labels_N, scores_N, weight_N))


def test_user_weighted_auc_without_ties_equals_the_weighted_auc():
    rng = np.random.default_rng(0)
    labels_N, users_N, scores_N = rng.integers(0, 2, 90), rng.integers(0, 12, 90), rng.normal(size=90)
    weights_U = rng.poisson(1, 12).astype(float)
    fast = UserWeightedAuc(labels_N, scores_N, users_N)(weights_U)
    assert fast == pytest.approx(roc_auc(labels_N, scores_N, weights_U[users_N]))


def test_a_resample_of_one_class_has_no_auc():
    auc = UserWeightedAuc([0, 1], [0.0, 1.0], [0, 1])
    assert math.isnan(auc(np.array([2.0, 0.0])))


def test_runs_with_the_same_scores_never_differ_in_a_resample():
    rng = np.random.default_rng(1)
    labels_N, users_N, scores_N = rng.integers(0, 2, 200), rng.integers(0, 30, 200), rng.normal(size=200)
    runs = [UserWeightedAuc(labels_N, scores, users_N) for scores in (scores_N, np.exp(scores_N))]
    aucs_RM = bootstrap_aucs(runs, num_users=30, resamples=20, rng=np.random.default_rng(2))
    np.testing.assert_array_equal(aucs_RM[:, 0], aucs_RM[:, 1])
    assert aucs_RM[:, 0].std() > 0


def test_bootstrap_equals_repeating_the_rows_of_the_drawn_users():
    rng = np.random.default_rng(1)
    labels_N, users_N, scores_N = rng.integers(0, 2, 60), rng.integers(0, 8, 60), rng.integers(0, 4, 60)
    run = UserWeightedAuc(labels_N, scores_N, users_N)
    aucs_RM = bootstrap_aucs([run], num_users=8, resamples=5, rng=np.random.default_rng(7))
    again = np.random.default_rng(7)
    for resample in range(5):
        rows = np.concatenate([np.flatnonzero(users_N == user) for user in again.integers(0, 8, size=8)])
        assert aucs_RM[resample, 0] == pytest.approx(roc_auc(labels_N[rows], scores_N[rows]))


def test_users_with_correlated_rows_widen_the_bootstrap_interval():
    rng = np.random.default_rng(3)
    users_N = np.repeat(np.arange(40), 20)
    scores_N = rng.normal(size=40)[users_N]
    labels_N = (rng.random(40) < 0.5).astype(int)[users_N]  # one label a user: 40 facts, not 800

    def width(units_N):
        run = UserWeightedAuc(labels_N, scores_N, units_N)
        aucs_RM = bootstrap_aucs(
            [run], num_users=int(units_N.max()) + 1, resamples=200, rng=np.random.default_rng(4)
        )
        interval = percentile_interval(0.5, aucs_RM[:, 0])
        return interval.high - interval.low

    assert width(users_N) > 2.5 * width(np.arange(800))  # about sqrt(20) = 4.5


def test_percentile_interval_by_hand():
    interval = percentile_interval(50.0, np.arange(1.0, 100.0), confidence=0.5)
    assert (interval.mean, interval.low, interval.high) == (50.0, 25.5, 74.5)


def test_resamples_without_a_value_are_left_out_and_too_many_leave_no_limits():
    assert percentile_interval(1.0, [1.0, 2.0, 3.0, np.nan], confidence=0.999).low == pytest.approx(
        1, abs=0.01
    )
    assert percentile_interval(1.0, [1.0, np.nan, np.nan, np.nan]).low is None


def test_a_bootstrap_without_users_is_refused():
    with pytest.raises(ValueError, match="at least one user"):
        bootstrap_aucs([], num_users=0, resamples=3, rng=np.random.default_rng(0))


@settings(deadline=None)
@given(
    gains=st.lists(
        st.tuples(st.floats(-1, 1), st.floats(0.5, 2)),
        min_size=2,
        max_size=6,
    )
)
def test_a_share_lies_in_the_interval_where_part_and_share_of_the_whole_are_not_told_apart(gains):
    part_S, whole_S = np.array(gains).T
    share = paired_share(part_S, whole_S)
    assert share.mean == pytest.approx(part_S.mean() / whole_S.mean())
    whole = paired_difference(whole_S, np.zeros(len(whole_S)))
    assert (share.low is None) == (not whole.low > 0)
    if share.low is None or share.high - share.low < 1e-6:
        return
    width = share.high - share.low
    for tried, inside in (
        (share.low - 0.01 * width, False),
        (share.low + 0.01 * width, True),
        (share.mean, True),
        (share.high - 0.01 * width, True),
        (share.high + 0.01 * width, False),
    ):
        assert paired_difference(part_S, tried * whole_S).excludes_zero is not inside


def test_a_share_by_hand():
    """A whole that is equal for both seeds scales the interval; t of one degree of freedom is 12.7062."""
    assert paired_share([1.0, 2.0], [2.0, 4.0]) == Interval(0.5, None, None)  # the whole itself is not sure
    share = paired_share([1.0, 1.02], [2.0, 2.0])
    half_width = 12.7062 * np.std([1.0, 1.02], ddof=1) / np.sqrt(2) / 2
    assert (share.low, share.high) == pytest.approx((0.505 - half_width, 0.505 + half_width), abs=1e-5)


def test_a_share_of_no_gain_is_none_and_one_seed_gives_no_interval():
    assert paired_share([0.1, 0.2], [-0.1, 0.1]) is None
    assert paired_share([0.1], [0.2]) == Interval(0.5, None, None)
    with pytest.raises(ValueError, match="same seeds of the part and of the whole"):
        paired_share([0.1], [0.2, 0.3])


def inside(
    ratio: float, part: float, whole: float, variances: tuple[float, float, float], critical: float
) -> bool:
    """Whether a test of part - ratio * whole = 0 leaves the ratio possible."""
    of_part, of_whole, of_both = variances
    variance = of_part + ratio**2 * of_whole - 2 * ratio * of_both
    return abs(part - ratio * whole) <= critical * math.sqrt(variance)


@pytest.mark.parametrize("covariance", [-0.01, 0.0, 0.02])
@pytest.mark.parametrize("critical", [1.0, 1.96, 3.0])
def test_fiellers_limits_are_those_of_all_tests_turned_round(covariance, critical):
    variances = (0.04, 0.03, covariance)
    found = fieller(
        2.1, 2.0, part_variance=0.04, whole_variance=0.03, covariance=covariance, critical=critical
    )
    ratios = np.linspace(0, 3, 300_001)
    kept = [ratio for ratio in ratios if inside(ratio, 2.1, 2.0, variances, critical)]
    assert found.low == pytest.approx(kept[0], abs=2e-5)
    assert found.high == pytest.approx(kept[-1], abs=2e-5)


def test_fieller_has_no_limits_where_the_whole_may_be_zero():
    found = fieller(1.0, 0.1, part_variance=0.01, whole_variance=0.01, critical=1.96)
    assert found == Interval(10.0, None, None)


def test_both_noises_by_hand():
    # Seeds 1, 2, 3: v / S = 1 / 3. Resamples 1 and 3: variance 2. Their sum 7 / 3, 2 * 49 degrees of freedom.
    found = both_noises([1.0, 2.0, 3.0], [1.0, 3.0])
    half = 1.984467 * math.sqrt(7 / 3)
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half), rel=1e-6)


@pytest.mark.parametrize(("values_S", "resampled_R"), [([0.7], [0.6, 0.8]), ([0.6, 0.8], [math.nan, 0.7])])
def test_both_noises_need_two_seeds_and_a_sample_that_can_be_drawn_again(values_S, resampled_R):
    assert both_noises(values_S, resampled_R) == Interval(mean=pytest.approx(0.7), low=None, high=None)


def test_without_one_of_the_noises_the_other_is_left():
    seeds = both_noises([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])
    only_seeds = paired_difference([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    assert (seeds.low, seeds.high) == pytest.approx((only_seeds.low, only_seeds.high))
    drawn_R = np.random.default_rng(0).normal(2.0, 0.1, 20_000)
    sample, quantiles = both_noises([2.0, 2.0], drawn_R), percentile_interval(2.0, drawn_R)
    assert (sample.low, sample.high) == pytest.approx((quantiles.low, quantiles.high), abs=0.005)


@pytest.mark.parametrize(
    ("sd_seed", "sd_query", "sd_both"), [(0.05, 0.5, 0.2), (0.2, 0.5, 0.0), (0.0, 0.5, 1.0)]
)
def test_both_noises_are_covered_as_often_as_promised(sd_seed, sd_query, sd_both):
    """Figures mean + seed + query + (seed, query), three seeds and 60 queries, all drawn anew each time."""
    rng, seeds, queries, hits, trials = np.random.default_rng(1), 3, 60, [0, 0], 400
    for _ in range(trials):
        values_SQ = (
            rng.normal(0, sd_seed, (seeds, 1))
            + rng.normal(0, sd_query, queries)
            + rng.normal(0, sd_both, (seeds, queries))
        )
        weights_RQ = rng.multinomial(queries, np.full(queries, 1 / queries), size=200) / queries
        resampled_R = weights_RQ @ values_SQ.mean(axis=0)
        both = both_noises(values_SQ.mean(axis=1), resampled_R)
        queries_alone = percentile_interval(both.mean, resampled_R)
        for place, found in enumerate((both, queries_alone)):
            hits[place] += found.low <= 0 <= found.high
    assert 0.92 <= hits[0] / trials <= 0.995  # in the long run .93 (much noise of training) to .98
    assert hits[1] < hits[0]
