"""What a week's ranker is worth, and how biased: on the same searches for all arms and weeks, without noise.

Three kinds of traffic are made of these searches: what the ranker shows itself, slates drawn uniformly, and
what the world's log would have shown. Scores are held against the true click probability *at the first
position*, so positions decide nothing.

Shapes: S searches, K candidates of a search, N ads shown, P products.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from experiments.abtest.loop.served_days import ALONE, play_alone
from experiments.abtest.simulated.day_files import counts_of_ads
from experiments.marketplace.live.demand import Demand
from experiments.marketplace.live.log_policy import log_policy_scores
from experiments.marketplace.live.marketplace import LiveMarketplace, Played
from experiments.marketplace.world.catalog import FIRST_PRODUCT_ID, FloatArray
from experiments.marketplace.world.shoppers import PurchaseMemory
from features.columns.clock import DAY_US
from ranking.metrics import expected_roc_auc

OWN, UNIFORM, LOGGED = "own", "uniform", "logged"
TRAFFIC = (OWN, UNIFORM, LOGGED)


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Value(_Row):
    """What was to be expected: clicks an impression, revenue a search, mean grade of what is shown."""

    ctr: float
    revenue: float
    relevance: float

    @classmethod
    def of(cls, sums: "dict[str, float]") -> "Value":
        """Of counts as `served_days.counts_of` makes them."""
        return cls(
            ctr=sums["expected_clicks"] / sums["impressions"],
            revenue=sums["expected_revenue"] / sums["searches"],
            relevance=sums["relevance"] / sums["impressions"],
        )


class Judged(_Row):
    """Scores on one kind of traffic: the AUC to expect, and what the scores promise over what is clicked."""

    auc: float
    calibration: float


class Exposure(_Row):
    """Of the products that were launched: how many were shown at all, and how unevenly (Gini, 0 is even)."""

    shown: float
    gini: float


class Measured(_Row):
    """A ranker on the searches that all are measured on."""

    value: Value
    #: Of the true probabilities as scores, with the same bids and budgets.
    best: Value
    traffic: dict[str, Judged]


def measure(market: LiveMarketplace, asked: Demand, score_SK: FloatArray, memory: PurchaseMemory) -> Measured:
    """Play the searches with these scores, with the truth, uniformly and as the log would."""
    first_SK = market.first_probabilities(asked, memory)

    def played(scores_SK: FloatArray, explore: float = 0.0) -> Played:
        return play_alone(market, asked, scores_SK, memory, explore=explore)

    own = played(score_SK)
    kinds = {
        OWN: own,
        UNIFORM: played(score_SK, explore=1.0),
        LOGGED: played(log_policy_scores(market.world, asked, luck=market.luck)),
    }
    return Measured(
        value=_value(asked, own),
        best=_value(asked, played(first_SK)),
        traffic={name: _judged(found, score_SK, first_SK) for name, found in kinds.items()},
    )


def asked_again(asked: Demand, day: int) -> Demand:
    """The same searches and candidates on another day: only the clock is moved."""
    moved_us = (day - asked.day) * DAY_US
    searches = replace(asked.asked, time_us_S=asked.asked.time_us_S + moved_us)
    return replace(asked, day=day, start_us=asked.start_us + moved_us, asked=searches)


def exposure(days: Sequence[Path], available_from_P: npt.NDArray[np.integer], last_day: int) -> Exposure:
    """How the impressions of some days spread over the products launched by the last of them."""
    shown_P = np.zeros(len(available_from_P))
    for folder in days:
        ids_N = pq.read_table(folder / "impressions.parquet", columns=["product_id"])["product_id"].to_numpy()
        shown_P += np.bincount(ids_N - FIRST_PRODUCT_ID, minlength=len(shown_P))
    launched = shown_P[available_from_P <= last_day]
    return Exposure(shown=float((launched > 0).mean()), gini=gini(launched))


def gini(counts_P: npt.NDArray[np.floating]) -> float:
    """0 if all have as many, (P - 1) / P if one has them all.

    Half the mean difference of two of them, over their mean (C. Gini 1912).

    >>> gini(np.array([1.0, 1.0])), gini(np.array([0.0, 4.0]))
    (0.0, 0.5)
    """
    ordered_P = np.sort(counts_P)
    count = len(ordered_P)
    return float(2 * (np.arange(1, count + 1) @ ordered_P) / (count * ordered_P.sum()) - (count + 1) / count)


def _value(asked: Demand, played: Played) -> Value:
    sums = {name: float(value_N.sum()) for name, value_N in counts_of_ads(played.shown[ALONE]).items()}
    return Value.of({"searches": len(asked), **sums})


def _judged(played: Played, score_SK: FloatArray, first_SK: FloatArray) -> Judged:
    shown = played.shown[ALONE]
    cells = shown.search_N, shown.place_N
    return Judged(
        auc=expected_roc_auc(first_SK[cells], score_SK[cells]),
        calibration=float(score_SK[cells].sum() / first_SK[cells].sum()),
    )
