"""Means over worlds: by hand, by a second way, and how often their intervals hold a known truth."""

import itertools

import numpy as np
import pytest
from scipy import stats

from experiments.statistics.intervals import Interval, mean_interval
from experiments.worlds.estimates import (
    OverWorlds,
    PerRun,
    minus,
    over_worlds,
    share_over_worlds,
    spread_of,
    world_means,
)

#: Standard deviations of worlds, encoder seeds and ranker seeds in the simulations.
WORLDS_SD, ENCODERS_SD, RANKERS_SD = 1.0, 0.8, 0.6


def nested(
    rng: np.random.Generator, *, worlds: int, encoders: int, rankers: int, mean: float = 0.0
) -> dict[tuple[int, ...], float]:
    """Runs of a balanced design with the spreads above."""
    values: dict[tuple[int, ...], float] = {}
    for world in range(worlds):
        of_world = rng.normal(mean, WORLDS_SD)
        for encoder in range(encoders):
            of_encoder = of_world + rng.normal(0, ENCODERS_SD)
            for ranker in range(rankers):
                values[world, encoder, ranker] = of_encoder + rng.normal(0, RANKERS_SD)
    return values


def known(values: PerRun) -> OverWorlds:
    found = over_worlds(values)
    assert found is not None
    return found


def holds(interval: Interval, truth: float) -> bool:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low <= truth <= interval.high


def test_a_mean_over_worlds_is_that_of_their_encoders_which_is_that_of_their_rankers() -> None:
    values = {(0, 0, 0): 1.0, (0, 0, 1): 3.0, (0, 1, 0): 6.0, (7, 0, 0): 10.0}
    found = over_worlds(values)
    assert found is not None
    assert found.by_world == {0: (2 + 6) / 2, 7: 10.0}
    assert found.mean == (4 + 10) / 2
    half = stats.t.ppf(0.975, 1) * np.std([4.0, 10.0], ddof=1) / np.sqrt(2)
    assert (found.low, found.high) == pytest.approx((7 - half, 7 + half))


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_is_that_of_the_analysis_of_variance_of_the_whole_design(seed: int) -> None:
    """A second way: the mean square between worlds over the number of all runs, by sums over runs."""
    worlds, encoders, rankers = 5, 3, 2
    values = nested(np.random.default_rng(seed), worlds=worlds, encoders=encoders, rankers=rankers)
    grand = sum(values.values()) / len(values)
    square = 0.0
    for world in range(worlds):
        total = 0.0
        for encoder, ranker in itertools.product(range(encoders), range(rankers)):
            total += values[world, encoder, ranker]
        square += encoders * rankers * (total / (encoders * rankers) - grand) ** 2
    error = np.sqrt(square / (worlds - 1) / len(values))
    half = stats.t.ppf(0.975, worlds - 1) * error
    found = over_worlds(values)
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((grand, grand - half, grand + half))


def test_seeds_that_agree_do_not_count_as_further_worlds() -> None:
    once = {(world, 0, 0): float(value) for world, value in enumerate((3, 5, 4))}
    seeds = list(itertools.product(range(4), range(5)))
    often = {(world, *seed): value for (world, _, _), value in once.items() for seed in seeds}
    one, many = known(once), known(often)
    assert (one.mean, one.low, one.high) == pytest.approx((many.mean, many.low, many.high))


def test_one_world_has_no_interval_and_none_has_no_mean() -> None:
    found = over_worlds({(3, 0, 0): 1.0, (3, 0, 1): 2.0})
    assert found is not None
    assert (found.mean, found.low, found.high) == (1.5, None, None)
    assert over_worlds({}) is None


def test_differences_are_taken_between_runs_of_one_world_and_seed() -> None:
    one = {(0, 0, 0): 5.0, (0, 0, 1): 7.0, (1, 0, 0): 100.0}
    other = {(0, 0, 1): 1.0, (0, 0, 0): 2.0, (2, 0, 0): 9.0}
    assert minus(one, other) == {(0, 0, 0): 3.0, (0, 0, 1): 6.0}


def test_what_a_world_and_a_seed_do_to_both_cancels() -> None:
    rng = np.random.default_rng(0)
    common = nested(rng, worlds=4, encoders=2, rankers=2)
    found = over_worlds(minus({run: value + 0.25 for run, value in common.items()}, common))
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def coverage_of(worlds: int, repeats: int) -> dict[str, float]:
    """How often three intervals hold the truth: over worlds, a bootstrap of worlds, one over all runs."""
    rng = np.random.default_rng(1)
    held = {"over worlds": 0, "bootstrap": 0, "runs": 0}
    truth = 0.3
    for _ in range(repeats):
        values = nested(rng, worlds=worlds, encoders=2, rankers=2, mean=truth)
        found = known(values)
        means = np.array(list(found.by_world.values()))
        drawn = means[rng.integers(0, worlds, (400, worlds))].mean(axis=1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        runs = mean_interval(list(values.values()))
        held["over worlds"] += holds(found, truth)
        held["bootstrap"] += holds(Interval(0.0, low, high), truth)
        held["runs"] += holds(runs, truth)
    return {name: count / repeats for name, count in held.items()}


def test_the_interval_over_five_worlds_holds_the_truth_as_often_as_it_says_and_others_do_not() -> None:
    coverage = coverage_of(worlds=5, repeats=2500)
    assert coverage["over worlds"] == pytest.approx(0.95, abs=0.013)  # three standard errors
    assert coverage["bootstrap"] < 0.90
    assert coverage["runs"] < 0.80


def test_the_spreads_of_a_large_design_are_those_it_was_drawn_with() -> None:
    found = spread_of(nested(np.random.default_rng(2), worlds=400, encoders=3, rankers=3))
    assert found.rankers == pytest.approx(RANKERS_SD, rel=0.05)
    assert found.encoders == pytest.approx(ENCODERS_SD, rel=0.08)
    means_sd = np.sqrt(WORLDS_SD**2 + ENCODERS_SD**2 / 3 + RANKERS_SD**2 / 9)
    assert found.worlds == pytest.approx(means_sd, rel=0.1)


def test_a_spread_of_a_single_draw_is_not_known() -> None:
    found = spread_of({(0, 0, 0): 1.0, (1, 0, 0): 3.0})
    assert (found.worlds, found.encoders, found.rankers) == (pytest.approx(np.sqrt(2)), None, None)


def test_a_share_is_a_ratio_of_means_and_not_a_mean_of_ratios() -> None:
    part: PerRun = {(0, 0, 0): 1.0, (1, 0, 0): 3.0}
    whole: PerRun = {(0, 0, 0): 4.0, (1, 0, 0): 4.0, (2, 0, 0): 9.0}
    found = share_over_worlds(part, whole)
    assert found is not None
    assert found.mean == 4 / 8
    assert found.by_world == {0: 0.25, 1: 0.75}
    assert share_over_worlds(part, {}) is None


def test_world_means_keep_the_numbers_of_worlds() -> None:
    assert list(world_means({(9, 0, 0): 1.0, (4, 0, 0): 2.0})) == [9, 4]
