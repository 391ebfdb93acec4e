"""Retrieval of products for queries, and how good it is (table 1; paper section 4.1).

A ranking is the K best products of each query as rows of the catalogue, best first, -1 where a pool has
fewer. Grades: 2 highly relevant (HR), 1 moderately relevant, 0 irrelevant. In the pool "catalogue" every
product competes and a product without a grade counts as grade 0; in the pool "judged" only the products
that were graded for a query compete.

Shapes: Q queries, K places, J judged pairs, R resamples, M metrics.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from embeddings.evaluation.judgements import HIGHLY_RELEVANT, FloatArray, IntArray, Judgements

Pool = Literal["catalogue", "judged"]
POOLS: tuple[Pool, ...] = ("catalogue", "judged")
METRICS = ("graded_rel", "recall", "precision", "ndcg", "mrr")


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

    An empty place counts as grade 0, and so does a product that an earlier place holds already. A pool of
    fewer than k products therefore lowers graded_rel and precision. The best possible ranking has recall
    min(1, k / HR) and ndcg 1.

    Raises:
        ValueError: the ranking has another number of queries.

    nDCG: Järvelin and Kekäläinen 2002, https://doi.org/10.1145/582415.582418

    >>> import pyarrow as pa
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
    grade_QK[:, : ranked.shape[1]] = np.where(_repeats(ranked), 0, judgements.grades_of(ranked))
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


def _repeats(rows_QK: IntArray) -> npt.NDArray[np.bool_]:
    """Whether an earlier place of the same query holds the same product."""
    order_QK = np.argsort(rows_QK, axis=1, kind="stable")
    sorted_QK = np.take_along_axis(rows_QK, order_QK, axis=1)
    repeated_QK = np.zeros(rows_QK.shape, bool)
    np.put_along_axis(repeated_QK, order_QK[:, 1:], sorted_QK[:, 1:] == sorted_QK[:, :-1], axis=1)
    return repeated_QK


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


def bootstrap(
    per_query: Mapping[str, FloatArray],
    *,
    n: int = 1000,
    seed: int = 0,
    groups_Q: IntArray | None = None,
) -> dict[str, Estimate]:
    """Mean of each metric over queries, with the central 95 % of n resamples of whole queries.

    Queries of one number in `groups_Q` are drawn together: those that ask for the same thing find the same.

    All metrics see the same resamples, and so do two calls with equal seeds and numbers of queries. NaN
    values are left out and counted. A constant has an interval of width zero; values of fewer than two groups
    have none.
    """
    if not per_query:
        return {}
    values_QM = np.stack([np.asarray(values, np.float64) for values in per_query.values()], axis=1)
    valid_QM = ~np.isnan(values_QM)
    filled_QM = np.where(valid_QM, values_QM, 0.0)
    count = len(values_QM)
    group_Q = np.arange(count) if groups_Q is None else np.unique(groups_Q, return_inverse=True)[1]
    groups = int(group_Q.max(initial=-1)) + 1
    generator = np.random.default_rng(seed)
    means_RM = np.full((n, values_QM.shape[1]), np.nan)
    for resample in range(n if count else 0):
        drawn_G = np.bincount(generator.integers(0, groups, groups), minlength=groups)
        weight_Q = drawn_G[group_Q].astype(np.float64)
        size_M = weight_Q @ valid_QM
        np.divide(weight_Q @ filled_QM, size_M, out=means_RM[resample], where=size_M > 0)
    estimates = {}
    for column, name in enumerate(per_query):
        known = int(valid_QM[:, column].sum())
        drawn_R = means_RM[:, column]
        drawn_R = drawn_R[~np.isnan(drawn_R)]
        several = len(np.unique(group_Q[valid_QM[:, column]])) > 1
        low, high = np.quantile(drawn_R, [0.025, 0.975]).tolist() if several and len(drawn_R) else (None,) * 2
        estimates[name] = Estimate(
            mean=float(filled_QM[:, column].sum() / known) if known else None,
            low=low,
            high=high,
            queries=known,
            left_out=count - known,
        )
    return estimates


def paired_differences(
    candidate: Mapping[str, FloatArray],
    baseline: Mapping[str, FloatArray],
    *,
    n: int = 1000,
    seed: int = 0,
    groups_Q: IntArray | None = None,
) -> dict[str, Estimate]:
    """Mean of candidate - baseline for the metrics of both, each query against itself.

    What makes a query hard for both cancels, so the interval is narrower than two intervals suggest.
    """
    return bootstrap(
        {name: candidate[name] - baseline[name] for name in candidate if name in baseline},
        n=n,
        seed=seed,
        groups_Q=groups_Q,
    )
