"""Weeks in which a ranker learns from what it showed itself, beside two arms that learn from other logs.

    OUT/
      loop.json             the settings
      start/                features and run of the first week's ranker, the same for all arms
      <arm>/log/ days/      what the arm served: `experiments.abtest.loop.served_days`
            week-2/         features/, run/ and package/ of this arm's ranker, working/ what is refreshed
            week-2.json     what was measured, written last: a week without it is gone on with
      result.json

At the beginning of each week a ranker is trained by the ordinary code: `features build` of the whole log so
far, of which the last week alone is trained on, then a run and a package. What is shown that week is the log
of the next training. All arms have the same searches, candidates and luck.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from experiments.abtest.loop.measures import Value, asked_again, exposure, measure
from experiments.abtest.loop.ranker import fresh_scores, packaged
from experiments.abtest.loop.result import RESULT, LoopResult, Week
from experiments.abtest.loop.served_days import AloneInTheWorld, Scores, read_counts
from experiments.abtest.loop.settings import (
    ARMS,
    EXPLORED,
    LOGGING,
    WEEK_DAYS,
    Arm,
    LoopSettings,
)
from experiments.abtest.simulated.claim import claim_folder
from experiments.abtest.simulated.policies import PackagePolicy
from experiments.marketplace.live.demand import Demand
from experiments.marketplace.live.log_policy import log_policy_scores
from experiments.marketplace.live.marketplace import LiveMarketplace, read_description
from experiments.marketplace.world.catalog import FloatArray
from experiments.runtime.environment import environment
from features.artifacts import BusyError, atomic_write_json, file_lock
from features.offline.build import build, is_feature_set
from features.progress import Progress, silent
from ranking.run import execute_run, is_finished

SETTINGS = "loop.json"
#: Added to the luck of the weeks for the searches that rankers are measured on, which nobody else asks.
_MEASURING_LUCK = 1_000_000
#: An impression with a lower chance at its position would hardly have been there without exploration.
_BY_CHANCE = 0.5


def run_loop(
    settings: LoopSettings, out: Path, *, command: str | None = None, progress: Progress = silent
) -> LoopResult:
    """Run a closed loop, or what is left of it, in the folder `out`.

    Raises:
        ValueError: `out` holds a loop with other settings, or the world cannot go on or is too short.
        BusyError: another process runs it.
        FileExistsError: `out` holds something else.
    """
    claim(settings, out)
    with file_lock(out / ".lock", busy=BusyError(f"another process runs the loop in {out}")):
        market = LiveMarketplace.open(
            settings.world, searches_per_day=settings.searches_per_day, luck=settings.luck
        )
        if market.first_day < WEEK_DAYS:
            raise ValueError(f"{settings.world} has {market.first_day} days; the first ranker needs a week")
        weeks: list[Week] = []
        for arm in ARMS:
            loop = _Arm(settings, market, arm, out, progress)
            for week in range(1, settings.weeks + 1):
                progress(f"weeks of {arm}", week - 1, settings.weeks)
                weeks.append(loop.week(week))
            progress(f"weeks of {arm}", settings.weeks, settings.weeks)
        result = LoopResult(command=command, environment=environment(), settings=settings, weeks=weeks)
        result.write(out / RESULT)
        return result


def claim(settings: LoopSettings, out: Path) -> None:
    """Make the folder of a loop, or find that it holds this one.

    Raises:
        ValueError: `out` holds a loop with other settings, or the world cannot go on.
        FileExistsError: `out` holds something else.
    """
    read_description(settings.world)
    claim_folder(out, settings, file=SETTINGS, what="a loop")


class _Arm:
    def __init__(
        self, settings: LoopSettings, market: LiveMarketplace, arm: Arm, out: Path, progress: Progress
    ) -> None:
        self._settings, self._market, self._arm, self._progress = settings, market, arm, progress
        self._start, self._folder = out / "start", out / arm
        self._alone = AloneInTheWorld(market, settings.world, self._folder)
        self._measuring = market.with_luck(settings.luck + _MEASURING_LUCK)
        self._asked = self._measuring.demand(market.first_day)

    def week(self, number: int) -> Week:
        """The week of a number, from 1: from its folder if it is finished, else to its end."""
        path = self._folder / f"week-{number}.json"
        first_day = self._market.first_day + (number - 1) * WEEK_DAYS
        days = range(first_day, first_day + WEEK_DAYS)
        if path.is_file():
            for _ in days:
                self._alone.take_in()
            return Week.model_validate_json(path.read_bytes())
        # The log ends here with the day before: days of this week that are there already are taken in later.
        run = self._trained(number, first_day)
        policy = packaged(run, self._folder / f"week-{number}", self._alone)
        asked = asked_again(self._asked, first_day)
        score_SK = fresh_scores(policy, self._alone, asked, self._progress)
        measured = measure(self._measuring, asked, score_SK, self._alone.memory)
        explore = self._settings.explore if self._arm == EXPLORED else 0.0
        folders = [self._alone.serve(self._served_by(policy), explore=explore) for _ in days]
        metrics = _json(run / "metrics.json")
        features = _json(run.parent / "features" / "manifest.json")
        found = Week(
            arm=self._arm,
            week=number,
            training_rows=features["splits"]["train"]["rows"],
            run_auc=metrics["test"]["auc"],
            measured=measured,
            served=Value.of(read_counts(folders)),
            exposure=exposure(folders, self._market.world.catalog.available_from_P, days[-1]),
            explored=_explored(folders),
        )
        atomic_write_json(path, found.model_dump(mode="json"))
        return found

    def _trained(self, number: int, first_day: int) -> Path:
        """The run of the week, trained on the week before it; the first one is that of all arms."""
        folder = self._start if number == 1 else self._folder / f"week-{number}"
        run, features = folder / "run", folder / "features"
        if not is_finished(run):
            self._progress(f"training of {self._arm}", number - 1, self._settings.weeks)
            if not (features.is_dir() and is_feature_set(features)):
                build(self._alone.log, features, self._settings.features_of(first_day), threads=1)
            config = self._settings.ranker.model_copy(update={"features": features})
            execute_run(config, run, environment=environment(), resume=True)
        return run

    def _served_by(self, policy: PackagePolicy) -> Scores:
        def logged(demand: Demand) -> FloatArray:
            return log_policy_scores(self._market.world, demand, luck=self._settings.luck)

        def ranked(demand: Demand) -> FloatArray:
            return fresh_scores(policy, self._alone, demand, self._progress)

        return logged if self._arm == LOGGING else ranked


def _explored(folders: list[Path]) -> float:
    chance_N = np.concatenate(
        [pq.read_table(folder / "propensities.parquet")["propensity"].to_numpy() for folder in folders]
    )
    return float((chance_N < _BY_CHANCE).mean())


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
