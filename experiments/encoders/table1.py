"""Table 1: how well rows (random, BM25, LSA, encoders) retrieve products, and `table1.json`.

Metrics and their meaning: `embeddings.evaluation.retrieval.retrieval_metrics`. Intervals are over queries.

Shapes: P products, Q queries, K places.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embeddings.evaluation.retrieval import (
    METRICS,
    POOLS,
    BoolArray,
    Estimate,
    Judgements,
    Pool,
    best_ranking,
    bootstrap,
    paired_differences,
    rank_judged,
    retrieval_metrics,
)
from experiments.encoders.retrieval_rows import Missing, TableRow
from features.artifacts import atomic_write_json
from features.progress import Progress, silent

PerQuery = dict[str, npt.NDArray[np.float64]]

#: Name of the slice with all queries and products.
ALL = "all"


@dataclass(frozen=True)
class SliceResult:
    """One set of queries against one catalogue: metrics by row, and the candidate minus each other row."""

    queries: int
    products: int
    rows: dict[str, dict[str, Estimate]]
    differences: dict[str, dict[str, Estimate]]
    #: What the best possible order reaches: recall is limited by K where a query has more HR products.
    best_possible: dict[str, Estimate]


@dataclass(frozen=True)
class Table1:
    """Everything measured; `slices["all"]` is the table proper."""

    k: int
    pool: Pool
    candidate: str
    simulated: bool
    description: str
    slices: dict[str, SliceResult]
    missing: dict[str, Missing]
    resamples: int
    created: datetime


def evaluate_rows(
    rows: Mapping[str, TableRow],
    judgements: Judgements,
    *,
    simulated: bool,
    description: str,
    k: int = 10,
    pool: Pool = "catalogue",
    candidate: str = "dashclip",
    query_slices: Mapping[str, BoolArray] | None = None,
    product_slices: Mapping[str, BoolArray] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
) -> Table1:
    """Rank with each row and measure all queries, then slices of queries, then slices of products.

    A slice of queries reuses the rankings. A slice of products is another catalogue: only the masked
    products compete and count, so its numbers compare between rows, not with those of the whole catalogue.
    Empty slices are left out. Differences exist when `candidate` is one of the rows.

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

    def summarise(graded: Judgements, measured: dict[str, PerQuery]) -> SliceResult:
        others = [name for name in measured if name != candidate] if candidate in measured else []
        return SliceResult(
            queries=len(graded),
            products=len(graded.products),
            rows={name: bootstrap(values, n=resamples, seed=seed) for name, values in measured.items()},
            differences={
                name: paired_differences(measured[candidate], measured[name], n=resamples, seed=seed)
                for name in others
            },
            best_possible=bootstrap(
                retrieval_metrics(best_ranking(graded, k), graded, k), n=resamples, seed=seed
            ),
        )

    everything = measure(judgements)
    slices = {ALL: summarise(judgements, everything)}
    for title, mask_Q in query_slices.items():
        if mask_Q.any():
            part = {
                name: {metric: values_Q[mask_Q] for metric, values_Q in values.items()}
                for name, values in everything.items()
            }
            slices[title] = summarise(judgements.select_queries(mask_Q), part)
    for title, mask_P in product_slices.items():
        if mask_P.any():
            fewer = judgements.select_products(mask_P)
            slices[title] = summarise(fewer, measure(fewer))
    progress("done", len(rows), len(rows))
    return Table1(
        k=k,
        pool=pool,
        candidate=candidate,
        simulated=simulated,
        description=description,
        slices=slices,
        missing={name: row.missing(judgements) for name, row in rows.items()},
        resamples=resamples,
        created=datetime.now(UTC),
    )


def write_table1(table: Table1, path: Path) -> None:
    """Write `table1.json`; an older file is replaced only once the new one is complete."""
    atomic_write_json(path, to_json(table))


def to_json(table: Table1) -> dict[str, Any]:
    """The content of `table1.json`: `rows` of all queries first, the same for each slice further down.

    A metric without a value (no query of the slice has an HR product) is null, and so are its limits.
    """
    return {
        "simulated": table.simulated,
        "description": table.description,
        "k": table.k,
        "pool": table.pool,
        "candidate": table.candidate,
        **_slice_json(table.slices[ALL], table.k),
        "slices": {
            title: _slice_json(found, table.k) for title, found in table.slices.items() if title != ALL
        },
        "missing": {
            name: {"products": missing.products, "queries": missing.queries}
            for name, missing in table.missing.items()
        },
        "bootstrap_resamples": table.resamples,
        "created": table.created.isoformat(timespec="seconds"),
    }


def metric_key(metric: str, k: int) -> str:
    """Name of a metric in `table1.json`: "recall" at 10 is "recall_at_10", "mrr" stays "mrr"."""
    return metric if metric in ("graded_rel", "mrr") else f"{metric}_at_{k}"


def _slice_json(found: SliceResult, k: int) -> dict[str, Any]:
    return {
        "queries": found.queries,
        "products": found.products,
        # The same for every row: what a query has to find does not depend on who searches.
        "queries_with_value": {
            metric_key(metric, k): estimate.queries for metric, estimate in found.best_possible.items()
        },
        "rows": {name: _estimates_json(estimates, k) for name, estimates in found.rows.items()},
        "differences": {name: _estimates_json(estimates, k) for name, estimates in found.differences.items()},
        "best_possible": {
            metric_key(metric, k): estimate.mean for metric, estimate in found.best_possible.items()
        },
    }


def _estimates_json(estimates: dict[str, Estimate], k: int) -> dict[str, float | None]:
    content: dict[str, float | None] = {}
    for metric in METRICS:
        key, estimate = metric_key(metric, k), estimates[metric]
        content |= {key: estimate.mean, f"{key}_low": estimate.low, f"{key}_high": estimate.high}
    return content


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
