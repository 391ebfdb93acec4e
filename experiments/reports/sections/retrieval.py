"""Table 1 on the evidence page: which products the vectors find for a query, from `table1.json`."""

from pathlib import Path

from embeddings.evaluation.retrieval import METRICS
from experiments.encoders.table1 import metric_key
from experiments.reports.page import Grid, Plot, Section, svg_source
from experiments.reports.records import RetrievalRecord, Values, read_record
from experiments.reports.sections import plots as evidence_plots
from experiments.reports.table1_text import PAPER, metric_title, row_title

FILE = "table1.json"
TITLE = "Table 1: products found for a query"
QUESTION = "Do the vectors find the right products?"
NONE = "–"


def retrieval_section(sweep: Path) -> Section | None:
    """Table 1 with a plot of all queries and one of each slice; None if it was not measured.

    Raises:
        EvidenceError: the file is broken.
    """
    path = sweep / FILE
    record = read_record(path, RetrievalRecord)
    if record is None:
        return None
    keys = {metric_key(metric, record.k): metric_title(metric, record.k) for metric in METRICS}
    pool = (
        f"the whole catalogue of {record.products:,} products"
        if record.pool == "catalogue"
        else "the products that were judged for each query"
    )
    plots = [
        Plot(
            "All queries",
            "Mean over queries with its 95 % interval over queries. Dotted: what the best possible order "
            "reaches. Each panel has its own scale.",
            svg_source(evidence_plots.retrieval(record, keys)),
        )
    ]
    if record.slices:
        plots.append(
            Plot(
                "By kind of query",
                "Graded relevance. Slices differ in difficulty: compare rows within a panel, "
                "and each with the dotted line of the best possible order.",
                svg_source(evidence_plots.retrieval_slices(record)),
            )
        )
    return Section(
        anchor="retrieval",
        title=TITLE,
        question=QUESTION,
        answer=_answer(record),
        origin=record.origin(path),
        sentences=(
            f"{record.queries:,} queries, the best {record.k} of {pool}. Graded relevance is the mean grade "
            f"of the first {record.k} places, from 0 (all irrelevant) to 1 (all highly relevant).",
        ),
        grids=(_grid(record, keys), *_paper(record)),
        plots=tuple(plots),
    )


def _answer(record: RetrievalRecord) -> str:
    """The candidate against the strongest of the others."""
    graded = {name: value for name, values in record.rows.items() if (value := values.get("graded_rel"))}
    others = {name: value for name, value in graded.items() if name != record.candidate}
    if record.candidate not in graded or not others:
        return f"{len(record.rows)} ways to order products were measured."
    rival = max(others, key=others.__getitem__)
    difference = record.differences.get(rival, {})
    low, high = difference.get("graded_rel_low"), difference.get("graded_rel_high")
    title, value = row_title(record.candidate), graded[record.candidate]
    compared = f"{value:.3f} graded relevance at {record.k} against {others[rival]:.3f} of {row_title(rival)}"
    if low is None or high is None:
        return f"{title} reaches {compared}, the best of the others."
    interval = f"difference {value - others[rival]:+.3f}, 95 % {low:+.3f} … {high:+.3f}"
    if low > 0:
        return f"Yes: {title} reaches {compared}, the best of the others ({interval})."
    if high < 0:
        return f"Not better than {row_title(rival)}: {title} reaches {compared} ({interval})."
    return f"{title} cannot be told from {row_title(rival)}: {compared} ({interval})."


def _grid(record: RetrievalRecord, keys: dict[str, str]) -> Grid:
    rows = [
        (row_title(name), *(_with_limits(values, key) for key in keys))
        for name, values in record.rows.items()
    ]
    best = ("Best possible order", *(_number(record.best_possible.get(key)) for key in keys))
    names = list(record.rows)
    place = names.index(record.candidate) if record.candidate in names else -1
    bold = frozenset((place, column) for column in range(len(keys) + 1))
    caption = "Mean over queries (95 % interval over queries"
    if record.bootstrap_resamples:
        caption += f", {record.bootstrap_resamples:,} resamples"
    return Grid(f"{caption}).", ("Row", *keys.values()), (*rows, best), bold)


def _paper(record: RetrievalRecord) -> list[Grid]:
    shown = [name for name in PAPER if name in record.rows]
    if record.candidate not in shown:
        return []
    rows = tuple((row_title(name), *(f"{value:.3f}" for value in PAPER[name])) for name in shown)
    caption = "The same rows in the paper: other products and another K, so only the order of rows compares."
    return [Grid(caption, ("Row", "Graded Rel", "Recall@K", "Precision@K"), rows)]


def _with_limits(values: Values, key: str) -> str:
    value, low, high = (values.get(name) for name in (key, f"{key}_low", f"{key}_high"))
    if value is None or low is None or high is None:
        return _number(value)
    return f"{value:.3f} ({low:.3f} … {high:.3f})"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"
