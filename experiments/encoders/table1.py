"""Table 1: how well rows (random, BM25, LSA, encoders) retrieve products, and `table1.json`.

Metrics and their meaning: `embeddings.evaluation.retrieval.retrieval_metrics`. Intervals are over queries,
those of one intent drawn together where it is known.

Shapes: P products, Q queries, K places.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from embeddings.evaluation.judgements import BoolArray, IntArray, Judgements
from embeddings.evaluation.retrieval import (
    METRICS,
    POOLS,
    Estimate,
    Pool,
    best_ranking,
    bootstrap,
    paired_differences,
    rank_judged,
    retrieval_metrics,
)
from experiments.encoders.retrieval_rows import Missing, TableRow
from experiments.statistics.cells import OptionalIntervals
from experiments.statistics.intervals import Interval
from features.artifacts import ResultFile
from features.progress import Progress, silent

PerQuery = dict[str, npt.NDArray[np.float64]]

#: What no slice may be called.
ALL = "all"


class SliceResult(ResultFile):
    """One set of queries against one catalogue; metrics are named as by `metric_key`."""

    queries: int
    products: int
    #: By metric, the same for every row: what a query has to find does not depend on who searches.
    queries_with_value: dict[str, int] = Field(default_factory=dict)
    rows: dict[str, OptionalIntervals]
    #: The candidate minus each other row.
    differences: dict[str, OptionalIntervals] = Field(default_factory=dict)
    #: What the best possible order reaches: recall is limited by K where a query has more HR products.
    best_possible: dict[str, float | None] = Field(default_factory=dict)


class _Setting(ResultFile):
    simulated: bool
    title: str = "Table 1: retrieval"
    description: str = ""
    k: int
    pool: Pool
    candidate: str


class Table1(SliceResult, _Setting):
    """`table1.json`: the table over all queries, then the same for each slice.

    A metric without a value (no query of the slice has an HR product) is null, and so are its limits.
    """

    slices: dict[str, SliceResult] = Field(default_factory=dict)
    missing: dict[str, Missing] = Field(default_factory=dict)
    bootstrap_resamples: int = 0
    #: What resamples draw whole.
    drawn: Literal["queries", "intents"] = "queries"
    created: str | None = None
    command: str | None = None
    environment: dict[str, Any] = Field(default_factory=dict)


def evaluate_rows(
    rows: Mapping[str, TableRow],
    judgements: Judgements,
    *,
    simulated: bool,
    description: str,
    title: str = "Table 1: retrieval",
    k: int = 10,
    pool: Pool = "catalogue",
    candidate: str = "dashclip",
    query_slices: Mapping[str, BoolArray] | None = None,
    product_slices: Mapping[str, BoolArray] | None = None,
    intents_Q: IntArray | None = None,
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
) -> Table1:
    """Rank with each row and measure all queries, then slices of queries, then slices of products.

    A slice of queries reuses the rankings. A slice of products is another catalogue: only the masked
    products compete and count, so its numbers compare between rows, not with those of the whole catalogue.
    Empty slices are left out. Differences exist when `candidate` is one of the rows.

    Args:
        intents_Q: numbers; queries of one are drawn together for the intervals.

    Raises:
        ValueError: there is no query, a mask has the wrong length, a slice is named "all" or twice, or the
            pool does not suit the judgements.
    """
    query_slices, product_slices = query_slices or {}, product_slices or {}
    _check(judgements, pool, query_slices, product_slices)

    def measure(graded: Judgements) -> dict[str, PerQuery]:
        found = {}
        for done, (name, row) in enumerate(rows.items()):
            progress(f"rank with {name}", done, len(rows))
            ranked_QK = (
                row.ranking(graded, k)
                if pool == "catalogue"
                else rank_judged(row.pair_scores(graded), graded, k)
            )
            found[name] = retrieval_metrics(ranked_QK, graded, k)
        return found

    def summarise(
        graded: Judgements, measured: dict[str, PerQuery], groups_Q: IntArray | None
    ) -> SliceResult:
        others = [name for name in measured if name != candidate] if candidate in measured else []
        draw = partial(bootstrap, n=resamples, seed=seed, groups_Q=groups_Q)
        best = draw(retrieval_metrics(best_ranking(graded, k), graded, k))
        return SliceResult(
            queries=len(graded),
            products=len(graded.products),
            queries_with_value={metric_key(metric, k): found.queries for metric, found in best.items()},
            rows={name: _intervals(draw(values), k) for name, values in measured.items()},
            differences={
                name: _intervals(
                    paired_differences(
                        measured[candidate], measured[name], n=resamples, seed=seed, groups_Q=groups_Q
                    ),
                    k,
                )
                for name in others
            },
            best_possible={metric_key(metric, k): found.mean for metric, found in best.items()},
        )

    everything = measure(judgements)
    slices: dict[str, SliceResult] = {}
    for name, mask_Q in query_slices.items():
        if mask_Q.any():
            part = {
                row: {metric: values_Q[mask_Q] for metric, values_Q in values.items()}
                for row, values in everything.items()
            }
            slices[name] = summarise(
                judgements.select_queries(mask_Q), part, None if intents_Q is None else intents_Q[mask_Q]
            )
    for name, mask_P in product_slices.items():
        if mask_P.any():
            fewer = judgements.select_products(mask_P)
            slices[name] = summarise(fewer, measure(fewer), intents_Q)
    progress("done", len(rows), len(rows))
    return Table1(
        k=k,
        pool=pool,
        candidate=candidate,
        simulated=simulated,
        title=title,
        description=description,
        **dict(summarise(judgements, everything, intents_Q)),
        slices=slices,
        missing={name: row.missing(judgements) for name, row in rows.items()},
        bootstrap_resamples=resamples,
        drawn="queries" if intents_Q is None else "intents",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def metric_key(metric: str, k: int) -> str:
    """Name of a metric in `table1.json`: "recall" at 10 is "recall_at_10", "mrr" stays "mrr"."""
    return metric if metric in ("graded_rel", "mrr") else f"{metric}_at_{k}"


def _intervals(estimates: Mapping[str, Estimate], k: int) -> dict[str, Interval | None]:
    return {
        metric_key(metric, k): None if found.mean is None else Interval(found.mean, found.low, found.high)
        for metric in METRICS
        for found in (estimates[metric],)
    }


def _check(
    judgements: Judgements,
    pool: Pool,
    query_slices: Mapping[str, BoolArray],
    product_slices: Mapping[str, BoolArray],
) -> None:
    if not len(judgements):
        raise ValueError("table 1 needs at least one query with judgements")
    if pool not in POOLS:
        raise ValueError(f"pool must be one of {', '.join(POOLS)}, got {pool!r}")
    if pool == "judged" and judgements.complete:
        raise ValueError("complete judgements grade the whole catalogue; use the pool 'catalogue'")
    titles = [ALL, *query_slices, *product_slices]
    if len(set(titles)) < len(titles):
        raise ValueError(f"slices must have different names, none of them {ALL!r}; got {titles[1:]}")
    for kind, masks, size in (
        ("queries", query_slices, len(judgements)),
        ("products", product_slices, len(judgements.products)),
    ):
        for title, mask in masks.items():
            if mask.shape != (size,) or mask.dtype != bool:
                raise ValueError(
                    f"the slice {title!r} must be a boolean mask over the {size:,} {kind}, "
                    f"got {mask.dtype} of shape {mask.shape}"
                )
