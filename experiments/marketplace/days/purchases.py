"""Orders of one day: repeats of what the user bought before, and new products by taste.

Shapes: N order lines, M alternatives considered for each line.
"""

from dataclasses import dataclass

import numpy as np

from experiments.marketplace.config import LogConfig
from experiments.marketplace.world.catalog import FloatArray, IntArray, Shelf
from experiments.marketplace.world.pools import ProductPools
from experiments.marketplace.world.shoppers import LIKED_TYPE_SHARES, PurchaseMemory, Shoppers, taste_affinity

#: Chance of one, two, three and four products in an order.
_ORDER_SIZES = (0.45, 0.30, 0.15, 0.10)
_REPEAT_SHARE = 0.35
_BY_HABIT_SHARE = 0.85
_ALTERNATIVES = 16
#: How sharply taste and quality decide between alternatives; popularity decided which are considered.
_TASTE_SHARPNESS = 2.0
_QUALITY_WEIGHT = 0.5
#: Searches and orders by hour of the day, UTC.
HOUR_WEIGHTS = (
    1,
    0.6,
    0.4,
    0.3,
    0.3,
    0.6,
    1.5,
    2.5,
    3,
    3.2,
    3.5,
    4,
    4.2,
    4,
    3.8,
    4,
    4.5,
    5.2,
    6,
    6.5,
    6,
    5,
    3.5,
    2,
)


@dataclass(frozen=True)
class PurchaseRows:
    """Order lines in order of time; lines of one order share user and time. Times in us since 1970."""

    time_us_N: IntArray
    user_N: IntArray
    product_N: IntArray
    quantity_N: IntArray

    def rows(self, chosen: slice | IntArray) -> "PurchaseRows":
        """Some of the lines, in the order given."""
        return PurchaseRows(**{name: column_N[chosen] for name, column_N in vars(self).items()})


class OrderSimulator:
    """Draws the orders of each day."""

    def __init__(self, config: LogConfig, catalog: Shelf, shoppers: Shoppers) -> None:
        self._config, self._catalog, self._shoppers = config, catalog, shoppers
        self._orders_before_U = np.cumsum(shoppers.orders_U)
        self._by_type = ProductPools(
            catalog.type_P,
            np.arange(catalog.num_products),
            num_lists=catalog.num_types,
            available_from_P=catalog.available_from_P,
            weight_P=catalog.popularity_P,
        )

    def orders(
        self, day: int, day_start_us: int, memory: PurchaseMemory, rng: np.random.Generator
    ) -> PurchaseRows:
        """All orders of `day`; `memory` is as of its midnight and is not changed."""
        self._by_type.open_day(day)
        total = self._orders_before_U[-1]
        user_N = np.searchsorted(self._orders_before_U, rng.random(rng.poisson(total / 30.0)) * total)
        user_N = np.minimum(user_N, self._shoppers.num_users - 1)
        user_N = user_N[self._shoppers.first_order_day_U[user_N] <= day]
        time_us_N = np.sort(day_start_us + times_of_day_us(len(user_N), rng))

        lines_N = rng.choice(len(_ORDER_SIZES), len(user_N), p=_ORDER_SIZES) + 1
        order_N = np.repeat(np.arange(len(user_N)), lines_N)
        product_N = self._choose(user_N[order_N], memory, rng)
        # The same product twice in one order is one line.
        keys = order_N * np.int64(self._catalog.num_products) + product_N
        keep = np.sort(np.unique(keys, return_index=True)[1])
        keep = keep[product_N[keep] >= 0]
        quantity_N = 1 + (rng.random(len(order_N)) < 0.15) + (rng.random(len(order_N)) < 0.05)
        return PurchaseRows(
            time_us_N=time_us_N[order_N[keep]],
            user_N=user_N[order_N[keep]],
            product_N=product_N[keep],
            quantity_N=quantity_N[keep].astype(np.int32),
        )

    def _choose(self, user_N: IntArray, memory: PurchaseMemory, rng: np.random.Generator) -> IntArray:
        shoppers, catalog = self._shoppers, self._catalog
        like_N = rng.choice(len(LIKED_TYPE_SHARES), len(user_N), p=LIKED_TYPE_SHARES)
        by_habit_N = rng.random(len(user_N)) < _BY_HABIT_SHARE
        any_type_N = rng.integers(0, catalog.num_types, len(user_N))
        type_N = np.where(by_habit_N, shoppers.liked_type_UK[user_N, like_N], any_type_N).astype(np.int64)

        alternatives = self._by_type.draw(np.repeat(type_N, _ALTERNATIVES), rng)
        users = np.repeat(user_N, _ALTERNATIVES)
        score: FloatArray = (
            _TASTE_SHARPNESS * taste_affinity(self._config.taste, shoppers, catalog, users, alternatives)
            + _QUALITY_WEIGHT * catalog.quality_P[alternatives]
            - shoppers.price_sensitivity_U[users] * catalog.log_relative_price_P[alternatives]
            + rng.gumbel(size=len(alternatives))
        )
        score = np.where(alternatives >= 0, score, -np.inf)
        best_N = score.reshape(-1, _ALTERNATIVES).argmax(axis=1)
        chosen_N = alternatives.reshape(-1, _ALTERNATIVES)[np.arange(len(user_N)), best_N]

        again_N = memory.draw_again(user_N, rng)
        repeat_N = (rng.random(len(user_N)) < _REPEAT_SHARE) & (again_N >= 0)
        return np.where(repeat_N, again_N, chosen_N)


def times_of_day_us(count: int, rng: np.random.Generator) -> IntArray:
    """Random microseconds since midnight, by `HOUR_WEIGHTS`."""
    weights = np.array(HOUR_WEIGHTS)
    hour_N = rng.choice(24, count, p=weights / weights.sum())
    return hour_N.astype(np.int64) * 3_600_000_000 + rng.integers(0, 3_600_000_000, count)


def sorted_by_time(*parts: PurchaseRows) -> PurchaseRows:
    """Several blocks as one, by time; lines of one order stay together."""
    names = vars(parts[0])
    joined = PurchaseRows(**{name: np.concatenate([vars(part)[name] for part in parts]) for name in names})
    return joined.rows(np.argsort(joined.time_us_N, kind="stable"))
