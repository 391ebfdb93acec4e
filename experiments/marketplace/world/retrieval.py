"""What two noisy retrievers find for each query: the ads that may enter an auction.

The lexical retriever reads titles. It knows the synonyms of types and never errs, but misses what a title
leaves out, a spelling that nobody corrected, and queries that name no type ("movie night ideas"). The
semantic one knows roughly what a query means: it finds most of what is wanted, and some of what is near it.
Whether it finds a product for a query is drawn once, because an encoder errs the same way each time.

Shapes: Q queries, E retrieved (query, product) pairs, N products near one query.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.marketplace.world.catalog import BoolArray, Catalog, FloatArray, IntArray
from experiments.marketplace.world.graders import true_grades
from experiments.marketplace.world.pools import ProductPools
from experiments.marketplace.world.queries import KINDS, NONE, SUBSTITUTE, WANTED, Queries

#: Chance that the semantic retriever finds a product of grade 2, one of a wanted type that lacks a stated
#: facet, a substitute, and any other product of an aisle with a wanted type. It finds nothing elsewhere.
FINDS_MATCH = 0.65
FINDS_WITHOUT_FACET = 0.12
FINDS_SUBSTITUTE = 0.05
FINDS_SAME_AISLE = 0.004
#: Chance that the spelling of a misspelt query is corrected for the lexical retriever.
SPELLING_CORRECTED = 0.70
#: An ad index keeps this many products of a query at most.
MOST_RETRIEVED = 256


@dataclass(frozen=True)
class RetrievedProducts:
    """Every product that was retrieved for a query, in order of queries."""

    query_E: IntArray
    product_E: IntArray
    grade_E: IntArray
    #: Products of grade 2 in the catalogue.
    matches_Q: IntArray

    def pools(self, catalog: Catalog) -> ProductPools:
        """One list for each query, to draw from by weight in the auction."""
        return ProductPools(
            self.query_E,
            self.product_E,
            num_lists=len(self.matches_Q),
            available_from_P=catalog.available_from_P,
            weight_P=catalog.ad_weight_P,
        )

    def summary(self, queries: Queries) -> dict[str, Any]:
        """Recall, shares of grades 0, 1, 2 and size of a query's list: means over queries by traffic.

        Recall is the share of a query's products of grade 2 that its list holds; queries without such a
        product have none, and queries with an empty list no shares.
        """
        counts_Q3 = np.zeros((len(self.matches_Q), 3))
        np.add.at(counts_Q3, (self.query_E, self.grade_E), 1)
        size_Q = counts_Q3.sum(axis=1)

        def mean(value_Q: FloatArray, counted_Q: BoolArray) -> float:
            return float(np.average(value_Q[counted_Q], weights=queries.traffic_Q[counted_Q]))

        share_Q3 = counts_Q3 / np.maximum(size_Q, 1)[:, None]
        recall_Q = counts_Q3[:, 2] / np.maximum(self.matches_Q, 1)
        return {
            "recall": mean(recall_Q, self.matches_Q > 0),
            "grade_shares": [round(mean(share_Q3[:, grade], size_Q > 0), 5) for grade in range(3)],
            "products_per_query": mean(size_Q, size_Q >= 0),
            "queries_without_products": mean(size_Q == 0, size_Q >= 0),
        }


def retrieve(catalog: Catalog, queries: Queries, rng: np.random.Generator) -> RetrievedProducts:
    """Run both retrievers for every query; at most `MOST_RETRIEVED` products of each (a random choice)."""
    types = catalog.assortment.types
    by_type = [np.flatnonzero(catalog.type_P == index) for index in range(len(types))]
    aisle_T = np.array([kind.aisle for kind in types])
    products, grades, matches = [], [], []
    for query in range(queries.num_queries):
        role_T = queries.role_QT[query]
        related_N = np.concatenate([by_type[index] for index in np.flatnonzero(role_T)])
        query_N = np.full(len(related_N), query)
        grade_N = true_grades(queries, catalog, query_N, related_N)
        substitute_N = role_T[catalog.type_P[related_N]] == SUBSTITUTE
        chance_N = np.where(substitute_N, FINDS_SUBSTITUTE, FINDS_WITHOUT_FACET)
        found_N = rng.random(len(related_N)) < np.where(grade_N == 2, FINDS_MATCH, chance_N)
        spelt_wrong = KINDS[queries.kind_Q[query]] == "misspelt" and rng.random() >= SPELLING_CORRECTED
        if _names_a_product(queries, query) and not spelt_wrong:
            found_N |= true_grades(queries, catalog, query_N, related_N, titles_only=True) == 2
        near_T = (role_T == 0) & np.isin(aisle_T, aisle_T[role_T == WANTED])
        wrong = _some_of([by_type[index] for index in np.flatnonzero(near_T)], FINDS_SAME_AISLE, rng)
        product_N = np.concatenate([related_N[found_N], wrong])
        matches.append(int((grade_N == 2).sum()))
        grade_N = np.concatenate([grade_N[found_N], np.zeros(len(wrong), np.int8)])
        if len(product_N) > MOST_RETRIEVED:
            kept = np.sort(rng.choice(len(product_N), MOST_RETRIEVED, replace=False))
            product_N, grade_N = product_N[kept], grade_N[kept]
        products.append(product_N.astype(np.int32))
        grades.append(grade_N)
    sizes = [len(found) for found in products]
    return RetrievedProducts(
        query_E=np.repeat(np.arange(queries.num_queries, dtype=np.int32), sizes),
        product_E=np.concatenate(products),
        grade_E=np.concatenate(grades),
        matches_Q=np.array(matches),
    )


def _names_a_product(queries: Queries, query: int) -> bool:
    """Whether the words of a query occur in titles: those of a use case do not."""
    return bool(queries.brand_Q[query] != NONE or (queries.role_QT[query] == WANTED).sum() == 1)


def _some_of(lists: list[IntArray], chance: float, rng: np.random.Generator) -> IntArray:
    """Each product of the lists with this chance, without a draw for each of them."""
    ends = np.cumsum([len(products) for products in lists], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    chosen = np.sort(rng.choice(total, rng.binomial(total, chance), replace=False)) if total else ends
    part = np.searchsorted(ends, chosen, side="right")
    return np.array([lists[at][place - ends[at]] for at, place in zip(part, chosen, strict=True)], np.int64)
