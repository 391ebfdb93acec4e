"""Which products of a real catalogue a search may show, with the true grade of each.

A graded product has the grade that people gave. A query with fewer graded products than a slate has places
gets ungraded ones beside them: any of its type (preset mixed), or those whose titles are nearest to it
(preset retrieval). Their grade is drawn by the likeness of query and title, once, as often as graded pairs
of that likeness have it. So of these pairs alone a lexical method knows more than it would in a real shop.

Shapes: E candidates (query, product), Q queries, P products, B bins of likeness.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from embeddings.catalog.terms import character_tfidf
from embeddings.catalog.titles import normalise_text
from experiments.marketplace.config import Candidates
from experiments.marketplace.days.slates import SLOTS
from experiments.marketplace.world.catalog import BoolArray, FloatArray, IntArray
from experiments.marketplace.world.pools import ProductPools
from experiments.marketplace.world.queries import SearchTraffic
from experiments.marketplace.world.real_catalog import RealCatalog, RealWorld
from features.progress import Progress, silent

#: Likeness is cut into so many bins, each with as many of the pairs that calibrate it.
BINS = 10
#: Products of the type that are looked at to fill a list.
_TRIES = 8 * SLOTS
_BLOCK = 256


@dataclass(frozen=True)
class CandidateGrades:
    """All that can be shown, sorted by query and product: the judge of a log on a real catalogue."""

    num_products: int
    query_E: IntArray
    product_E: IntArray
    grade_E: IntArray
    #: Whether people (or a model) graded the pair; else its grade was drawn.
    graded_E: BoolArray

    def grades(self, query_N: IntArray, product_N: IntArray) -> IntArray:
        """The grade of each pair; every pair with a product must be a candidate."""
        key_E = self.query_E.astype(np.int64) * self.num_products + self.product_E
        key_N = query_N.astype(np.int64) * self.num_products + product_N
        place_N = np.minimum(np.searchsorted(key_E, key_N), len(key_E) - 1)
        assert (key_E[place_N] == key_N)[product_N >= 0].all(), "a pair that is no candidate was to be shown"
        return self.grade_E[place_N]

    def facets_found(self, query_N: IntArray, product_N: IntArray) -> IntArray:
        """None: grades alone say what a real query asks for."""
        return np.zeros(len(query_N), np.int8)

    def pools(self, catalog: RealCatalog, queries: SearchTraffic) -> ProductPools:
        """One list for each query."""
        return ProductPools(
            self.query_E,
            self.product_E,
            num_lists=queries.num_queries,
            available_from_P=catalog.available_from_P,
            weight_P=catalog.ad_weight_P,
        )

    def summary(self, queries: SearchTraffic) -> dict[str, Any]:
        """Counts, and means over queries by traffic of the shares in a list."""
        size_Q = np.bincount(self.query_E, minlength=queries.num_queries)

        def share(chosen_E: BoolArray) -> float:
            found_Q = np.bincount(self.query_E[chosen_E], minlength=len(size_Q))
            return round(float(np.average(found_Q / np.maximum(size_Q, 1), weights=queries.traffic_Q)), 5)

        return {
            "graded_pairs": int(self.graded_E.sum()),
            "ungraded_pairs": int((~self.graded_E).sum()),
            "products_per_query": float(np.average(size_Q, weights=queries.traffic_Q)),
            "ungraded_share": share(~self.graded_E),
            "grade_shares": [share(self.grade_E == grade) for grade in range(3)],
        }


def find_candidates(
    world: RealWorld, preset: Candidates, rng: np.random.Generator, *, progress: Progress = silent
) -> CandidateGrades:
    """Every graded pair, and ungraded ones for queries with fewer than `SLOTS` of them."""
    grades, catalog = world.grades, world.catalog
    query_E, product_E = grades.query_G.astype(np.int64), grades.product_G.astype(np.int64)
    grade_E, graded_E = grades.grade_G, np.ones(len(grades), bool)
    missing_Q = SLOTS - np.bincount(query_E, minlength=world.queries.num_queries)
    if (missing_Q > 0).any():
        likeness = Likeness.of(catalog.titles, world.queries.texts)
        fill = _nearest if preset == "retrieval" else _of_type
        known = query_E * catalog.num_products + product_E
        more_query, more_product = fill(world, likeness, missing_Q, known, rng, progress)
        chances = GradeChances.fit(likeness, query_E, product_E, grade_E, rng)
        more_grade = chances.draw(likeness.cosines(more_query, more_product), rng)
        query_E, product_E = np.append(query_E, more_query), np.append(product_E, more_product)
        grade_E = np.append(grade_E, more_grade).astype(np.int8)
        graded_E = np.append(graded_E, np.zeros(len(more_query), bool))
    order = np.lexsort((product_E, query_E))
    return CandidateGrades(
        catalog.num_products, query_E[order], product_E[order], grade_E[order], graded_E[order]
    )


@dataclass(frozen=True, eq=False)
class Likeness:
    """Cosine of the character n-grams of a query and a title (TF-IDF over all titles and queries)."""

    query_QF: sp.csr_matrix
    title_PF: sp.csr_matrix

    @classmethod
    def of(cls, titles: list[str], queries: list[str]) -> "Likeness":
        """Fit on all texts; all cosines are zero if no text holds a letter or digit."""
        titles, queries = list(map(normalise_text, titles)), list(map(normalise_text, queries))
        terms = character_tfidf(titles + queries)
        if terms is None:
            return cls(sp.csr_matrix((len(queries), 1)), sp.csr_matrix((len(titles), 1)))
        return cls(terms.transform(queries), terms.transform(titles))

    def cosines(self, query_N: IntArray, product_N: IntArray) -> FloatArray:
        """Of each pair; 0 where one of the texts has no known n-gram."""
        parts = [np.zeros(0)]
        for start in range(0, len(query_N), 65_536):
            rows = slice(start, start + 65_536)
            product = self.query_QF[query_N[rows]].multiply(self.title_PF[product_N[rows]])
            parts.append(np.asarray(product.sum(axis=1), np.float64).ravel())
        return np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class GradeChances:
    """How often a pair of some likeness has each grade.

    Graded pairs were mostly found by a search engine, so a random pair of no likeness is less relevant than a
    graded one. So as many random pairs, taken as irrelevant, are counted beside them.
    """

    edges: FloatArray
    share_B3: FloatArray

    @classmethod
    def fit(
        cls,
        likeness: Likeness,
        query_G: IntArray,
        product_G: IntArray,
        grade_G: IntArray,
        rng: np.random.Generator,
    ) -> "GradeChances":
        """Count grades in bins that hold equally many of all pairs (fewer bins where cosines coincide)."""
        num_products = likeness.title_PF.shape[0]
        random_query, random_product = rng.permutation(query_G), rng.integers(0, num_products, len(query_G))
        known = query_G * np.int64(num_products) + product_G
        new = ~np.isin(random_query * np.int64(num_products) + random_product, known)
        cosine = np.append(
            likeness.cosines(query_G, product_G), likeness.cosines(random_query[new], random_product[new])
        )
        grade = np.append(grade_G, np.zeros(int(new.sum()), np.int8)).astype(np.int64)
        edges = np.unique(np.quantile(cosine, np.arange(1, BINS) / BINS))
        count_B3 = np.zeros((len(edges) + 1, 3))
        np.add.at(count_B3, (np.searchsorted(edges, cosine, side="right"), grade), 1)
        # a bin that no pair fell into has the grades of the next one with any
        filled = np.flatnonzero(count_B3.any(axis=1))
        place_B = np.minimum(np.searchsorted(filled, np.arange(len(count_B3))), len(filled) - 1)
        count_B3 = count_B3[filled[place_B]]
        return cls(edges, count_B3 / count_B3.sum(axis=1, keepdims=True))

    def draw(self, cosine_N: FloatArray, rng: np.random.Generator) -> IntArray:
        """A grade for each likeness."""
        share_N3 = self.share_B3[np.searchsorted(self.edges, cosine_N, side="right")]
        return (rng.random(len(cosine_N))[:, None] >= np.cumsum(share_N3, axis=1)[:, :2]).sum(axis=1)


Pairs = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def _of_type(
    world: RealWorld,
    likeness: Likeness,
    missing_Q: IntArray,
    known: IntArray,
    rng: np.random.Generator,
    progress: Progress,
) -> Pairs:
    """Random products of the query's type, fewer if the type is too small."""
    members_T = [np.flatnonzero(world.catalog.type_P == kind) for kind in range(world.catalog.num_types)]
    lists = []
    for query in np.flatnonzero(missing_Q > 0).tolist():
        members = members_T[world.queries.anchor_Q[query]]
        drawn = members[rng.integers(0, len(members), _TRIES)]
        lists.append((query, drawn[np.sort(np.unique(drawn, return_index=True)[1])]))
    return _first_unknown(lists, missing_Q, known, world.catalog.num_products)


def _nearest(
    world: RealWorld,
    likeness: Likeness,
    missing_Q: IntArray,
    known: IntArray,
    rng: np.random.Generator,
    progress: Progress,
) -> Pairs:
    """The products whose titles are most like the query."""
    short = np.flatnonzero(missing_Q > 0)
    most = min(2 * SLOTS, world.catalog.num_products)
    lists = []
    for start in range(0, len(short), _BLOCK):
        progress("retrieving ungraded products", start, len(short))
        queries = short[start : start + _BLOCK]
        cosine_QP = (likeness.query_QF[queries] @ likeness.title_PF.T).toarray()
        best_QK = np.argsort(-cosine_QP, axis=1, kind="stable")[:, :most]
        lists += list(zip(queries.tolist(), best_QK, strict=True))
    return _first_unknown(lists, missing_Q, known, world.catalog.num_products)


def _first_unknown(
    lists: list[tuple[int, npt.NDArray[np.int64]]], missing_Q: IntArray, known: IntArray, num_products: int
) -> Pairs:
    """Of each query's list the first products that it has no grade for, as many as are missing."""
    queries, products = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    known = np.sort(known)
    for query, listed in lists:
        keys = query * np.int64(num_products) + listed
        place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        new = listed[known[place] != keys][: missing_Q[query]]
        queries.append(np.full(len(new), query, np.int64))
        products.append(new.astype(np.int64))
    return np.concatenate(queries), np.concatenate(products)
