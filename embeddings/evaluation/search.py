"""The products nearest to queries, the same on every machine.

Shapes: N products, Q queries, K places, J judged pairs, C candidates, D embedding width.
"""

import numpy as np
import numpy.typing as npt

from embeddings.evaluation.judgements import FloatArray, Judgements

#: Scores are rounded to multiples of 1e-9, in units of the lengths of both vectors (to the nearest power of
#: two); then equal ones are a tie, and the lower row comes first.
_TIE_DECIMALS = 9
#: faiss adds up in float32: scores of unit vectors that differ by less may be in the wrong order.
_FLOAT32_SLACK = 1e-5
_SPARE_CANDIDATES = 16
#: Numbers gathered at a time when candidates are scored again in float64 (8 bytes each).
_BLOCK_NUMBERS = 8_000_000


def search(products_ND: FloatArray, queries_QD: FloatArray, k: int) -> npt.NDArray[np.int64]:
    """Rows [Q, min(k, N)] of the products with the largest inner product, best first.

    Equal scores come in order of rows, whatever the machine: the candidates of faiss are scored again in
    float64, and all products where float32 cannot tell who is among the first k. A product without a vector
    (all zeros) ranks after all others, in order of rows; a query without one gets the first products.

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
    # The length of a query does not change what is nearest to it.
    queries_QD, _ = _near_unit_length(queries_QD)
    found_QK = _search_vectors(*_near_unit_length(products_ND[with_N]), queries_QD, min(k, len(with_N)))
    rows_QK = with_N[found_QK]
    padding = without_N[: max(0, min(k, len(products_ND)) - rows_QK.shape[1])]
    return np.hstack([rows_QK, np.broadcast_to(padding, (len(queries_QD), len(padding)))])


def _near_unit_length(vectors_ND: FloatArray) -> tuple[FloatArray, npt.NDArray[np.int32]]:
    """Vectors times a power of two, which changes no digit, so that lengths are near 1; and its exponent.

    As float32 or float64. Multiply by 2 to the exponent to get the vectors back.
    """
    dtype = np.float64 if vectors_ND.dtype == np.float64 else np.float32
    vectors_ND = np.ascontiguousarray(vectors_ND, dtype)
    # The largest coordinate first: squares of very small or large ones would leave the float range.
    exponent_N = np.frexp(np.abs(vectors_ND).max(axis=1, initial=0))[1]
    length_N = np.linalg.norm(np.ldexp(vectors_ND, -exponent_N[:, None]), axis=1)
    exponent_N = exponent_N + np.rint(np.log2(np.where(length_N > 0, length_N, 1))).astype(np.int32)
    return np.ldexp(vectors_ND, -exponent_N[:, None]), exponent_N


def _search_vectors(
    products_ND: FloatArray, exponent_N: npt.NDArray[np.int32], queries_QD: FloatArray, k: int
) -> npt.NDArray[np.int64]:
    """Rows [Q, k] of the products, of which each counts times 2 to its exponent."""
    if not k or not len(queries_QD):
        return np.zeros((len(queries_QD), k), np.int64)
    import faiss

    count, dim = products_ND.shape
    exponent_N = exponent_N - exponent_N.max()  # of the longest: none overflows
    wanted = min(k + _SPARE_CANDIDATES, count)
    index = faiss.IndexFlatIP(dim)
    index.add(np.ldexp(products_ND, exponent_N[:, None]).astype(np.float32, copy=False))
    score_QC, row_QC = index.search(queries_QD.astype(np.float32, copy=False), wanted)
    rows_QK = np.empty((len(queries_QD), k), np.int64)
    unsure_Q = np.zeros(len(queries_QD), bool)
    largest = float(np.ldexp(np.linalg.norm(products_ND, axis=1), exponent_N).max())
    step = max(1, _BLOCK_NUMBERS // (wanted * dim))
    for start in range(0, len(queries_QD), step):
        block = slice(start, start + step)
        exact_BC = _float64_products("bcd,bd->bc", products_ND[row_QC[block]], queries_QD[block])
        exact_BC = np.ldexp(exact_BC, exponent_N[row_QC[block]])
        order_BK = np.lexsort((row_QC[block], -exact_BC), axis=1)[:, :k]
        rows_QK[block] = np.take_along_axis(row_QC[block], order_BK, axis=1)
        if wanted < count:
            kth_B = np.take_along_axis(exact_BC, order_BK[:, -1:], axis=1)[:, 0]
            slack_B = _FLOAT32_SLACK * largest * np.linalg.norm(queries_QD[block], axis=1)
            unsure_Q[block] = kth_B - score_QC[block].min(axis=1) <= slack_B
    for query in np.flatnonzero(unsure_Q):
        exact_N = np.ldexp(_float64_products("nd,d->n", products_ND, queries_QD[query]), exponent_N)
        rows_QK[query] = top_rows(exact_N, k)
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
    products_ND, exponent_N = _near_unit_length(products_ND)
    queries_QD, exponent_Q = _near_unit_length(queries_QD)
    step = max(1, _BLOCK_NUMBERS // products_ND.shape[1])
    for start in range(0, len(score_J), step):
        block = slice(start, start + step)
        product_B, query_B = judgements.product_J[block], query_J[block]
        score_B = _float64_products("bd,bd->b", products_ND[product_B], queries_QD[query_B])
        score_B = np.ldexp(score_B, exponent_N[product_B] + exponent_Q[query_B])
        score_J[block] = np.where(has_vector_N[product_B], score_B, -np.inf)
    return score_J
