"""A number over worlds, encoder seeds and ranker seeds: its mean, its interval, and what makes it vary.

The interval is Student's t over the means of worlds. A world is a whole marketplace of its own, with its own
products, queries, users, test week, encoders and rankers, all drawn with seeds that no other world has (only
the SVD of LSA and the projection of the true facts have one seed everywhere). So the means of worlds are
independent, and their spread holds every noise there is below: that of training the encoders, of training
the rankers, of the sample of test users and queries. This is the analysis of a balanced nested design by its
largest units, "ultimate clusters" in survey sampling (Hansen, Hurwitz & Madow 1953; Kalton 1979): the
variance between the means of clusters estimates the variance of the grand mean whatever happens within
clusters, without a model of it. Seeds within a world make its mean steadier, but never count as more worlds.

A bootstrap of the worlds would be too short with five of them (Cameron, Gelbach & Miller 2008,
https://doi.org/10.1162/rest.90.3.414), and one that also draws anew within them counts the noise within
twice (Davison & Hinkley 1997, section 3.8). tests/experiments/worlds/test_estimates.py measures the coverage
of both on a known structure.

Shapes: W worlds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from experiments.statistics.intervals import Interval, mean_interval, paired_share

#: A measure of single runs by world, encoder seed and ranker seed, the last two as numbers 0, 1, …
PerRun = Mapping[tuple[int, ...], float]


@dataclass(frozen=True)
class Spread:
    """Standard deviations of a nested design, by the analysis of variance; None where one draw was made.

    `worlds` is the spread of the means of worlds as they are, all noise within included; the others are what
    another seed alone would change in the figure of one run.
    """

    worlds: float | None
    encoders: float | None
    rankers: float | None


@dataclass(frozen=True)
class OverWorlds(Interval):
    """The mean of the means of worlds with its 95 % interval, and those means."""

    by_world: dict[int, float]
    spread: Spread


def over_worlds(values: PerRun) -> OverWorlds | None:
    """Mean and interval over worlds; None without a value.

    >>> found = over_worlds({(0, 0, 0): 1.0, (0, 0, 1): 3.0, (1, 0, 0): 4.0})
    >>> found.mean, found.by_world
    (3.0, {0: 2.0, 1: 4.0})
    """
    if not values:
        return None
    by_world = world_means(values)
    found = mean_interval(list(by_world.values()))
    return OverWorlds(found.mean, found.low, found.high, by_world, spread_of(values))


def share_over_worlds(part: PerRun, whole: PerRun) -> OverWorlds | None:
    """Mean of `part` over mean of `whole`, over the worlds that have both, with Fieller's interval.

    None without such a world, and where the whole is not positive.
    """
    top, bottom = world_means(part), world_means(whole)
    shared = [world for world in top if world in bottom]
    found = (
        paired_share([top[world] for world in shared], [bottom[world] for world in shared])
        if shared
        else None
    )
    if found is None:
        return None
    by_world = {world: top[world] / bottom[world] for world in shared if bottom[world]}
    return OverWorlds(found.mean, found.low, found.high, by_world, Spread(None, None, None))


def minus(one: PerRun, other: PerRun) -> dict[tuple[int, ...], float]:
    """Differences of the runs that both have: of the same world and seeds."""
    return {run: value - other[run] for run, value in one.items() if run in other}


def world_means(values: PerRun) -> dict[int, float]:
    """Of each world the mean over its encoder seeds, each of which is a mean over its ranker seeds."""
    of_encoder = _means(values, 2)
    return {key[0]: mean for key, mean in _means(of_encoder, 1).items()}


def spread_of(values: PerRun) -> Spread:
    """The components of variance, by differences of mean squares; a negative estimate counts as none.

    Within a group of seeds the variance is pooled over groups by their degrees of freedom.
    Rankers have the same seeds for each encoder of a world, so what these do to all of them alike is not in
    the spread over encoders, which is then a little too small.
    """
    of_encoder = _means(values, 2)
    of_world = _means(of_encoder, 1)
    rankers = _pooled_variance(values, 2)
    between = _pooled_variance(of_encoder, 1)
    encoders = None
    if between is not None:
        seeds = len(values) / len(of_encoder)
        encoders = max(0.0, between - (rankers or 0.0) / seeds)
    worlds = float(np.var(list(of_world.values()), ddof=1)) if len(of_world) > 1 else None
    return Spread(
        *(None if found is None else float(np.sqrt(found)) for found in (worlds, encoders, rankers))
    )


def _means(values: Mapping[tuple[int, ...], float], keep: int) -> dict[tuple[int, ...], float]:
    """Means of the values that agree in the first `keep` parts of their key."""
    groups: dict[tuple[int, ...], list[float]] = {}
    for key, value in values.items():
        groups.setdefault(key[:keep], []).append(value)
    return {key: float(np.mean(group)) for key, group in groups.items()}


def _pooled_variance(values: Mapping[tuple[int, ...], float], keep: int) -> float | None:
    """Of the values around the mean of their group; None where each group has one value."""
    means = _means(values, keep)
    freedom = len(values) - len(means)
    squares = sum((value - means[key[:keep]]) ** 2 for key, value in values.items())
    return squares / freedom if freedom else None
