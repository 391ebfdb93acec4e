"""True grades of (query, product), and two kinds of graders who get some of them wrong.

Shapes: N pairs, P products, Q queries.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from experiments.marketplace.config import MarketplaceConfig
from experiments.marketplace.world.catalog import BoolArray, Catalog, IntArray
from experiments.marketplace.world.pools import ProductPools, any_of
from experiments.marketplace.world.queries import NONE, SUBSTITUTE, WANTED, Queries

#: Shares of true grades 0, 1, 2 among the labelled pairs; those of the paper (section 3.2.1).
GRADE_SHARES = (0.69, 0.21, 0.10)
HUMAN_ERROR_RATE = 0.06
LLM_ERROR_RATE = 0.04
#: A language model that only reads the title takes a substitute for what was asked for, this often.
LLM_OVERRATES_SUBSTITUTE = 0.08


def count_facets(
    queries: Queries, catalog: Catalog, query_N: IntArray, product_N: IntArray, *, titles_only: bool = False
) -> tuple[IntArray, IntArray]:
    """How many facets the query states, and how many of them the product has.

    With `titles_only`, a fact that the title does not say counts as one that the product lacks.
    """
    brand_N, variety_N = queries.brand_Q[query_N], queries.variety_Q[query_N]
    flags_N = queries.flags_Q[query_N]
    has_flags_N = catalog.title_flags_P[product_N] if titles_only else catalog.flags_P[product_N]
    brand_found_N: BoolArray = (brand_N != NONE) & (catalog.brand_P[product_N] == brand_N)
    variety_found_N: BoolArray = (variety_N != NONE) & (catalog.variety_P[product_N] == variety_N)
    if titles_only:
        brand_found_N &= catalog.title_shows_brand_P[product_N]
        variety_found_N &= catalog.title_shows_variety_P[product_N]
    flag_found_N = (flags_N != 0) & ((has_flags_N & flags_N) == flags_N)
    stated_N = (brand_N != NONE).astype(np.int8) + (variety_N != NONE) + (flags_N != 0)
    found_N = brand_found_N.astype(np.int8) + variety_found_N + flag_found_N
    return stated_N, found_N


def true_grades(
    queries: Queries, catalog: Catalog, query_N: IntArray, product_N: IntArray, *, titles_only: bool = False
) -> IntArray:
    """2: a wanted type with every stated facet. 1: a wanted type that lacks one, or a substitute. 0: else."""
    role_N = queries.role_QT[query_N, catalog.type_P[product_N]]
    stated_N, found_N = count_facets(queries, catalog, query_N, product_N, titles_only=titles_only)
    complete_N = (role_N == WANTED) & (stated_N == found_N)
    return np.where(complete_N, 2, np.where(role_N >= SUBSTITUTE, 1, 0)).astype(np.int8)


class Judge(Protocol):
    """Knows how relevant products are to queries; what a click depends on, whatever a grader says."""

    def grades(self, query_N: IntArray, product_N: IntArray) -> IntArray:
        """0 irrelevant, 1 moderate, 2 high; anything where there is no product (-1)."""

    def facets_found(self, query_N: IntArray, product_N: IntArray) -> IntArray:
        """How many of the facets that the query states the product has."""


@dataclass(frozen=True)
class FactsJudge:
    """The judge of an invented shop, who knows the facts of its products and queries."""

    queries: Queries
    catalog: Catalog

    def grades(self, query_N: IntArray, product_N: IntArray) -> IntArray:
        """By `true_grades`."""
        return true_grades(self.queries, self.catalog, query_N, product_N)

    def facets_found(self, query_N: IntArray, product_N: IntArray) -> IntArray:
        """By `count_facets`."""
        return count_facets(self.queries, self.catalog, query_N, product_N)[1]


@dataclass(frozen=True)
class Labels:
    """N different pairs with their truth, and L labels of them; `pair_L` is the pair that a label is of."""

    query_N: IntArray
    product_N: IntArray
    true_grade_N: IntArray
    pair_L: IntArray
    grade_L: IntArray
    by_human_L: BoolArray


def label_pairs(
    config: MarketplaceConfig,
    catalog: Catalog,
    queries: Queries,
    matches: ProductPools,
    seed: np.random.SeedSequence,
) -> Labels:
    """Pairs in the shares of `GRADE_SHARES` (fewer where the catalogue is too small), labelled with noise.

    Half of the pairs that people grade are graded by the language model too. Queries are drawn by the root
    of their traffic, so that the tail is covered. `matches` has one list per query: products of grade 2.
    """
    rng = np.random.default_rng(seed)
    matches.open_day(config.days)
    wanted = config.llm_labels + config.human_labels - config.human_labels // 2
    traffic_Q = np.sqrt(queries.traffic_Q)
    chances_Q = np.cumsum(traffic_Q) / traffic_Q.sum()
    num_products = catalog.num_products
    keys = np.zeros(0, np.int64)
    for grade, share in enumerate(GRADE_SHARES):
        target, found = round(share * wanted), np.zeros(0, np.int64)
        for _ in range(12):  # a tiny catalogue may not hold enough pairs of a grade
            draws = 3 * target
            query_N = np.minimum(np.searchsorted(chances_Q, rng.random(draws)), queries.num_queries - 1)
            product_N = _candidates(grade, catalog, queries, matches, query_N, rng)
            right_N = product_N >= 0
            query_N, product_N = query_N[right_N], product_N[right_N]
            right_N = true_grades(queries, catalog, query_N, product_N) == grade
            found = np.union1d(found, query_N[right_N].astype(np.int64) * num_products + product_N[right_N])
            if len(found) >= target:
                break
        keys = np.concatenate([keys, rng.permutation(found)[:target]])
    keys = rng.permutation(keys)
    query_N, product_N = keys // num_products, keys % num_products
    truth_N = true_grades(queries, catalog, query_N, product_N)
    by_people = max(1, round(config.human_labels / wanted * len(keys)))
    human_L = human_grades(truth_N[:by_people], rng)
    llm_N = llm_grades(
        truth_N,
        true_grades(queries, catalog, query_N, product_N, titles_only=True),
        queries.role_QT[query_N, catalog.type_P[product_N]] == SUBSTITUTE,
        rng,
    )
    first_by_llm = by_people // 2
    pair_L = np.concatenate([np.arange(by_people), np.arange(first_by_llm, len(keys))])
    order_L = rng.permutation(len(pair_L))
    return Labels(
        query_N=query_N,
        product_N=product_N,
        true_grade_N=truth_N,
        pair_L=pair_L[order_L],
        grade_L=np.concatenate([human_L, llm_N[first_by_llm:]])[order_L].astype(np.int8),
        by_human_L=order_L < by_people,
    )


def human_grades(truth_N: IntArray, rng: np.random.Generator) -> IntArray:
    """People see the package too: the truth, one step off in `HUMAN_ERROR_RATE` of the pairs."""
    return _one_step_off(truth_N, rng.random(len(truth_N)) < HUMAN_ERROR_RATE, rng)


def llm_grades(
    truth_N: IntArray, from_title_N: IntArray, substitute_N: BoolArray, rng: np.random.Generator
) -> IntArray:
    """A language model grades what the title says: package-only facts are missed, substitutes overrated."""
    grade_N = np.minimum(truth_N, from_title_N)
    overrated_N = substitute_N & (rng.random(len(grade_N)) < LLM_OVERRATES_SUBSTITUTE)
    grade_N = np.where(overrated_N, 2, grade_N)
    return _one_step_off(grade_N, rng.random(len(grade_N)) < LLM_ERROR_RATE, rng)


def _one_step_off(grade_N: IntArray, wrong_N: BoolArray, rng: np.random.Generator) -> IntArray:
    step_N = np.where(rng.random(len(grade_N)) < 0.5, -1, 1)
    step_N = np.where(grade_N == 0, 1, np.where(grade_N == 2, -1, step_N))
    return grade_N + np.where(wrong_N, step_N, 0)


def _candidates(
    grade: int,
    catalog: Catalog,
    queries: Queries,
    matches: ProductPools,
    query_N: IntArray,
    rng: np.random.Generator,
) -> IntArray:
    """Products that often have the grade: matches, same group or aisle, or (half of grade 0) anything."""
    if grade == 2:
        return matches.draw(query_N, rng)
    order_P = np.lexsort((catalog.type_P,))
    if grade == 1:
        # One of the types that are wanted or a substitute, all equally likely, then any product of it.
        related_query, related_type = np.nonzero(queries.role_QT)
        type_N = related_type[any_of(related_query, query_N, rng)]
    else:
        type_aisle_T = np.array([kind.aisle for kind in catalog.assortment.types])
        type_N = rng.integers(0, len(type_aisle_T), len(query_N))
        same_aisle_N = rng.random(len(query_N)) < 0.4
        nearby_N = any_of(type_aisle_T, type_aisle_T[queries.anchor_Q[query_N]], rng)
        type_N = np.where(same_aisle_N, nearby_N, type_N)
    return order_P[any_of(catalog.type_P[order_P], type_N, rng)]
