"""One repetition of a finished run: the same searches and scores, other luck, other variants, judged anew.

Searches, candidates, scores and what consumers had bought are those of the run; who sees which variant, what
is clicked and which budgets end are drawn anew. So every repetition is a small experiment of its own, with a
true lift of its own that hardly differs.

Shapes: U consumers.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from experiments.abtest.metrics import BEFORE, COUNTED, METRICS
from experiments.abtest.simulated.before import COVARIATES, Before, read_before
from experiments.abtest.simulated.day_files import counts_of_ads, read_scores, read_twin_purchases
from experiments.abtest.simulated.result_tables import true_lifts
from experiments.abtest.simulated.run import day_folder
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
from serving.scoring.routing import assign

FloatArray = npt.NDArray[np.float64]
Sums = dict[str, FloatArray]
#: Ways to make an interval: at one look, at one look with what consumers did before, at all looks.
PLAIN, CUPED, SEQUENTIAL = "plain", "CUPED", "sequential"
WAYS = (PLAIN, CUPED, SEQUENTIAL)


class Judged(NamedTuple):
    """One way in one repetition: the last day's interval, its truth, and whether each day's held that day's.

    None is an end that there is not; the interval holds all that lies there.
    """

    low: float | None
    mean: float
    high: float | None
    truth: float
    every_day: bool

    @property
    def holds(self) -> bool:
        """Whether the interval of the last day holds the truth."""
        return _holds(self.low, self.truth, self.high)

    @property
    def width(self) -> float | None:
        """Of the last day's interval, if it has both ends."""
        return None if self.low is None or self.high is None else self.high - self.low


@dataclass(frozen=True)
class Repetition:
    """By metric and way; without metrics that could not be measured."""

    consumers: int
    judged: Mapping[str, Mapping[str, Judged]]

    def content(self) -> dict[str, Any]:
        """As JSON."""
        judged = {
            name: {way: list(one) for way, one in by_way.items()} for name, by_way in self.judged.items()
        }
        return {"consumers": self.consumers, "judged": judged}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Repetition":
        """What `content` said."""
        judged = {
            name: {way: Judged(*one) for way, one in by_way.items()}
            for name, by_way in content["judged"].items()
        }
        return cls(int(content["consumers"]), judged)


@dataclass(frozen=True)
class _Day:
    demand: Demand
    twins: Mapping[str, Twin]


class FinishedRun:
    """What all repetitions of a run share."""

    def __init__(self, out: Path, settings: RunSettings) -> None:
        """
        Raises:
            ValueError: the run in `out` is not finished.
        """
        days = range(settings.days)
        self._settings = settings
        self._market = LiveMarketplace.open(
            settings.world, searches_per_day=settings.searches_per_day, luck=settings.luck
        )
        folders = [day_folder(out, self._market.first_day + day) for day in days]
        if missing := [folder for folder in folders if not folder.is_dir()]:
            raise ValueError(
                f"{missing[0]} is missing: the run is not finished; `dashclip abtest run` goes on"
            )
        self._before: Before = read_before(self._market.world, settings.world)
        self._days = self._read(folders)

    def _read(self, folders: Sequence[Path]) -> list[_Day]:
        """Demand, scores and memories of each day."""
        market = self._market
        memory = memory_of_log(market.world, logged_purchases(market.world, self._settings.world))
        memories = {name: copy.deepcopy(memory) for name in POLICIES}
        days = []
        for day, folder in enumerate(folders, market.first_day):
            scores = read_scores(folder)
            twins = {name: Twin(scores[name], copy.deepcopy(memories[name])) for name in POLICIES}
            days.append(_Day(market.demand(day), twins))
            for name, rows in read_twin_purchases(folder).items():
                memories[name].add(rows.user_N, rows.product_N, day)
        return days

    def again(self, repeat: int) -> Repetition:
        """Play it once more: luck and salt are those of the number, so a number always gives the same."""
        settings, market = self._settings, self._market.with_luck(self._settings.luck + 1 + repeat)
        users = market.world.shoppers.num_users
        salt = f"{settings.salt} {repeat}"
        variant_U = np.array(
            [assign(str(FIRST_USER_ID + user), salt, settings.shares) for user in range(users)]
        )
        treated_U, compared_U = variant_U == TREATMENT, variant_U != HOLDOUT
        covariates = {BEFORE + name: self._before.units[BEFORE + name].to_numpy() for name in COVARIATES}
        totals: dict[str, Sums] = {name: {} for name in POLICIES}
        every_day: dict[tuple[str, str], bool] = {}
        judged: dict[str, dict[str, Judged]] = {}
        for day in self._days:
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
            judged = {}
            for name in METRICS:
                for way, lift in _lifts(everyone, name).items():
                    if lift is None or name not in truth:
                        continue
                    held = every_day.get((name, way), True) and _holds(lift.low, truth[name], lift.high)
                    every_day[name, way] = held
                    judged.setdefault(name, {})[way] = Judged(
                        lift.low, lift.mean, lift.high, truth[name], held
                    )
        return Repetition(int(came_U.sum()), judged)


def _lifts(everyone: UnitSums, name: str) -> dict[str, Interval | None]:
    metric = METRICS[name]
    adjusted = everyone.estimate(metric)
    if adjusted is None:
        return {}
    plain = everyone.estimate(metric, adjusted=False)
    return {
        PLAIN: plain.lift if plain else None,
        # Without a covariate of its own a metric has nothing to be adjusted by.
        CUPED: adjusted.lift if adjusted.adjusted else None,
        SEQUENTIAL: adjusted.sequential,
    }


def _holds(low: float | None, truth: float, high: float | None) -> bool:
    return (low is None or low <= truth) and (high is None or truth <= high)
