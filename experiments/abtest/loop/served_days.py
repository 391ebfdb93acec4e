"""Days that one policy serves alone: what was shown becomes the log, and what shoppers buy their memory.

    DAY/
      impressions.parquet, purchases.parquet, truth/   a further part of the world's log
      propensities.parquet   chance with which each impression was at its position
      day.json               counts, and what was to be expected

Shapes: S searches, K candidates of a search, N ads shown, P products.
"""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.abtest.simulated.day_files import counts_of_ads, impression_rows
from experiments.abtest.simulated.policies import Policy
from experiments.abtest.simulated.requests import request
from experiments.abtest.simulated.run import FAILED_SCORE, link_log, searches_with_candidates
from experiments.marketplace.generate import World
from experiments.marketplace.live.demand import Demand
from experiments.marketplace.live.marketplace import (
    LiveMarketplace,
    Played,
    Twin,
    logged_purchases,
    memory_of_log,
)
from experiments.marketplace.tables import LogWriter, write_table
from experiments.marketplace.world.catalog import FloatArray
from experiments.marketplace.world.shoppers import PurchaseMemory
from features.artifacts import atomic_folder, atomic_write_json, link_or_copy
from features.progress import Progress, silent

#: Name of the only twin.
ALONE = "alone"
#: Searches that a policy answers at once.
CHUNK = 512
Scores = Callable[[Demand], FloatArray]


class AloneInTheWorld:
    """A policy's own future of a world: its log, and what its shoppers remember.

    Args:
        folder: gets `log/` and `days/`; days that an earlier start finished are taken in by `take_in`.
    """

    def __init__(self, market: LiveMarketplace, world_folder: Path, folder: Path) -> None:
        self.market, self.folder = market, folder
        link_log(world_folder, folder / "log")
        known = logged_purchases(market.world, world_folder)
        self.memory: PurchaseMemory = memory_of_log(market.world, known)
        self.next_day = market.first_day
        self._impressions = pq.read_metadata(world_folder / "impressions.parquet").num_rows
        self._purchases = len(known.user_N)

    @property
    def log(self) -> Path:
        """The world's tables and a part for each day that was taken in."""
        return self.folder / "log"

    def day_folder(self, day: int) -> Path:
        """Where a day's tables lie."""
        return self.folder / "days" / f"{day:05d}"

    def serve(self, scores: Scores, *, explore: float = 0.0) -> Path:
        """Serve the next day, unless an earlier start has, and take it in.

        Args:
            scores: of the candidates of a day's searches.
            explore: share of searches whose whole slate is drawn.
        """
        folder = self.day_folder(self.next_day)
        if not folder.exists():
            demand = self.market.demand(self.next_day)
            played = play_alone(self.market, demand, scores(demand), self.memory, explore=explore)
            self._write(folder, demand, played)
        self.take_in()
        return folder

    def take_in(self) -> None:
        """Let the log and the shoppers' memory have the next day."""
        folder = self.day_folder(self.next_day)
        bought = logged_purchases(self.market.world, folder)
        self.memory.add(bought.user_N, bought.product_N, self.next_day)
        for table in ("impressions", "purchases"):
            link_or_copy(folder / f"{table}.parquet", self.log / table / f"day-{self.next_day:05d}.parquet")
        self._impressions += pq.read_metadata(folder / "impressions.parquet").num_rows
        self._purchases += len(bought.user_N)
        self.next_day += 1

    def _write(self, folder: Path, demand: Demand, played: Played) -> None:
        world, shown = self.market.world, played.shown[ALONE]
        with atomic_folder(folder) as temporary:
            with LogWriter(
                temporary,
                world.catalog,
                world.queries,
                first_impression=self._impressions + 1,
                first_purchase=self._purchases + 1,
            ) as log:
                log.impressions(impression_rows(demand, shown))
                log.purchases(self.market.purchases(demand, shown, self.memory))
            ids_N = self._impressions + 1 + np.arange(len(shown.search_N))
            propensities = pa.table({"impression_id": ids_N, "propensity": shown.propensity_N})
            write_table(temporary / "propensities.parquet", propensities)
            atomic_write_json(temporary / "day.json", {"day": demand.day, **counts_of(demand, played)})


def play_alone(
    market: LiveMarketplace,
    demand: Demand,
    score_SK: FloatArray,
    memory: PurchaseMemory,
    *,
    explore: float = 0.0,
) -> Played:
    """A day that one policy serves to everybody."""
    twins = {ALONE: Twin(score_SK, copy.deepcopy(memory))}
    return market.play(demand, twins, np.full(len(demand), ALONE), explore=explore, whole_slates=True)


def counts_of(demand: Demand, played: Played) -> dict[str, Any]:
    """Searches, and the sums of what happened and of what was to be expected."""
    sums = {name: float(value_N.sum()) for name, value_N in counts_of_ads(played.shown[ALONE]).items()}
    return {"searches": len(demand), **sums}


def read_counts(folders: Sequence[Path]) -> dict[str, float]:
    """The sums over some days."""
    total: dict[str, float] = {}
    for folder in folders:
        counts = json.loads((folder / "day.json").read_text(encoding="utf-8"))
        for name, value in counts.items():
            total[name] = total.get(name, 0.0) + value
    return total


def scores_of(policy: Policy, world: World, demand: Demand, progress: Progress = silent) -> FloatArray:
    """What a policy says of a day's candidates [S, K]; its snapshot knows what its shoppers bought.

    Raises:
        ValueError: it failed to answer a search.
    """
    score_SK = np.full(demand.product_SK.shape, FAILED_SCORE)
    there_SK: npt.NDArray[np.bool_] = demand.product_SK >= 0
    searches = searches_with_candidates(demand)
    for first in range(0, len(searches), CHUNK):
        chunk = searches[first : first + CHUNK].tolist()
        answers = policy.answers([request(world, demand, search, None, window_days=0) for search in chunk])
        for search, answer in zip(chunk, answers, strict=True):
            if answer.reply is None:
                raise ValueError(f"search {search} of day {demand.day} has no scores: {answer.failure}")
            score_SK[search, there_SK[search]] = answer.reply.scores_N
        progress("requests", first + len(chunk), len(searches))
    return score_SK
