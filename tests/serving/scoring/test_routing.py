"""Routing is stable, follows the shares, and is independent between salts."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.scoring.routing import assign, position

HALVES = {"control": 0.5, "treatment": 0.5}


@given(st.text(), st.text())
def test_positions_lie_in_the_half_open_unit_interval(unit: str, salt: str) -> None:
    assert 0 <= position(unit, salt) < 1
    assert position(unit, salt) == position(unit, salt)


def test_positions_stay_what_they_were_when_experiments_started() -> None:
    assert position("user-1", "ranker-2026") == 0.840212174154662


def test_units_follow_the_shares_within_sampling_error() -> None:
    shares = {"control": 0.2, "treatment": 0.79, "holdout": 0.01}
    n = 20_000
    counted = Counter(assign(f"u{i}", "salt", shares) for i in range(n))
    for variant, share in shares.items():
        assert abs(counted[variant] - n * share) < 4.5 * (n * share * (1 - share)) ** 0.5


def test_two_salts_assign_independently() -> None:
    n = 20_000
    both = Counter((assign(f"u{i}", "a", HALVES), assign(f"u{i}", "b", HALVES)) for i in range(n))
    assert all(abs(count - n / 4) < 4.5 * (n * 3 / 16) ** 0.5 for count in both.values())
    assert len(both) == 4


def test_a_growing_share_moves_only_units_of_the_neighbour_that_pays_for_it() -> None:
    before = {"control": 0.9, "treatment": 0.05, "holdout": 0.05}
    after = {"control": 0.5, "treatment": 0.45, "holdout": 0.05}
    for i in range(5_000):
        was, now = assign(f"u{i}", "s", before), assign(f"u{i}", "s", after)
        assert was == now or (was, now) == ("control", "treatment")


def test_a_variant_without_a_share_gets_nobody() -> None:
    shares = {"off": 0.0, "on": 1.0, "kill": 0.0}
    assert {assign(f"u{i}", "s", shares) for i in range(2_000)} == {"on"}


@pytest.mark.parametrize(
    "shares, said", [({"a": 0.5, "b": 0.4}, "add up to 0.9"), ({"a": 1.5, "b": -0.5}, "share of a is 1.5")]
)
def test_shares_that_are_not_those_of_a_whole_are_refused(shares: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        assign("u", "s", shares)
