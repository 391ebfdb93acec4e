"""Which ads a search shows, in which order: one law for each preset, and one more for real catalogues.

`MixedSlates` fills each slot from a source that is more or less near the query, so relevance differs much
between the ads. `AuctionSlates` holds an auction among products that were retrieved for the query, so nearly
all ads are relevant. `ListSlates` shows any of a query's list, as relevant as people found it.

Shapes: S searches, K candidates of a search, N ads shown, P products.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from experiments.marketplace.world.catalog import BoolArray, Catalog, FloatArray, IntArray, Shelf
from experiments.marketplace.world.graders import FactsJudge, Judge
from experiments.marketplace.world.pools import ProductPools, any_of
from experiments.marketplace.world.queries import WANTED, Queries

#: Most ads of a slate.
SLOTS = 5
#: Chance of a slate of one to five ads.
SLATE_SIZES = (0.12, 0.18, 0.22, 0.23, 0.25)
#: Where a mixed slate takes a slot's candidate from: the query's matches, the wanted type, the same aisle,
#: anywhere.
SOURCE_SHARES = (0.42, 0.30, 0.18, 0.10)
#: An auction has this many places; an advertiser who draws two of them takes part once.
AUCTION_PLACES = 12
# What orders the ads, in units of the score: log auction weight, the platform's estimate of the grade,
# chance, and in an auction its estimate of the product's quality too. An estimate is off by this much noise.
WEIGHT_FACTOR = 0.5
_GRADE_FACTOR = 0.7
_AUCTION_GRADE_FACTOR = 1.2
_AUCTION_QUALITY_FACTOR = 0.4
_ESTIMATE_NOISE = 0.7
_CHANCE = 0.5


@dataclass(frozen=True)
class ShownAds:
    """The ads of many searches, in order of search and position (from 1)."""

    search_N: IntArray
    product_N: IntArray
    grade_N: IntArray
    position_N: IntArray


class Slates(Protocol):
    """Decides what a search shows."""

    def open_day(self, day: int) -> None:
        """Let in what was launched on or before `day`."""

    def show(self, query_S: IntArray, rng: np.random.Generator) -> ShownAds:
        """The ads of one search for each query; no product twice in one search."""

    def candidates(self, query_S: IntArray, places: int, rng: np.random.Generator) -> IntArray:
        """Products [S, places] that may be shown; -1 where a place has none, or one that the search has."""

    def order(self, product_SK: IntArray, grade_SK: IntArray, rng: np.random.Generator) -> FloatArray:
        """What the log's ads are ordered by [S, K], the best first, whoever of them takes part."""


class MixedSlates:
    """Each slot asks one source, from the query's matches to the whole shop; all that are found are shown."""

    def __init__(self, catalog: Catalog, queries: Queries, matches: ProductPools) -> None:
        self._judge, self._queries, self._matches = FactsJudge(queries, catalog), queries, matches
        every = np.arange(catalog.num_products)

        def pools(list_P: IntArray, num_lists: int) -> ProductPools:
            return ProductPools(
                list_P,
                every,
                num_lists=num_lists,
                available_from_P=catalog.available_from_P,
                weight_P=catalog.ad_weight_P,
            )

        self._by_type = pools(catalog.type_P, len(catalog.assortment.types))
        self._by_aisle = pools(catalog.aisle_P, len(catalog.assortment.aisles))
        self._everything = pools(np.zeros_like(every), 1)
        self._type_aisle_T = np.array([kind.aisle for kind in catalog.assortment.types])
        self._wanted_query, self._wanted_type = np.nonzero(queries.role_QT == WANTED)
        self._log_ad_weight_P = np.log(catalog.ad_weight_P)

    def open_day(self, day: int) -> None:
        """Let in what was launched on or before `day`."""
        for pools in (self._matches, self._by_type, self._by_aisle, self._everything):
            pools.open_day(day)

    def show(self, query_S: IntArray, rng: np.random.Generator) -> ShownAds:
        """The ads of one search for each query; a slate is short if too few sources find a product."""
        product_SK = self.candidates(query_S, SLOTS, rng)
        size_S = slate_sizes(len(query_S), rng)
        usable_SK = (product_SK >= 0) & (np.arange(SLOTS) < size_S[:, None])
        grade_SK = _grades(self._judge, query_S, product_SK)
        return _best_first(product_SK, grade_SK, self.order(product_SK, grade_SK, rng), usable_SK, size_S)

    def order(self, product_SK: IntArray, grade_SK: IntArray, rng: np.random.Generator) -> FloatArray:
        """Bid, what the platform believes of the relevance, and chance."""
        return _weight_and_grade(self._log_ad_weight_P[product_SK], grade_SK, rng)

    def candidates(self, query_S: IntArray, places: int, rng: np.random.Generator) -> IntArray:
        """Products [S, places], each of a source of its own; -1 where there is none, or one twice."""
        source_SK = rng.choice(len(SOURCE_SHARES), (len(query_S), places), p=SOURCE_SHARES)
        product_SK = self._of_sources(query_S, source_SK, rng)
        # A slot without a candidate, or with one that the slate has, tries the type, then the aisle.
        for source in (1, 2):
            retry = np.nonzero(_missing_or_repeated(product_SK))
            product_SK[retry] = self._of_sources(
                query_S[retry[0]], np.full((len(retry[0]), 1), source), rng
            ).ravel()
        return np.where(_missing_or_repeated(product_SK), -1, product_SK)

    def _of_sources(self, query_S: IntArray, source_SK: IntArray, rng: np.random.Generator) -> IntArray:
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


class AuctionSlates:
    """Retrieved products bid for the slots; the best by bid, estimated grade and quality are shown.

    The auction does not know the shopper, so tastes and prices are left for the click to reveal.
    """

    def __init__(self, catalog: Shelf, retrieved: ProductPools, judge: Judge) -> None:
        self._catalog, self._retrieved, self._judge = catalog, retrieved, judge
        self._log_ad_weight_P = np.log(catalog.ad_weight_P)

    def open_day(self, day: int) -> None:
        """Let in what was launched on or before `day`."""
        self._retrieved.open_day(day)

    def show(self, query_S: IntArray, rng: np.random.Generator) -> ShownAds:
        """The ads of one search for each query; a slate is short if too few products take part."""
        product_SK = self.candidates(query_S, AUCTION_PLACES, rng)
        size_S = slate_sizes(len(query_S), rng)
        grade_SK = _grades(self._judge, query_S, product_SK)
        order_SK = self.order(product_SK, grade_SK, rng)
        return _best_first(product_SK, grade_SK, order_SK, product_SK >= 0, size_S)

    def order(self, product_SK: IntArray, grade_SK: IntArray, rng: np.random.Generator) -> FloatArray:
        """Bid, what the platform believes of relevance and quality, and chance."""
        quality_SK = self._catalog.quality_P[product_SK]
        return (
            WEIGHT_FACTOR * self._log_ad_weight_P[product_SK]
            + _AUCTION_GRADE_FACTOR * (grade_SK + rng.normal(0.0, _ESTIMATE_NOISE, grade_SK.shape))
            + _AUCTION_QUALITY_FACTOR * (quality_SK + rng.normal(0.0, _ESTIMATE_NOISE, grade_SK.shape))
            + rng.gumbel(0.0, _CHANCE, grade_SK.shape)
        )

    def candidates(self, query_S: IntArray, places: int, rng: np.random.Generator) -> IntArray:
        """Products [S, places] drawn from the query's list by auction weight; -1 for one drawn twice."""
        return _drawn_from(self._retrieved, query_S, places, rng)


class ListSlates:
    """Products of the query's list by auction weight, all that are drawn being shown, relevant or not."""

    def __init__(self, catalog: Shelf, listed: ProductPools, judge: Judge) -> None:
        self._listed, self._judge = listed, judge
        self._log_ad_weight_P = np.log(catalog.ad_weight_P)

    def open_day(self, day: int) -> None:
        """Let in what was launched on or before `day`."""
        self._listed.open_day(day)

    def show(self, query_S: IntArray, rng: np.random.Generator) -> ShownAds:
        """The ads of one search for each query; a slate is short if its list is."""
        product_SK = self.candidates(query_S, AUCTION_PLACES, rng)
        size_S = slate_sizes(len(query_S), rng)
        different_SK = product_SK >= 0
        usable_SK = different_SK & (np.cumsum(different_SK, axis=1) <= size_S[:, None])
        grade_SK = _grades(self._judge, query_S, product_SK)
        return _best_first(product_SK, grade_SK, self.order(product_SK, grade_SK, rng), usable_SK, size_S)

    def order(self, product_SK: IntArray, grade_SK: IntArray, rng: np.random.Generator) -> FloatArray:
        """Bid, what the platform believes of the relevance, and chance."""
        return _weight_and_grade(self._log_ad_weight_P[product_SK], grade_SK, rng)

    def candidates(self, query_S: IntArray, places: int, rng: np.random.Generator) -> IntArray:
        """Products [S, places] drawn from the query's list by auction weight; -1 for one drawn twice."""
        return _drawn_from(self._listed, query_S, places, rng)


def slate_sizes(searches: int, rng: np.random.Generator) -> IntArray:
    """How many ads each search has room for."""
    return rng.choice(SLOTS, searches, p=SLATE_SIZES) + 1


def _drawn_from(listed: ProductPools, query_S: IntArray, places: int, rng: np.random.Generator) -> IntArray:
    query_SK = np.repeat(query_S[:, None], places, axis=1)
    product_SK = listed.draw(query_SK.ravel(), rng).reshape(query_SK.shape).astype(np.int64)
    return np.where(_missing_or_repeated(product_SK), -1, product_SK)


def _weight_and_grade(
    log_ad_weight_SK: FloatArray, grade_SK: IntArray, rng: np.random.Generator
) -> FloatArray:
    """What orders ads that are all shown: bid, what the platform believes of the relevance, and chance."""
    return (
        WEIGHT_FACTOR * log_ad_weight_SK
        + _GRADE_FACTOR * (grade_SK + rng.normal(0.0, _ESTIMATE_NOISE, grade_SK.shape))
        + rng.gumbel(0.0, _CHANCE, grade_SK.shape)
    )


def _grades(judge: Judge, query_S: IntArray, product_SK: IntArray) -> IntArray:
    query_SK = np.broadcast_to(query_S[:, None], product_SK.shape)
    return judge.grades(query_SK.ravel(), product_SK.ravel()).reshape(product_SK.shape)


def _best_first(
    product_SK: IntArray, grade_SK: IntArray, score_SK: FloatArray, usable_SK: BoolArray, size_S: IntArray
) -> ShownAds:
    """The usable candidates by score, at most `size_S` of each search."""
    order_SK = np.argsort(-np.where(usable_SK, score_SK, -np.inf), axis=1, kind="stable")
    shown_SK = np.take_along_axis(usable_SK, order_SK, axis=1)
    shown_SK &= np.arange(shown_SK.shape[1]) < size_S[:, None]
    search_N, slot_N = np.nonzero(shown_SK)
    return ShownAds(
        search_N=search_N,
        product_N=np.take_along_axis(product_SK, order_SK, axis=1)[shown_SK],
        grade_N=np.take_along_axis(grade_SK, order_SK, axis=1)[shown_SK],
        position_N=(slot_N + 1).astype(np.int8),
    )


def _missing_or_repeated(product_SK: IntArray) -> BoolArray:
    """Candidates that are none (-1), or that an earlier place of the search has."""
    repeated_SK = product_SK < 0
    for slot in range(1, product_SK.shape[1]):
        repeated_SK[:, slot] |= (product_SK[:, :slot] == product_SK[:, slot : slot + 1]).any(axis=1)
    return repeated_SK
