"""Searches of one day and the ads they show: who asks what, and who clicks on what is shown.

Shapes: S searches, N impressions, Q queries, P products, T types.
"""

from dataclasses import dataclass

import numpy as np

from experiments.marketplace.config import LogConfig
from experiments.marketplace.days.clicks import (
    ClickCauses,
    click_delays_us,
    click_logits,
    click_terms,
    sigmoid,
)
from experiments.marketplace.days.purchases import PurchaseRows, times_of_day_us
from experiments.marketplace.days.slates import ShownAds, Slates
from experiments.marketplace.world.catalog import BoolArray, Catalog, FloatArray, IntArray, Shelf
from experiments.marketplace.world.graders import Judge, true_grades
from experiments.marketplace.world.pools import ProductPools
from experiments.marketplace.world.queries import WANTED, Queries, SearchTraffic
from experiments.marketplace.world.shoppers import (
    DEVICES,
    LIKED_TYPE_SHARES,
    PurchaseMemory,
    Shoppers,
    taste_affinity,
)

#: An ad index keeps this many matches of a query at most.
MOST_MATCHES = 256
_LIKED_TYPE_SHARE = 0.6
_OTHER_DEVICE_SHARE = 0.15
_OTHER_STORE_SHARE = 0.10
_PROMOTION_SHARE = 0.12
_PROMOTION_FACTOR = 0.8
#: A clicked ad is bought so long after the click: from, to.
CONVERSION_WAIT_US = (30_000_000, 3_600_000_000)


@dataclass(frozen=True)
class Searches:
    """Who asks what, when and where, in order of time."""

    time_us_S: IntArray
    user_S: IntArray
    query_S: IntArray
    device_S: IntArray
    store_S: IntArray


@dataclass(frozen=True)
class ImpressionRows:
    """Impressions in order of time and position; those of one search share user, time and query."""

    time_us_N: IntArray
    user_N: IntArray
    query_N: IntArray
    product_N: IntArray
    position_N: IntArray
    store_N: IntArray
    device_N: IntArray
    price_N: FloatArray
    grade_N: IntArray
    probability_N: FloatArray
    #: What each cause adds to the log-odds of a click, by name.
    terms: dict[str, FloatArray]
    clicked_N: BoolArray
    #: Meaningless where not clicked.
    click_time_us_N: IntArray


class SearchSimulator:
    """Draws the searches of each day with their slates and clicks."""

    def __init__(
        self,
        config: LogConfig,
        catalog: Shelf,
        queries: SearchTraffic,
        shoppers: Shoppers,
        slates: Slates,
        judge: Judge,
    ) -> None:
        self._config, self._catalog = config, catalog
        self._shoppers, self._slates, self._judge = shoppers, slates, judge
        num_types = catalog.num_types
        self._searches_before_U = np.cumsum(shoppers.searches_U)
        # Of a type without queries nobody searches; that is none of the invented ones.
        self._searched_T = np.bincount(queries.anchor_Q, minlength=num_types) > 0
        self._type_chances_T = np.cumsum(
            np.bincount(catalog.type_P, weights=catalog.popularity_P, minlength=num_types) * self._searched_T
        )
        # Queries by anchor type; traffic sums to one per type, so searched type r owns [r, r + 1).
        self._rank_T = np.cumsum(self._searched_T) - 1
        self._query_order_Q = np.argsort(queries.anchor_Q, kind="stable")
        self._traffic_before_Q = np.cumsum(queries.traffic_Q[self._query_order_Q])

    def impressions(
        self,
        day: int,
        day_start_us: int,
        searches: int,
        memory: PurchaseMemory,
        rng: np.random.Generator,
        promoted_P: BoolArray,
    ) -> ImpressionRows:
        """All impressions of `searches` searches; `memory` is as of midnight and is not changed."""
        self._slates.open_day(day)
        time_us_S, user_S, query_S = self._arrivals(day_start_us, searches, rng)
        ads = self._slates.show(query_S, rng)
        device_S, store_S = self._places(user_S, rng)
        asked = Searches(time_us_S, user_S, query_S, device_S, store_S)
        terms = click_terms(
            self._config.clicks, self.causes(asked, ads, day, day_start_us, memory, promoted_P)
        )
        probability_N = sigmoid(click_logits(self._config.clicks, terms))
        time_us_N = time_us_S[ads.search_N]
        return ImpressionRows(
            time_us_N=time_us_N,
            user_N=user_S[ads.search_N],
            query_N=query_S[ads.search_N],
            product_N=ads.product_N,
            position_N=ads.position_N,
            store_N=store_S[ads.search_N],
            device_N=device_S[ads.search_N],
            price_N=prices(self._catalog, promoted_P, ads.product_N),
            grade_N=ads.grade_N,
            probability_N=probability_N,
            terms=terms,
            clicked_N=rng.random(len(time_us_N)) < probability_N,
            click_time_us_N=time_us_N + click_delays_us(rng.standard_normal(len(time_us_N))),
        )

    def searches(self, day_start_us: int, count: int, rng: np.random.Generator) -> Searches:
        """`count` searches of one day, whatever they will be shown."""
        time_us_S, user_S, query_S = self._arrivals(day_start_us, count, rng)
        return Searches(time_us_S, user_S, query_S, *self._places(user_S, rng))

    def causes(
        self,
        asked: Searches,
        ads: ShownAds,
        day: int,
        day_start_us: int,
        memory: PurchaseMemory,
        promoted_P: BoolArray,
    ) -> ClickCauses:
        """What the click on each ad depends on."""
        catalog, shoppers = self._catalog, self._shoppers
        user_N, query_N = asked.user_S[ads.search_N], asked.query_S[ads.search_N]
        product_N = ads.product_N
        return ClickCauses(
            grade_N=ads.grade_N,
            facets_found_N=self._judge.facets_found(query_N, product_N),
            taste_N=taste_affinity(self._config.taste, shoppers, catalog, user_N, product_N),
            quality_N=catalog.quality_P[product_N],
            price_sensitivity_N=shoppers.price_sensitivity_U[user_N],
            log_relative_price_N=catalog.log_relative_price_P[product_N]
            + np.log(_price_factors(promoted_P, product_N)),
            position_N=ads.position_N,
            device_N=asked.device_S[ads.search_N],
            click_tendency_N=shoppers.click_tendency_U[user_N],
            hour_N=(asked.time_us_S[ads.search_N] - day_start_us) / 3.6e9,
            bought_recently_N=memory.bought_recently(user_N, product_N, day, self._config.history_days),
        )

    def conversion_chances(self, user_N: IntArray, grade_N: IntArray, day: int) -> FloatArray:
        """Chance that a clicked ad is bought; 0 for who does not order at all, or not yet."""
        active_N = self._shoppers.orders_U[user_N] > 0
        active_N &= self._shoppers.first_order_day_U[user_N] <= day
        return self._config.conversion_rate * (0.5 + 0.5 * grade_N) * active_N

    def conversions(self, rows: ImpressionRows, day: int, rng: np.random.Generator) -> PurchaseRows:
        """Purchases that follow a click within an hour, by users who purchase at all."""
        chance_N = self.conversion_chances(rows.user_N, rows.grade_N, day)
        buys_N = rng.random(len(rows.user_N)) < chance_N
        wait_us_N = rng.integers(*CONVERSION_WAIT_US, len(buys_N))
        kept = np.flatnonzero(rows.clicked_N & buys_N)
        kept = kept[np.argsort((rows.click_time_us_N + wait_us_N)[kept], kind="stable")]
        return PurchaseRows(
            time_us_N=(rows.click_time_us_N + wait_us_N)[kept],
            user_N=rows.user_N[kept],
            product_N=rows.product_N[kept],
            quantity_N=np.ones(len(kept), np.int32),
        )

    def _arrivals(
        self, day_start_us: int, count: int, rng: np.random.Generator
    ) -> tuple[IntArray, IntArray, IntArray]:
        """When, who and what."""
        time_us_S = np.sort(day_start_us + times_of_day_us(count, rng))
        total = self._searches_before_U[-1]
        user_S = np.searchsorted(self._searches_before_U, rng.random(count) * total, side="right")
        user_S = np.minimum(user_S, self._shoppers.num_users - 1)
        return time_us_S, user_S, self._draw_queries(user_S, rng)

    def _places(self, user_S: IntArray, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Device and store of each search, mostly the user's own."""
        count, shoppers = len(user_S), self._shoppers
        device_S = np.where(
            rng.random(count) < _OTHER_DEVICE_SHARE,
            rng.integers(0, len(DEVICES), count),
            shoppers.device_U[user_S],
        )
        store_S = np.where(
            rng.random(count) < _OTHER_STORE_SHARE,
            rng.integers(0, self._config.stores, count),
            shoppers.store_U[user_S],
        )
        return device_S, store_S

    def _draw_queries(self, user_S: IntArray, rng: np.random.Generator) -> IntArray:
        """First what sort of product, mostly one the user likes; then how to say it, by traffic."""
        searches = len(user_S)
        like_S = rng.choice(len(LIKED_TYPE_SHARES), searches, p=LIKED_TYPE_SHARES)
        liked_S = self._shoppers.liked_type_UK[user_S, like_S]
        any_S = np.searchsorted(self._type_chances_T, rng.random(searches) * self._type_chances_T[-1])
        by_habit_S = (rng.random(searches) < _LIKED_TYPE_SHARE) & self._searched_T[liked_S]
        rank_S = self._rank_T[np.where(by_habit_S, liked_S, any_S)]
        found_S = np.searchsorted(self._traffic_before_Q, rank_S + rng.random(searches) * (1 - 1e-9))
        return self._query_order_Q[np.minimum(found_S, len(self._query_order_Q) - 1)]


def match_pools(catalog: Catalog, queries: Queries, rng: np.random.Generator) -> ProductPools:
    """For each query the products of grade 2, at most `MOST_MATCHES` of them (a random choice)."""
    by_type = [np.flatnonzero(catalog.type_P == index) for index in range(catalog.num_types)]
    lists, products = [], []
    for query in range(queries.num_queries):
        wanted = np.flatnonzero(queries.role_QT[query] == WANTED)
        candidates = np.concatenate([by_type[index] for index in wanted])
        grade = true_grades(queries, catalog, np.full(len(candidates), query), candidates)
        found = candidates[grade == 2]
        if len(found) > MOST_MATCHES:
            found = np.sort(rng.choice(found, MOST_MATCHES, replace=False))
        lists.append(np.full(len(found), query, np.int32))
        products.append(found.astype(np.int32))
    return ProductPools(
        np.concatenate(lists),
        np.concatenate(products),
        num_lists=queries.num_queries,
        available_from_P=catalog.available_from_P,
        weight_P=catalog.ad_weight_P,
    )


def promotions(catalog: Shelf, rng: np.random.Generator) -> BoolArray:
    """The products whose price is cut this week."""
    return rng.random(catalog.num_products) < _PROMOTION_SHARE


def prices(catalog: Shelf, promoted_P: BoolArray, product_N: IntArray) -> FloatArray:
    """What each product costs while some are promoted."""
    return np.round(catalog.price_P[product_N] * _price_factors(promoted_P, product_N), 2)


def _price_factors(promoted_P: BoolArray, product_N: IntArray) -> FloatArray:
    return np.where(promoted_P[product_N], _PROMOTION_FACTOR, 1.0)
