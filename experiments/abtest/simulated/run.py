"""A simulated experiment day by day: snapshots at night, searches by day, and a folder for each day.

    OUT/
      run.json          the settings, and what each policy does not read
      log/              the world's log and a part for each day: what snapshots are made of
      packages/         working copies of packages
      days/0217/ ...    see `experiments.abtest.simulated.day_files`
      experiment/       what `dashclip abtest report` reads

A day that was interrupted is played again, from the folders of the days before it, and comes out the same.

Shapes: S searches, K candidates of a search, U consumers.
"""

import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from experiments.abtest.simulated.before import Before, read_before
from experiments.abtest.simulated.claim import claim_folder
from experiments.abtest.simulated.day_files import (
    Asked,
    PlayedDay,
    calendar_day,
    read_twin_purchases,
    write_day,
)
from experiments.abtest.simulated.policies import Policy
from experiments.abtest.simulated.requests import Histories, request
from experiments.abtest.simulated.result_tables import write_result
from experiments.abtest.simulated.settings import CONTROL, POLICIES, TREATMENT, RunSettings
from experiments.marketplace.days.purchases import PurchaseRows, sorted_by_time
from experiments.marketplace.generate import midnight_us
from experiments.marketplace.live.advertisers import RESERVE
from experiments.marketplace.live.demand import Demand
from experiments.marketplace.live.marketplace import (
    LiveMarketplace,
    Twin,
    logged_purchases,
    memory_of_log,
    read_description,
)
from experiments.marketplace.tables import FIRST_USER_ID
from experiments.marketplace.world.shoppers import PurchaseMemory
from features.artifacts import BusyError, file_lock, link_or_copy, remove_folder
from features.inputs.tables import table_files
from features.progress import Progress, silent
from serving.scoring.routing import assign

SETTINGS, DAYS, LOG, PACKAGES, EXPERIMENT = "run.json", "days", "log", "packages", "experiment"
#: Searches that one policy answers before the other one has its turn.
CHUNK = 512
#: What a search that failed is shown by: all scores alike, so bids alone decide.
FAILED_SCORE = 0.1

MakePolicy = Callable[[str, Path], Policy]
Tell = Callable[[str], None]


def _tell_nobody(sentence: str) -> None:
    """Sentences that nobody reads."""


@dataclass(frozen=True)
class Finished:
    """What a run ends with.

    Attributes:
        true_lift: by metric.
        searches, failed: searches of served twins, and those without scores.
        left_out: what each policy does not read.
        refreshed: whether each policy's snapshots were made every night.
    """

    true_lift: Mapping[str, float]
    searches: int
    failed: int
    first_failure: str | None
    left_out: Mapping[str, list[str]]
    refreshed: Mapping[str, bool]


def claim(settings: RunSettings, out: Path) -> None:
    """Make the folder of an experiment, or find that it holds this one.

    Raises:
        ValueError: `out` holds an experiment with other settings, or the world cannot go on.
        FileExistsError: `out` holds something else.
    """
    read_description(settings.world)
    claim_folder(out, settings, file=SETTINGS, what="an experiment")


def run_experiment(
    settings: RunSettings,
    out: Path,
    make_policy: MakePolicy,
    *,
    progress: Progress = silent,
    tell: Tell = _tell_nobody,
) -> Finished:
    """Run an experiment, or what is left of it, in the folder `out`.

    Args:
        make_policy: a policy of `control` or `treatment`, given that name and a folder of its own.
        tell: called with a sentence after each day that was played.

    Raises:
        ValueError: what `claim` refuses.
        FileExistsError: likewise.
        BusyError: another process runs it.
    """
    claim(settings, out)
    with file_lock(out / ".lock", busy=BusyError(f"another process runs the experiment in {out}")):
        return _Run(settings, out, make_policy, progress, tell).to_its_end()


class _Run:
    def __init__(
        self, settings: RunSettings, out: Path, make_policy: MakePolicy, progress: Progress, tell: Tell
    ) -> None:
        self._settings, self._out, self._progress, self._tell = settings, out, progress, tell
        progress("the world", 0, 1)
        self._market = LiveMarketplace.open(
            settings.world, searches_per_day=settings.searches_per_day, luck=settings.luck
        )
        self._world = self._market.world
        self._before: Before = read_before(self._world, settings.world)
        known = logged_purchases(self._world, settings.world)
        memory = memory_of_log(self._world, known)
        self._memory: dict[str, PurchaseMemory] = {name: copy.deepcopy(memory) for name in POLICIES}
        since = known.time_us_N >= self._midnight_us(self._market.first_day - self._world.config.history_days)
        self._bought: dict[str, list[PurchaseRows]] = {
            name: [known.rows(np.flatnonzero(since))] for name in POLICIES
        }
        users = range(FIRST_USER_ID, FIRST_USER_ID + self._world.shoppers.num_users)
        self._variant_U = np.array([assign(str(user), settings.salt, settings.shares) for user in users])
        #: Consumers whose twins have bought different things, so that a snapshot knows only one of them.
        self._differ_U = np.zeros(len(self._variant_U), bool)
        self._rows = {"impressions": self._before.impressions, "purchases": self._before.purchases}
        self._policies = {name: make_policy(name, out / PACKAGES / name) for name in POLICIES}
        self._refreshed = dict.fromkeys(POLICIES, True)
        progress("the world", 1, 1)

    def to_its_end(self) -> Finished:
        settings, market = self._settings, self._market
        link_log(settings.world, self._out / LOG)
        days = range(market.first_day, market.first_day + settings.days)
        truth: dict[str, float] = {}
        for done, day in enumerate(days):
            self._progress("days", done, len(days))
            folder = day_folder(self._out, day)
            played = not folder.exists()
            if played:
                self._play(day, folder, done=done)
            self._take_in(day, folder)
            if played or done == len(days) - 1:
                made = [day_folder(self._out, known) for known in days[: done + 1]]
                truth = write_result(self._out / EXPERIMENT, settings, self._before, made)
        self._progress("days", len(days), len(days))
        about = [
            json.loads((day_folder(self._out, day) / "day.json").read_text(encoding="utf-8")) for day in days
        ]
        return Finished(
            true_lift=truth,
            searches=sum(one["searches"] for one in about),
            failed=sum(one["failed"] for one in about),
            first_failure=next((one["first_failure"] for one in about if one["first_failure"]), None),
            left_out=about[-1]["left_out"],
            refreshed=about[-1]["refreshed"],
        )

    def _play(self, day: int, folder: Path, *, done: int) -> None:
        started = time.monotonic()
        market, settings = self._market, self._settings
        demand = market.demand(day)
        histories = {
            name: Histories.of(sorted_by_time(*rows), before_us=demand.start_us)
            for name, rows in self._bought.items()
        }
        self._refresh(demand)
        asking = time.monotonic()
        asked, first_failure = self._ask(demand, histories)
        asking = time.monotonic() - asking
        requests = len(POLICIES) * len(searches_with_candidates(demand))
        variant_S = self._variant_U[demand.asked.user_S]
        treated_S = variant_S == TREATMENT
        twins = {name: Twin(asked.score_SK[name], self._memory[name]) for name in POLICIES}
        played = market.play(demand, twins, np.where(treated_S, TREATMENT, CONTROL), explore=settings.explore)
        bought = {
            name: market.purchases(demand, shown, self._memory[name]) for name, shown in played.shown.items()
        }
        truth_SK = None
        if settings.explore > 0:
            truth_SK = np.where(
                treated_S[:, None],
                market.first_probabilities(demand, self._memory[TREATMENT]),
                market.first_probabilities(demand, self._memory[CONTROL]),
            )
        failed_S = np.where(treated_S, asked.failed_S[TREATMENT], asked.failed_S[CONTROL])
        write_day(
            folder,
            self._world,
            PlayedDay(
                demand=demand,
                asked=asked,
                played=played,
                bought=bought,
                variant_S=variant_S,
                variant_U=self._variant_U,
                first_probability_SK=truth_SK,
            ),
            first_impression=self._rows["impressions"] + 1,
            first_purchase=self._rows["purchases"] + 1,
            top_queries=self._before.top_Q,
            about={
                "day": day,
                "date": calendar_day(self._world, day).isoformat(),
                "searches": len(demand),
                "failed": int(failed_S.sum()),
                "first_failure": first_failure,
                "clicks_not_paid_in_full": played.given_away,
                "budgets_ended": int((played.left_A < RESERVE).sum()),
                "left_out": {name: sorted(policy.left_out) for name, policy in self._policies.items()},
                "refreshed": self._refreshed,
                "requests": requests,
                "requests_seconds": round(asking, 1),
                "seconds": round(time.monotonic() - started, 1),
            },
        )
        self._tell(
            f"day {done + 1} of {settings.days}, {calendar_day(self._world, day)}: {len(demand):,} searches, "
            f"{requests:,} requests at {requests / max(asking, 1e-3):,.0f}/s, {int(failed_S.sum()):,} "
            f"searches without scores; {time.monotonic() - started:.0f} s in all"
        )

    def _refresh(self, demand: Demand) -> None:
        probes = searches_with_candidates(demand)[:1]
        for name, policy in self._policies.items():
            for search in probes.tolist():
                probe = request(self._world, demand, search, None, window_days=0)
                self._refreshed[name] = policy.refresh(self._out / LOG, demand.start_us, probe=probe)

    def _ask(self, demand: Demand, histories: Mapping[str, Histories]) -> tuple[Asked, str | None]:
        """Scores of both policies, in turns, so that neither has the machine's better hours."""
        shape = demand.product_SK.shape
        score_SK = {name: np.full(shape, FAILED_SCORE) for name in POLICIES}
        failed_S = {name: np.zeros(len(demand), bool) for name in POLICIES}
        ms_S = {name: np.full(len(demand), np.nan) for name in POLICIES}
        first_failure = None
        searches = searches_with_candidates(demand)
        window_days = self._world.config.history_days
        stage = f"requests of {calendar_day(self._world, demand.day)}"
        for first in range(0, len(searches), CHUNK):
            chunk = searches[first : first + CHUNK]
            for turn, (name, policy) in enumerate(self._policies.items()):
                treated = name == TREATMENT
                requests = []
                for search in chunk.tolist():
                    user = demand.asked.user_S[search]
                    # The snapshot knows the purchases of the twin that was served.
                    unknown = self._differ_U[user] and (self._variant_U[user] == TREATMENT) != treated
                    known = histories[name] if unknown else None
                    requests.append(request(self._world, demand, search, known, window_days=window_days))
                for search, answer in zip(chunk.tolist(), policy.answers(requests), strict=True):
                    ms_S[name][search] = answer.ms
                    if answer.reply is None:
                        failed_S[name][search] = True
                        first_failure = first_failure or f"{name}: {answer.failure}"
                    else:
                        there = demand.product_SK[search] >= 0
                        score_SK[name][search, there] = answer.reply.scores_N
                done = first * 2 + len(chunk) * (turn + 1)
                self._progress(stage, done, 2 * len(searches))
        return Asked(score_SK, failed_S, ms_S), first_failure

    def _take_in(self, day: int, folder: Path) -> None:
        """What consumers bought on a day, for the days after it."""
        bought = read_twin_purchases(folder)
        for name, rows in bought.items():
            self._memory[name].add(rows.user_N, rows.product_N, day)
            self._bought[name].append(rows)
        one, other = (bought[name] for name in POLICIES)
        self._differ_U |= _different(one, other, len(self._differ_U))
        for table in self._rows:
            self._rows[table] += pq.read_metadata(folder / f"{table}.parquet").num_rows
            target = self._out / LOG / table / f"day-{day:05d}.parquet"
            if not target.exists():
                link_or_copy(folder / f"{table}.parquet", target)

    def _midnight_us(self, day: int) -> int:
        return midnight_us(self._world.config, day)


def searches_with_candidates(demand: Demand) -> npt.NDArray[np.int64]:
    """Those that a policy can be asked about."""
    return np.flatnonzero((demand.product_SK >= 0).any(axis=1))


def day_folder(out: Path, day: int) -> Path:
    """Where a day's tables lie."""
    return out / DAYS / f"{day:05d}"


def read_settings(out: Path) -> RunSettings:
    """Those of a run.

    Raises:
        ValueError: `out` holds none.
    """
    path = out / SETTINGS
    if not path.is_file():
        raise ValueError(f"{out} has no {SETTINGS}: `dashclip abtest run` has not written it")
    return RunSettings.model_validate_json(path.read_text(encoding="utf-8"))


def link_log(world: Path, log: Path) -> None:
    """The world's tables in folders that days can be added to; those of an earlier start are linked anew."""
    if log.exists():
        remove_folder(log)
    for name in ("products", "relevance", "impressions", "purchases"):
        for path in table_files(world, name):
            link_or_copy(path, log / name / f"world-{path.name}")


def _different(one: PurchaseRows, other: PurchaseRows, users: int) -> npt.NDArray[np.bool_]:
    """Consumers who bought other products, or at other times, in one than in the other."""
    differ_U = np.zeros(users, bool)
    keys = [np.stack([rows.user_N, rows.product_N, rows.time_us_N], axis=1) for rows in (one, other)]
    found, count = np.unique(np.concatenate(keys), axis=0, return_counts=True)
    # A line of both has a count of two; twice in one twin would need two clicks in one microsecond.
    differ_U[found[count == 1, 0]] = True
    return differ_U
