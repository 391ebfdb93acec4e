"""How often do intervals hold the true lift? A run is played again with other luck and another salt.

Searches, candidates, scores and what consumers had bought are those of the run; who sees which variant, what
is clicked and which budgets end are drawn anew each time. So every repetition is a small experiment of its
own, with a true lift of its own that hardly differs.

Shapes: R repetitions, U consumers.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from experiments.abtest.metrics import BEFORE, COUNTED, METRICS
from experiments.abtest.simulated.before import COVARIATES, Before, read_before
from experiments.abtest.simulated.day_files import (
    counts_of_ads,
    read_scores,
    read_twin_purchases,
)
from experiments.abtest.simulated.result_tables import true_lifts
from experiments.abtest.simulated.run import day_folder, read_settings
from experiments.abtest.simulated.settings import CONTROL, HOLDOUT, POLICIES, TREATMENT, RunSettings
from experiments.abtest.unit_sums import UnitSums
from experiments.marketplace.live.demand import Demand
from experiments.marketplace.live.marketplace import (
    LiveMarketplace,
    Twin,
    logged_purchases,
    memory_of_log,
)
from experiments.marketplace.tables import FIRST_USER_ID
from experiments.statistics.intervals import Interval
from features.progress import Progress, silent
from serving.scoring.routing import assign

FloatArray = npt.NDArray[np.float64]
Sums = dict[str, FloatArray]
PLAIN, CUPED, DAILY = "plain", "CUPED", "looked at every day"
WAYS = (PLAIN, CUPED, DAILY)


@dataclass(frozen=True)
class Coverage:
    """Of one metric over all repetitions.

    Attributes:
        held: share of repetitions whose 95 % interval holds the true lift, by way; of those who look every
            day: the interval of every day holds that day's. An interval without an end holds all beyond it.
        width: mean width of the last day's intervals that have both ends, by way.
        true_lift, estimated: means over repetitions; the estimate is CUPED's.
        bias_error: standard error of the mean difference of the two.
        repeats: repetitions in which the metric could be measured.
    """

    held: Mapping[str, float | None]
    width: Mapping[str, float | None]
    true_lift: float | None
    estimated: float | None
    bias_error: float | None
    repeats: int


class _Judged(NamedTuple):
    """One repetition of one metric: the interval of the last day, its truth, and whether each day's held."""

    low: float
    mean: float
    high: float
    truth: float
    always: bool

    @property
    def holds(self) -> bool:
        """Whether the interval of the last day holds the truth."""
        return self.low <= self.truth <= self.high


@dataclass(frozen=True)
class _Day:
    demand: Demand
    twins: Mapping[str, Twin]


def measure_coverage(out: Path, *, repeats: int = 200, progress: Progress = silent) -> dict[str, Coverage]:
    """Repeat the finished run in `out` and judge each repetition as `dashclip abtest report` would.

    Raises:
        ValueError: `out` holds no finished run.
    """
    settings = read_settings(out)
    market = LiveMarketplace.open(
        settings.world, searches_per_day=settings.searches_per_day, luck=settings.luck
    )
    before = read_before(market.world, settings.world)
    days = _days(out, settings, market)
    found: dict[str, list[dict[str, _Judged]]] = {name: [] for name in METRICS}
    for repeat in range(repeats):
        progress("repetitions", repeat, repeats)
        again = market.with_luck(settings.luck + 1 + repeat)
        for name, row in _repeat(again, days, settings, before, salt=f"{settings.salt} {repeat}").items():
            found[name].append(row)
    progress("repetitions", repeats, repeats)
    return {name: _summary(rows) for name, rows in found.items() if rows}


def _days(out: Path, settings: RunSettings, market: LiveMarketplace) -> list[_Day]:
    """Demand, scores and memories of each day of the run."""
    memory = memory_of_log(market.world, logged_purchases(market.world, settings.world))
    memories = {name: copy.deepcopy(memory) for name in POLICIES}
    days = []
    for day in range(market.first_day, market.first_day + settings.days):
        folder = day_folder(out, day)
        if not folder.is_dir():
            raise ValueError(f"{folder} is missing: the run is not finished; `dashclip abtest run` goes on")
        scores = read_scores(folder)
        twins = {name: Twin(scores[name], copy.deepcopy(memories[name])) for name in POLICIES}
        days.append(_Day(market.demand(day), twins))
        for name, rows in read_twin_purchases(folder).items():
            memories[name].add(rows.user_N, rows.product_N, day)
    return days


def _repeat(
    market: LiveMarketplace, days: list[_Day], settings: RunSettings, before: Before, *, salt: str
) -> dict[str, dict[str, _Judged]]:
    """One repetition, by metric and way; without metrics that could not be measured."""
    users = market.world.shoppers.num_users
    variant_U = np.array([assign(str(FIRST_USER_ID + user), salt, settings.shares) for user in range(users)])
    treated_U, compared_U = variant_U == TREATMENT, variant_U != HOLDOUT
    covariates = {BEFORE + name: before.units[BEFORE + name].to_numpy() for name in COVARIATES}
    totals: dict[str, Sums] = {name: {} for name in POLICIES}
    always = dict.fromkeys(METRICS, True)
    rows: dict[str, dict[str, _Judged]] = {}
    for place, day in enumerate(days):
        asked = day.demand.asked
        served_S = np.where(treated_U[asked.user_S], TREATMENT, CONTROL)
        played = market.play(day.demand, day.twins, served_S, explore=settings.explore)
        for name, shown in played.shown.items():
            user_N = asked.user_S[shown.search_N]
            counts = {
                count: np.bincount(user_N, weights=value_N, minlength=users).astype(np.float64)
                for count, value_N in counts_of_ads(shown).items()
            }
            counts["searches"] = np.bincount(asked.user_S, minlength=users).astype(np.float64)
            for count, value_U in counts.items():
                totals[name][count] = totals[name].get(count, np.zeros(users)) + value_U
        truth = true_lifts(
            {
                name: {count: float(value_U.sum()) for count, value_U in sums.items()}
                | {"units": float((sums["searches"] > 0).sum())}
                for name, sums in totals.items()
            }
        )
        came_U = (totals[CONTROL]["searches"] > 0) & compared_U
        sums: Sums = {
            name: np.where(treated_U, totals[TREATMENT][name], totals[CONTROL][name])
            for name in COUNTED
            if name in totals[CONTROL]
        }
        everyone = UnitSums(treated_U, sums | covariates).of_units(came_U)
        for name, metric in METRICS.items():
            adjusted = everyone.estimate(metric)
            if adjusted is None or name not in truth:
                continue
            looked = _judged(adjusted.sequential, truth[name])
            always[name] &= looked is None or looked.holds
            if place == len(days) - 1:
                plain = everyone.estimate(metric, adjusted=False)
                lifts = (plain.lift if plain else None, adjusted.lift)
                row = [*(_judged(lift, truth[name]) for lift in lifts), looked]
                rows[name] = {
                    way: one._replace(always=always[name])
                    for way, one in zip(WAYS, row, strict=True)
                    if one is not None
                }
    return rows


def _judged(lift: Interval | None, truth: float) -> _Judged | None:
    """A lift without a limit on one side holds all that lies there; None where there is no lift at all."""
    if lift is None:
        return None
    low = -np.inf if lift.low is None else lift.low
    return _Judged(low, lift.mean, np.inf if lift.high is None else lift.high, truth, always=True)


def _summary(rows: list[dict[str, _Judged]]) -> Coverage:
    held: dict[str, float | None] = {}
    width: dict[str, float | None] = {}
    for way in WAYS:
        judged = [row[way] for row in rows if way in row]
        held[way] = _mean([one.always if way == DAILY else one.holds for one in judged])
        width[way] = _mean([one.high - one.low for one in judged if np.isfinite(one.high - one.low)])
    adjusted = [row[CUPED] for row in rows if CUPED in row]
    error_R = np.array([one.mean - one.truth for one in adjusted])
    return Coverage(
        held=held,
        width=width,
        true_lift=_mean([one.truth for one in adjusted]),
        estimated=_mean([one.mean for one in adjusted]),
        bias_error=float(error_R.std(ddof=1) / np.sqrt(len(error_R))) if len(error_R) > 1 else None,
        repeats=len(adjusted),
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
