"""The policy that wrote the world's log, as scores: it goes on serving where a ranker does not.

The log orders its ads by 0.5 log auction weight, the platform's belief and chance (docs/marketplace.md). A
bid is root(weight) times a constant, so a score that is the exponential of the rest gives the same order.

Shapes: S searches, K candidates of a search.
"""

import numpy as np

from experiments.marketplace.days.slates import AUCTION_PLACES, WEIGHT_FACTOR
from experiments.marketplace.generate import World, live_seed
from experiments.marketplace.live.demand import Demand
from experiments.marketplace.world.catalog import FloatArray


def log_policy_scores(world: World, demand: Demand, *, luck: int) -> FloatArray:
    """Scores [S, K] by which an auction shows what the log would have shown.

    In `mixed` so many of the first candidates take part as there is room for, in `retrieval` the first twelve
    places; the others come last, and are shown where these are too few.
    """
    rng = np.random.default_rng(live_seed(world.config, luck, demand.day, "log policy"))
    there_SK = demand.product_SK >= 0
    order_SK = world.slates.order(demand.product_SK, demand.grade_SK, rng)
    rest_SK = order_SK - WEIGHT_FACTOR * np.log(world.catalog.ad_weight_P[demand.product_SK])
    number_SK = np.cumsum(there_SK, axis=1)
    if world.config.candidates == "mixed":
        takes_part_SK = there_SK & (number_SK <= demand.size_S[:, None])
    else:
        takes_part_SK = there_SK & (np.arange(there_SK.shape[1]) < AUCTION_PLACES)
    # Scores are chances of a click for the auction: the scale changes no order and no price.
    return np.where(takes_part_SK, np.exp(rest_SK - 6.0), 0.0)
