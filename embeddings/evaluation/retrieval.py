"""Retrieval of products for queries, and how good it is (table 1; paper section 4.1).

A ranking is the K best products of each query as rows of the catalogue, best first, -1 where a pool has
fewer. Grades: 2 highly relevant (HR), 1 moderately relevant, 0 irrelevant. In the pool "catalogue" every
product competes and a product without a grade counts as grade 0; in the pool "judged" only the products
that were graded for a query compete.

Shapes: N = P products, Q queries, K places, J judged pairs, C candidates, D embedding width, R resamples,
M metrics.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.integer]
BoolArray = npt.NDArray[np.bool_]

Index = Literal["exact", "hnsw"]
Pool = Literal["catalogue", "judged"]
POOLS: tuple[Pool, ...] = ("catalogue", "judged")
METRICS = ("graded_rel", "recall", "precision", "ndcg", "mrr")

HIGHLY_RELEVANT = 2
#: Scores that round to the same multiple of 1e-9 are a tie, and the lower row comes first.
_TIE_DECIMALS = 9
#: faiss adds up in float32: scores of unit vectors that differ by less may be in the wrong order.
_FLOAT32_SLACK = 1e-5
_SPARE_CANDIDATES = 16
_HNSW_NEIGHBOURS, _HNSW_BUILD_BREADTH, _HNSW_SEARCH_BREADTH = 32, 200, 128
#: Numbers gathered at a time when candidates are scored again in float64 (8 bytes each).
_BLOCK_NUMBERS = 8_000_000


@dataclass(frozen=True, eq=False)
class Judgements:
    """Grades of (query, product) pairs: query q has the pairs `start_Q[q]` to `start_Q[q + 1]`.

    `products` are the ids of the whole catalogue; `product_J` are rows of it, ascending for each query, and
    each pair appears once. `complete` says that every pair left out is known to have grade 0.
    """

    queries: pa.Array
    products: pa.Array
    start_Q: IntArray
    product_J: IntArray
    grade_J: IntArray
    complete: bool

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def query_J(self) -> IntArray:
        """Query of each pair."""
        return np.repeat(np.arange(len(self)), np.diff(self.start_Q))

    @classmethod
    def from_pairs(
        cls,
        *,
        queries: pa.Array,
        products: pa.Array,
        query_J: IntArray,
        product_J: IntArray,
        grade_J: IntArray,
        complete: bool = False,
    ) -> Self:
        """Judgements from pairs in any order: `query_J` and `product_J` index `queries` and `products`.

        Raises:
            ValueError: an index is out of range, a grade is not 0, 1 or 2, or a pair is there twice.
        """
        query_J, product_J = np.asarray(query_J, np.int64), np.asarray(product_J, np.int64)
        grade_J = np.asarray(grade_J)
        if not len(query_J) == len(product_J) == len(grade_J):
            raise ValueError(
                "query_J, product_J and grade_J must have one entry for each pair, "
                f"got {len(query_J)}, {len(product_J)} and {len(grade_J)}"
            )
        for name, index_J, size in (
            ("query_J", query_J, len(queries)),
            ("product_J", product_J, len(products)),
        ):
            if len(index_J) and (index_J.min() < 0 or index_J.max() >= size):
                raise ValueError(
                    f"{name} must lie in 0 ... {size - 1}, got {index_J.min()} ... {index_J.max()}"
                )
        if len(grade_J) and not np.isin(grade_J, (0, 1, 2)).all():
            raise ValueError(f"grades must be 0, 1 or 2, got {np.unique(grade_J).tolist()}")
        key_J = query_J * max(len(products), 1) + product_J
        order_J = np.argsort(key_J, kind="stable")
        repeated = np.flatnonzero(np.diff(key_J[order_J]) == 0)
        if len(repeated):
            pair = order_J[repeated[0]]
            raise ValueError(
                f"each pair must have one grade, but query {queries[query_J[pair]].as_py()!r} and product "
                f"{products[product_J[pair]].as_py()!r} have several ({len(repeated):,} repetitions); "
                "settle conflicting labels first"
            )
        return cls(
            queries=queries,
            products=products,
            start_Q=np.searchsorted(query_J[order_J], np.arange(len(queries) + 1)),
            product_J=product_J[order_J].astype(np.int32),
            grade_J=grade_J[order_J].astype(np.int8),
            complete=complete,
        )

    def select_queries(self, mask_Q: BoolArray) -> Self:
        """The same judgements for the masked queries only."""
        return self._select(mask_Q, np.ones(len(self.products), bool))

    def select_products(self, mask_P: BoolArray) -> Self:
        """A smaller catalogue of the masked products only; the queries stay, some perhaps without any HR."""
        return self._select(np.ones(len(self), bool), mask_P)

    def _select(self, mask_Q: BoolArray, mask_P: BoolArray) -> Self:
        for mask, size in ((mask_Q, len(self)), (mask_P, len(self.products))):
            if mask.dtype != bool or mask.shape != (size,):
                raise ValueError(f"a mask must have {size:,} booleans, got {mask.dtype} of {mask.shape}")
        query_J = self.query_J
        kept_J = mask_Q[query_J] & mask_P[self.product_J]
        return self.from_pairs(
            queries=self.queries.filter(pa.array(mask_Q)),
            products=self.products.filter(pa.array(mask_P)),
            query_J=(np.cumsum(mask_Q) - 1)[query_J[kept_J]],
            product_J=(np.cumsum(mask_P) - 1)[self.product_J[kept_J]],
            grade_J=self.grade_J[kept_J],
            complete=self.complete,
        )

    def grades_of(self, rows_QK: IntArray) -> npt.NDArray[np.int8]:
        """Grade of each ranked product; 0 where there is none (pair not judged, or place left empty)."""
        if not len(self.product_J):
            return np.zeros(rows_QK.shape, np.int8)
        stride = len(self.products)
        key_J = self.query_J * stride + self.product_J
        key_QK = np.arange(len(self))[:, None] * stride + rows_QK
        place_QK = np.minimum(np.searchsorted(key_J, key_QK), len(key_J) - 1)
        found_QK = (key_J[place_QK] == key_QK) & (rows_QK >= 0)
        return np.where(found_QK, self.grade_J[place_QK], 0).astype(np.int8)


def search(
    products_ND: FloatArray, queries_QD: FloatArray, k: int, *, index: Index = "exact"
) -> npt.NDArray[np.int64]:
    """Rows [Q, min(k, N)] of the products with the largest inner product, best first.

    Equal scores come in order of rows, whatever the machine: the candidates of faiss are scored again in
    float64, and "exact" looks at all products where float32 cannot tell who is among the first k. A
    product without a vector (all zeros) ranks after all others, in order of rows; a query without one gets
    the first products. "hnsw" is an approximate graph search (built on one thread, so that it is the same
    each time), which may miss products.

    Raises:
        ValueError: k is less than 1, or products and queries differ in width.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if products_ND.ndim != 2 or queries_QD.ndim != 2 or products_ND.shape[1] != queries_QD.shape[1]:
        raise ValueError(
            "products and queries must be rows of the same width, "
            f"got shapes {products_ND.shape} and {queries_QD.shape}"
        )
    has_vector_N = np.any(products_ND != 0, axis=1)
    with_N, without_N = np.flatnonzero(has_vector_N), np.flatnonzero(~has_vector_N)
    found_QK = _search_vectors(
        np.ascontiguousarray(products_ND[with_N], dtype=np.float32),
        np.ascontiguousarray(queries_QD, dtype=np.float32),
        min(k, len(with_N)),
        index,
    )
    rows_QK = with_N[found_QK]
    padding = without_N[: max(0, min(k, len(products_ND)) - rows_QK.shape[1])]
    return np.hstack([rows_QK, np.broadcast_to(padding, (len(queries_QD), len(padding)))])


def _search_vectors(
    products_ND: npt.NDArray[np.float32], queries_QD: npt.NDArray[np.float32], k: int, index: Index
) -> npt.NDArray[np.int64]:
    if not k or not len(queries_QD):
        return np.zeros((len(queries_QD), k), np.int64)
    import faiss

    count, dim = products_ND.shape
    wanted = min(k + _SPARE_CANDIDATES, count)
    if index == "exact":
        flat = faiss.IndexFlatIP(dim)
        flat.add(products_ND)
        score_QC, row_QC = flat.search(queries_QD, wanted)
    elif index == "hnsw":
        graph = faiss.IndexHNSWFlat(dim, _HNSW_NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = _HNSW_BUILD_BREADTH
        graph.hnsw.efSearch = max(_HNSW_SEARCH_BREADTH, 2 * wanted)
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            graph.add(products_ND)
        finally:
            faiss.omp_set_num_threads(threads)
        score_QC, row_QC = graph.search(queries_QD, wanted)
    else:
        raise ValueError(f"index must be 'exact' or 'hnsw', got {index!r}")
    rows_QK = np.empty((len(queries_QD), k), np.int64)
    # Where the graph fell apart (many equal vectors) it returns fewer than wanted, marked -1.
    unsure_Q = np.asarray((row_QC < 0).any(axis=1))
    largest = float(np.linalg.norm(products_ND, axis=1).max())
    step = max(1, _BLOCK_NUMBERS // (wanted * dim))
    for start in range(0, len(queries_QD), step):
        block = slice(start, start + step)
        exact_BC = _float64_products("bcd,bd->bc", products_ND[row_QC[block]], queries_QD[block])
        order_BK = np.lexsort((row_QC[block], -exact_BC), axis=1)[:, :k]
        rows_QK[block] = np.take_along_axis(row_QC[block], order_BK, axis=1)
        if index == "exact" and wanted < count:
            kth_B = np.take_along_axis(exact_BC, order_BK[:, -1:], axis=1)[:, 0]
            slack_B = _FLOAT32_SLACK * largest * np.linalg.norm(queries_QD[block], axis=1)
            unsure_Q[block] |= kth_B - score_QC[block].min(axis=1) <= slack_B
    for query in np.flatnonzero(unsure_Q):
        rows_QK[query] = top_rows(_float64_products("nd,d->n", products_ND, queries_QD[query]), k)
    return rows_QK


def _float64_products(subscripts: str, left: FloatArray, right: FloatArray) -> npt.NDArray[np.float64]:
    return np.einsum(subscripts, left, right, dtype=np.float64, casting="safe").round(_TIE_DECIMALS)


def top_rows(scores_N: FloatArray, k: int) -> npt.NDArray[np.int64]:
    """Rows of the min(k, N) largest scores, best first; of equal scores the lower row comes first."""
    if k >= len(scores_N):
        return np.argsort(-scores_N, kind="stable")
    threshold = np.partition(scores_N, len(scores_N) - k)[len(scores_N) - k]
    candidates = np.flatnonzero(scores_N >= threshold)
    return candidates[np.argsort(-scores_N[candidates], kind="stable")][:k]


def pair_scores(
    products_ND: FloatArray, queries_QD: FloatArray, judgements: Judgements
) -> npt.NDArray[np.float64]:
    """Inner product of each judged pair, in float64; minus infinity where the product has no vector."""
    score_J = np.empty(len(judgements.product_J))
    query_J = judgements.query_J
    has_vector_N = np.any(products_ND != 0, axis=1)
    step = max(1, _BLOCK_NUMBERS // products_ND.shape[1])
    for start in range(0, len(score_J), step):
        block = slice(start, start + step)
        product_B = judgements.product_J[block]
        score_B = _float64_products("bd,bd->b", products_ND[product_B], queries_QD[query_J[block]])
        score_J[block] = np.where(has_vector_N[product_B], score_B, -np.inf)
    return score_J


def rank_judged(score_J: FloatArray, judgements: Judgements, k: int) -> npt.NDArray[np.int64]:
    """Rows [Q, K] of the best judged products of each query, -1 where fewer than k were judged.

    Equal scores come in order of rows.

    Raises:
        ValueError: the judgements are complete, so the products left out were judged as well.
    """
    if judgements.complete:
        raise ValueError("complete judgements grade the whole catalogue; use the pool 'catalogue'")
    return _rank_pairs(score_J, judgements, k)


def best_ranking(judgements: Judgements, k: int) -> npt.NDArray[np.int64]:
    """The ranking by grade [Q, K], which no other can beat: with many HR products recall stays below 1."""
    return _rank_pairs(judgements.grade_J, judgements, k)


def _rank_pairs(score_J: FloatArray | IntArray, judgements: Judgements, k: int) -> npt.NDArray[np.int64]:
    query_J = judgements.query_J
    order_J = np.lexsort((judgements.product_J, -score_J, query_J))
    place_J = np.arange(len(order_J)) - judgements.start_Q[query_J[order_J]]
    kept_J = place_J < k
    rows_QK = np.full((len(judgements), k), -1, np.int64)
    rows_QK[query_J[order_J][kept_J], place_J[kept_J]] = judgements.product_J[order_J][kept_J]
    return rows_QK


def retrieval_metrics(
    rows_QK: IntArray, judgements: Judgements, k: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Quality of the first k places, for each query; NaN where a metric has no meaning.

    - graded_rel: mean of grade / 2 over the k places.
    - precision: share of the k places that hold an HR product.
    - recall: HR products among the k places / HR products there are. NaN for a query without any.
    - mrr: 1 / place of the first HR product, 0 if none is among the k. NaN for a query without any.
    - ndcg: sum over places i = 1 ... k of (2^grade - 1) / log2(i + 1), divided by that of the best possible
      order. NaN for a query without any product of grade 1 or 2.

    An empty place counts as grade 0, so a pool of fewer than k products lowers graded_rel and precision. The
    best possible ranking has recall min(1, k / HR) and ndcg 1.

    Raises:
        ValueError: the ranking has another number of queries.

    nDCG: Järvelin and Kekäläinen 2002, https://doi.org/10.1145/582415.582418

    >>> judgements = Judgements.from_pairs(
    ...     queries=pa.array(["milk"]),
    ...     products=pa.array(["oat milk", "bread"]),
    ...     query_J=np.array([0]),
    ...     product_J=np.array([0]),
    ...     grade_J=np.array([2]),
    ... )
    >>> found = retrieval_metrics(np.array([[1, 0]]), judgements, k=2)  # the right product is second
    >>> found["mrr"].item(), found["recall"].item(), found["precision"].item()
    (0.5, 1.0, 0.5)
    """
    if len(rows_QK) != len(judgements):
        raise ValueError(
            f"a ranking must have one row for each of the {len(judgements):,} queries, got {len(rows_QK):,}"
        )
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    grade_QK = np.zeros((len(judgements), k), np.int64)
    ranked = rows_QK[:, :k]
    grade_QK[:, : ranked.shape[1]] = judgements.grades_of(ranked)
    highly_QK = grade_QK == HIGHLY_RELEVANT
    query_J = judgements.query_J
    there_are_Q = np.bincount(query_J[judgements.grade_J == HIGHLY_RELEVANT], minlength=len(judgements))
    moderate_Q = np.bincount(query_J[judgements.grade_J == 1], minlength=len(judgements))
    has_highly_Q = there_are_Q > 0

    place_K = np.arange(k)
    best_QK = np.where(place_K < there_are_Q[:, None], 2, place_K < (there_are_Q + moderate_Q)[:, None])
    gained_Q, best_Q = (
        ((np.exp2(grades_QK) - 1) / np.log2(place_K + 2)).sum(axis=1) for grades_QK in (grade_QK, best_QK)
    )
    reciprocal_Q = np.where(highly_QK.any(axis=1), 1 / (highly_QK.argmax(axis=1) + 1), 0.0)

    nothing_Q = np.full(len(judgements), np.nan)
    return {
        "graded_rel": grade_QK.mean(axis=1) / HIGHLY_RELEVANT,
        "recall": np.divide(highly_QK.sum(axis=1), there_are_Q, out=nothing_Q.copy(), where=has_highly_Q),
        "precision": highly_QK.mean(axis=1),
        "ndcg": np.divide(gained_Q, best_Q, out=nothing_Q.copy(), where=best_Q > 0),
        "mrr": np.where(has_highly_Q, reciprocal_Q, np.nan),
    }


@dataclass(frozen=True)
class Estimate:
    """A mean over queries with its 95 % interval; all None where no query has a value."""

    mean: float | None
    low: float | None
    high: float | None
    #: Queries that have a value, and those that were left out because they have none.
    queries: int
    left_out: int

    @property
    def excludes_zero(self) -> bool:
        """Both limits lie on the same side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def bootstrap(per_query: Mapping[str, FloatArray], *, n: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """Mean of each metric over queries, with the central 95 % of n resamples of whole queries.

    All metrics see the same resamples, and so do two calls with equal seeds and numbers of queries. NaN
    values are left out and counted. A constant has an interval of width zero; fewer than two values have
    none.
    """
    if not per_query:
        return {}
    values_QM = np.stack([np.asarray(values, np.float64) for values in per_query.values()], axis=1)
    valid_QM = ~np.isnan(values_QM)
    filled_QM = np.where(valid_QM, values_QM, 0.0)
    count = len(values_QM)
    generator = np.random.default_rng(seed)
    means_RM = np.full((n, values_QM.shape[1]), np.nan)
    for resample in range(n if count else 0):
        weight_Q = np.bincount(generator.integers(0, count, count), minlength=count).astype(np.float64)
        size_M = weight_Q @ valid_QM
        np.divide(weight_Q @ filled_QM, size_M, out=means_RM[resample], where=size_M > 0)
    estimates = {}
    for column, name in enumerate(per_query):
        known = int(valid_QM[:, column].sum())
        drawn_R = means_RM[:, column]
        drawn_R = drawn_R[~np.isnan(drawn_R)]
        low, high = (
            np.quantile(drawn_R, [0.025, 0.975]).tolist() if known > 1 and len(drawn_R) else (None,) * 2
        )
        estimates[name] = Estimate(
            mean=float(filled_QM[:, column].sum() / known) if known else None,
            low=low,
            high=high,
            queries=known,
            left_out=count - known,
        )
    return estimates


def paired_differences(
    candidate: Mapping[str, FloatArray], baseline: Mapping[str, FloatArray], *, n: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Mean of candidate - baseline for the metrics of both, each query against itself.

    What makes a query hard for both cancels, so the interval is narrower than two intervals suggest.
    """
    return bootstrap(
        {name: candidate[name] - baseline[name] for name in candidate if name in baseline}, n=n, seed=seed
    )
