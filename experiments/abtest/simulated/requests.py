"""The searches of a simulated day as requests, and what twins bought, as the request's history.

Shapes: S searches, K candidates of a search, E purchases.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from experiments.marketplace.days.purchases import PurchaseRows
from experiments.marketplace.generate import World
from experiments.marketplace.live.demand import Demand
from experiments.marketplace.tables import FIRST_USER_ID
from experiments.marketplace.world.shoppers import DEVICES
from features.columns.clock import DAY_US
from features.online.request import MAX_HISTORY, ScoreRequest

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Histories:
    """Purchases by user, oldest first."""

    user_E: Ints
    product_E: Ints
    time_us_E: Ints

    @classmethod
    def of(cls, bought: PurchaseRows, *, before_us: int) -> "Histories":
        """What was bought before a moment; ties stay as they come."""
        known = np.flatnonzero(bought.time_us_N < before_us)
        order = known[np.lexsort((bought.time_us_N[known], bought.user_N[known]))]
        return cls(
            bought.user_N[order].astype(np.int64),
            bought.product_N[order].astype(np.int64),
            bought.time_us_N[order].astype(np.int64),
        )

    def since(self, user: int, first_us: int) -> Ints:
        """Products of a user from a moment on, newest first."""
        start, end = np.searchsorted(self.user_E, [user, user + 1])
        first = start + np.searchsorted(self.time_us_E[start:end], first_us)
        return self.product_E[first:end][::-1][:MAX_HISTORY]


def request(
    world: World, demand: Demand, search: int, histories: Histories | None, *, window_days: int
) -> ScoreRequest:
    """One search, as a shop would ask: ids, query, moment, place, and the shop's prices.

    Args:
        histories: where the server's snapshot does not know what this twin bought.
    """
    asked = demand.asked
    there = demand.product_SK[search] >= 0
    time_us, user = int(asked.time_us_S[search]), int(asked.user_S[search])
    history = None
    if histories is not None:
        bought = histories.since(user, time_us - window_days * DAY_US)
        history = world.catalog.product_id_P[bought]
    return ScoreRequest(
        user_id=user + FIRST_USER_ID,
        query=world.queries.texts[asked.query_S[search]],
        candidates=world.catalog.product_id_P[demand.product_SK[search][there]],
        timestamp_us=time_us,
        context={"device": DEVICES[asked.device_S[search]], "store_id": int(asked.store_S[search]) + 1},
        candidate_columns={"price": demand.shop_price_SK[search][there]},
        history=history,
    )
