"""Searches of one day and the ads they show: who asks what, which candidates, in which order, who clicks.

Shapes: S searches, K = 5 slots of a slate, N impressions, Q queries, P products, T types.
"""

from dataclasses import dataclass

import numpy as np

from experiments.marketplace.config import MarketplaceConfig
from experiments.marketplace.days.clicks import ClickCauses, click_delays_us, click_logits, sigmoid
from experiments.marketplace.days.purchases import PurchaseRows, times_of_day_us
from experiments.marketplace.world.catalog import BoolArray, Catalog, FloatArray, IntArray
from experiments.marketplace.world.graders import count_facets, true_grades
from experiments.marketplace.world.pools import ProductPools, any_of
from experiments.marketplace.world.queries import WANTED, Queries
from experiments.marketplace.world.shoppers import (
    DEVICES,
    LIKED_TYPE_SHARES,
    PurchaseMemory,
    Shoppers,
    taste_affinity,
)

SLOTS = 5
#: Chance of a slate of one to five ads.
SLATE_SIZES = (0.12, 0.18, 0.22, 0.23, 0.25)
#: Where the noisy retrieval takes a slot's candidate from: the query's matches, the wanted type, the same
#: aisle, anywhere.
SOURCE_SHARES = (0.42, 0.30, 0.18, 0.10)
#: An ad index keeps this many matches of a query at most.
MOST_MATCHES = 256
_LIKED_TYPE_SHARE = 0.6
_OTHER_DEVICE_SHARE = 0.15
_OTHER_STORE_SHARE = 0.10
_PROMOTION_SHARE = 0.12
_PROMOTION_FACTOR = 0.8


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
    clicked_N: BoolArray
    #: Meaningless where not clicked.
    click_time_us_N: IntArray


class SearchSimulator:
    """Draws the searches of each day with their slates and clicks."""

    def __init__(
        self,
        config: MarketplaceConfig,
        catalog: Catalog,
        queries: Queries,
        shoppers: Shoppers,
        matches: ProductPools,
    ) -> None:
        self._config, self._catalog = config, catalog
        self._queries, self._shoppers, self._matches = queries, shoppers, matches
        num_types = len(catalog.assortment.types)
        every = np.arange(catalog.num_products)

        def pools(list_P: IntArray, num_lists: int) -> ProductPools:
            return ProductPools(
                list_P,
                every,
                num_lists=num_lists,
                available_from_P=catalog.available_from_P,
                weight_P=catalog.ad_weight_P,
            )

        self._by_type = pools(catalog.type_P, num_types)
        self._by_aisle = pools(catalog.aisle_P, len(catalog.assortment.aisles))
        self._everything = pools(np.zeros_like(every), 1)
        self._searches_before_U = np.cumsum(shoppers.searches_U)
        self._type_chances_T = np.cumsum(
            np.bincount(catalog.type_P, weights=catalog.popularity_P, minlength=num_types)
        )
        # Queries by anchor type; traffic sums to one per type, so type t owns [t, t + 1).
        self._query_order_Q = np.argsort(queries.anchor_Q, kind="stable")
        self._traffic_before_Q = np.cumsum(queries.traffic_Q[self._query_order_Q])
        self._type_aisle_T = np.array([kind.aisle for kind in catalog.assortment.types])
        self._wanted_query, self._wanted_type = np.nonzero(queries.role_QT == WANTED)
        self._log_ad_weight_P = np.log(catalog.ad_weight_P)

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
        for pools in (self._matches, self._by_type, self._by_aisle, self._everything):
            pools.open_day(day)
        catalog, shoppers = self._catalog, self._shoppers
        time_us_S = np.sort(day_start_us + times_of_day_us(searches, rng))
        total = self._searches_before_U[-1]
        user_S = np.searchsorted(self._searches_before_U, rng.random(searches) * total, side="right")
        user_S = np.minimum(user_S, shoppers.num_users - 1)
        query_S = self._draw_queries(user_S, rng)
        search_N, product_N, grade_N, position_N = self._slates(query_S, rng)

        user_N, query_N = user_S[search_N], query_S[search_N]
        time_us_N = time_us_S[search_N]
        device_S = np.where(
            rng.random(searches) < _OTHER_DEVICE_SHARE,
            rng.integers(0, len(DEVICES), searches),
            shoppers.device_U[user_S],
        )
        store_S = np.where(
            rng.random(searches) < _OTHER_STORE_SHARE,
            rng.integers(0, self._config.stores, searches),
            shoppers.store_U[user_S],
        )
        factor_N = np.where(promoted_P[product_N], _PROMOTION_FACTOR, 1.0)
        _, found_N = count_facets(self._queries, catalog, query_N, product_N)
        causes = ClickCauses(
            grade_N=grade_N,
            facets_found_N=found_N,
            taste_N=taste_affinity(self._config.taste, shoppers, catalog, user_N, product_N),
            quality_N=catalog.quality_P[product_N],
            price_sensitivity_N=shoppers.price_sensitivity_U[user_N],
            log_relative_price_N=catalog.log_relative_price_P[product_N] + np.log(factor_N),
            position_N=position_N,
            device_N=device_S[search_N],
            click_tendency_N=shoppers.click_tendency_U[user_N],
            hour_N=(time_us_N - day_start_us) / 3.6e9,
            bought_recently_N=memory.bought_recently(user_N, product_N, day, self._config.history_days),
        )
        probability_N = sigmoid(click_logits(self._config.clicks, causes))
        return ImpressionRows(
            time_us_N=time_us_N,
            user_N=user_N,
            query_N=query_N,
            product_N=product_N,
            position_N=position_N,
            store_N=store_S[search_N],
            device_N=device_S[search_N],
            price_N=np.round(catalog.price_P[product_N] * factor_N, 2),
            grade_N=grade_N,
            probability_N=probability_N,
            clicked_N=rng.random(len(user_N)) < probability_N,
            click_time_us_N=time_us_N + click_delays_us(len(user_N), rng),
        )

    def conversions(self, rows: ImpressionRows, day: int, rng: np.random.Generator) -> PurchaseRows:
        """Purchases that follow a click within an hour, by users who purchase at all."""
        buys_N = rng.random(len(rows.user_N)) < self._config.conversion_rate * (0.5 + 0.5 * rows.grade_N)
        active_N = self._shoppers.orders_U[rows.user_N] > 0
        active_N &= self._shoppers.first_order_day_U[rows.user_N] <= day
        wait_us_N = rng.integers(30_000_000, 3_600_000_000, len(buys_N))
        kept = np.flatnonzero(rows.clicked_N & buys_N & active_N)
        kept = kept[np.argsort((rows.click_time_us_N + wait_us_N)[kept], kind="stable")]
        return PurchaseRows(
            time_us_N=(rows.click_time_us_N + wait_us_N)[kept],
            user_N=rows.user_N[kept],
            product_N=rows.product_N[kept],
            quantity_N=np.ones(len(kept), np.int32),
        )

    def _draw_queries(self, user_S: IntArray, rng: np.random.Generator) -> IntArray:
        """First what sort of product, mostly one the user likes; then how to say it, by traffic."""
        searches = len(user_S)
        like_S = rng.choice(len(LIKED_TYPE_SHARES), searches, p=LIKED_TYPE_SHARES)
        liked_S = self._shoppers.liked_type_UK[user_S, like_S]
        any_S = np.searchsorted(self._type_chances_T, rng.random(searches) * self._type_chances_T[-1])
        type_S = np.where(rng.random(searches) < _LIKED_TYPE_SHARE, liked_S, any_S)
        found_S = np.searchsorted(self._traffic_before_Q, type_S + rng.random(searches) * (1 - 1e-9))
        return self._query_order_Q[np.minimum(found_S, len(self._query_order_Q) - 1)]

    def _slates(
        self, query_S: IntArray, rng: np.random.Generator
    ) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Search, product, grade and position of every ad shown.

        Noisy retrieval proposes candidates; the advertiser's bid, a noisy estimate of the relevance and
        chance order them.
        """
        searches = len(query_S)
        source_SK = rng.choice(len(SOURCE_SHARES), (searches, SLOTS), p=SOURCE_SHARES)
        product_SK = self._retrieve(query_S, source_SK, rng)
        # A slot without a candidate, or with one that the slate has, tries the type, then the aisle.
        for source in (1, 2):
            retry = np.nonzero(_missing_or_repeated(product_SK))
            product_SK[retry] = self._retrieve(
                query_S[retry[0]], np.full((len(retry[0]), 1), source), rng
            ).ravel()
        size_S = rng.choice(SLOTS, searches, p=SLATE_SIZES) + 1
        usable_SK = ~_missing_or_repeated(product_SK) & (np.arange(SLOTS) < size_S[:, None])

        query_SK = np.broadcast_to(query_S[:, None], product_SK.shape)
        grade_SK = true_grades(self._queries, self._catalog, query_SK.ravel(), product_SK.ravel())
        grade_SK = grade_SK.reshape(product_SK.shape)
        score_SK = (
            0.5 * self._log_ad_weight_P[product_SK]
            + 0.7 * (grade_SK + rng.normal(0.0, 0.7, grade_SK.shape))
            + rng.gumbel(0.0, 0.5, grade_SK.shape)
        )
        order_SK = np.argsort(-np.where(usable_SK, score_SK, -np.inf), axis=1, kind="stable")
        product_SK = np.take_along_axis(product_SK, order_SK, axis=1)
        grade_SK = np.take_along_axis(grade_SK, order_SK, axis=1)
        shown_SK = np.take_along_axis(usable_SK, order_SK, axis=1)
        search_N, slot_N = np.nonzero(shown_SK)
        return search_N, product_SK[shown_SK], grade_SK[shown_SK], (slot_N + 1).astype(np.int8)

    def _retrieve(self, query_S: IntArray, source_SK: IntArray, rng: np.random.Generator) -> IntArray:
        query_SK = np.broadcast_to(query_S[:, None], source_SK.shape)
        product_SK = np.full(source_SK.shape, -1, np.int64)
        for source in range(len(SOURCE_SHARES)):
            cells = source_SK == source
            queries = query_SK[cells]
            if source == 0:
                product_SK[cells] = self._matches.draw(queries, rng)
            elif source == 1:
                product_SK[cells] = self._by_type.draw(self._wanted(queries, rng), rng)
            elif source == 2:
                aisles = self._type_aisle_T[self._queries.anchor_Q[queries]]
                product_SK[cells] = self._by_aisle.draw(aisles, rng)
            else:
                product_SK[cells] = self._everything.draw(np.zeros_like(queries), rng)
        return product_SK

    def _wanted(self, query_N: IntArray, rng: np.random.Generator) -> IntArray:
        """One of the types that satisfy each query."""
        return self._wanted_type[any_of(self._wanted_query, query_N, rng)]


def match_pools(catalog: Catalog, queries: Queries, rng: np.random.Generator) -> ProductPools:
    """For each query the products of grade 2, at most `MOST_MATCHES` of them (a random choice)."""
    by_type = [np.flatnonzero(catalog.type_P == index) for index in range(len(catalog.assortment.types))]
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


def promotions(catalog: Catalog, rng: np.random.Generator) -> BoolArray:
    """The products whose price is cut this week."""
    return rng.random(catalog.num_products) < _PROMOTION_SHARE


def _missing_or_repeated(product_SK: IntArray) -> BoolArray:
    repeated_SK = product_SK < 0
    for slot in range(1, product_SK.shape[1]):
        repeated_SK[:, slot] |= (product_SK[:, :slot] == product_SK[:, slot : slot + 1]).any(axis=1)
    return repeated_SK
