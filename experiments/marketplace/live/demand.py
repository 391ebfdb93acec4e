"""What a day of the live marketplace asks, whoever answers: searches, and the ads that may be shown.

Shapes: S searches, K places for candidates, P products.
"""

from dataclasses import dataclass

import numpy as np

from experiments.marketplace.days.searches import Searches, SearchSimulator, prices
from experiments.marketplace.days.slates import slate_sizes
from experiments.marketplace.generate import World, live_seed, midnight_us, promoted_products
from experiments.marketplace.world.catalog import BoolArray, FloatArray, IntArray

#: Places for candidates of a search; an ad drawn for two of them takes part once.
PLACES = 24


@dataclass(frozen=True)
class Demand:
    """Searches of one day in order of time, and the candidates of each: -1 where a place has none."""

    day: int
    start_us: int
    asked: Searches
    product_SK: IntArray
    grade_SK: IntArray
    #: What each candidate costs in the shop, promotions included.
    shop_price_SK: FloatArray
    #: Room for so many ads.
    size_S: IntArray
    promoted_P: BoolArray

    def __len__(self) -> int:
        return len(self.size_S)


def draw_demand(world: World, simulator: SearchSimulator, *, day: int, searches: int, luck: int) -> Demand:
    """The demand of a day; the same for the same world, day and luck."""
    rng = np.random.default_rng(live_seed(world.config, luck, day, "demand"))
    start_us = midnight_us(world.config, day)
    world.slates.open_day(day)
    asked = simulator.searches(start_us, searches, rng)
    product_SK = world.slates.candidates(asked.query_S, PLACES, rng)
    query_SK = np.repeat(asked.query_S[:, None], PLACES, axis=1)
    grade_SK = world.judge.grades(query_SK.ravel(), product_SK.ravel()).reshape(product_SK.shape)
    promoted_P = promoted_products(world.config, world.catalog, day)
    return Demand(
        day=day,
        start_us=start_us,
        asked=asked,
        product_SK=product_SK,
        grade_SK=grade_SK,
        shop_price_SK=prices(world.catalog, promoted_P, product_SK),
        size_S=slate_sizes(searches, rng),
        promoted_P=promoted_P,
    )
