"""Table 1 as text: Markdown and a terminal table."""

from rich import box
from rich.markup import escape
from rich.table import Table

from embeddings.evaluation.retrieval import METRICS, Estimate
from experiments.encoders.table1 import ALL, SliceResult, Table1

_TITLES = {
    "random": "Random",
    "bm25": "BM25",
    "lsa": "LSA",
    "clip_text": "CLIP (text)",
    "clip_image": "CLIP (image)",
    "blip_text": "BLIP (text)",
    "blip_image": "BLIP (image)",
    "flava_text": "FLAVA (text)",
    "flava_image": "FLAVA (image)",
    "stage1": "Stage 1 only",
    "dashclip": "DashCLIP",
}
#: Table 1 of the paper (Graded Rel, Recall@K, Precision@K). Other data and another K: only the order of rows
#: compares.
PAPER = {
    "random": (0.102, 0.194, 0.027),
    "clip_text": (0.346, 0.530, 0.164),
    "clip_image": (0.529, 0.666, 0.325),
    "blip_text": (0.328, 0.457, 0.190),
    "blip_image": (0.316, 0.468, 0.178),
    "flava_text": (0.276, 0.446, 0.137),
    "flava_image": (0.393, 0.562, 0.230),
    "dashclip": (0.667, 0.743, 0.515),
}
NONE = "–"


def row_title(name: str) -> str:
    """A readable title: `clip_text` is "CLIP (text)"; an unknown name has its underscores opened."""
    return _TITLES.get(name, name.replace("_", " "))


def metric_title(metric: str, k: int) -> str:
    """Column heading: "recall" at 10 is "Recall@10"."""
    titles = {"graded_rel": "Graded Rel", "mrr": f"MRR@{k}", "ndcg": f"nDCG@{k}"}
    return titles.get(metric, f"{metric.title()}@{k}")


def to_markdown(table: Table1) -> str:
    """The whole table: all queries, differences, slices, how it was measured."""
    everything = table.slices[ALL]
    kind = "SIMULATED data (generated, not real users)" if table.simulated else "Real data"
    pool = (
        f"the whole catalogue of {everything.products:,} products"
        if table.pool == "catalogue"
        else "the products that were judged for each query"
    )
    lines = ["# Table 1: retrieval", "", f"**{kind}.** {table.description}", ""]
    lines += [f"{everything.queries:,} queries, the best {table.k} of {pool}.", ""]
    lines += _markdown_rows(table, everything)
    if everything.differences:
        lines += ["", f"## {row_title(table.candidate)} minus each other row", ""]
        lines += _header(table, "Against")
        for name, estimates in everything.differences.items():
            cells = [_with_limits(estimates[metric], signed=True) for metric in METRICS]
            lines.append(f"| {' | '.join([row_title(name), *cells])} |")
    for title, found in table.slices.items():
        if title != ALL:
            lines += ["", f"## {title} ({found.queries:,} queries, {found.products:,} products)", ""]
            lines += _markdown_rows(table, found)
    shown = [name for name in everything.rows if name in PAPER]
    if shown:
        lines += ["", "## In the paper (other data, K not stated)", ""]
        lines += ["| Row | Graded Rel | Recall@K | Precision@K |", "| --- | ---: | ---: | ---: |"]
        lines += [
            f"| {row_title(name)} | {' | '.join(f'{value:.3f}' for value in PAPER[name])} |" for name in shown
        ]
    lines += ["", _how_measured(table)]
    lines += [
        f"- {row_title(name)} knows nothing of {missing.products:,} products and {missing.queries:,} queries."
        for name, missing in table.missing.items()
        if missing.products or missing.queries
    ]
    return "\n".join(lines) + "\n"


def console_table(table: Table1) -> Table:
    """The table of all queries; with its intervals on second lines it fits 100 columns."""
    everything = table.slices[ALL]
    label = "[bold]SIMULATED data[/bold]" if table.simulated else "real data"
    title = f"Table 1: {label}, {everything.queries:,} queries"
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("Row", min_width=13)
    for metric in METRICS:
        shown.add_column(metric_title(metric, table.k), justify="right", no_wrap=True)
    for name, estimates in everything.rows.items():
        cells = [_with_limits(estimates[metric]).replace(" (", "\n(") for metric in METRICS]
        shown.add_row(escape(row_title(name)), *cells)
    shown.add_row("[dim]best possible[/dim]", *[_mean(everything.best_possible[name]) for name in METRICS])
    return shown


def _header(table: Table1, first: str) -> list[str]:
    headings = [first, *(metric_title(metric, table.k) for metric in METRICS)]
    return [f"| {' | '.join(headings)} |", f"| --- |{' ---: |' * len(METRICS)}"]


def _markdown_rows(table: Table1, found: SliceResult) -> list[str]:
    lines = _header(table, "Row")
    for name, estimates in found.rows.items():
        cells = [row_title(name), *(_with_limits(estimates[metric]) for metric in METRICS)]
        lines.append(f"| {' | '.join(cells)} |")
    best = ["*best possible*", *(_mean(found.best_possible[metric]) for metric in METRICS)]
    return [*lines, f"| {' | '.join(best)} |"]


def _how_measured(table: Table1) -> str:
    best = table.slices[ALL].best_possible
    return (
        "Graded Rel: mean grade / 2 of the places. Recall: share of the highly relevant products found. "
        "Precision: share of places with a highly relevant product. nDCG: gain 2^grade - 1. MRR: 1 / place "
        f"of the first highly relevant product, 0 beyond {table.k}. Recall and MRR are means over the "
        f"{best['recall'].queries:,} queries that have a highly relevant product, nDCG over the "
        f"{best['ndcg'].queries:,} that have any relevant one. In brackets: 95 % interval from "
        f"{table.resamples:,} bootstrap resamples of whole queries."
    )


def _mean(estimate: Estimate) -> str:
    return NONE if estimate.mean is None else f"{estimate.mean:.3f}"


def _with_limits(estimate: Estimate, *, signed: bool = False) -> str:
    if estimate.mean is None:
        return NONE
    form = "+.3f" if signed else ".3f"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:{form}}"
    return f"{estimate.mean:{form}} ({estimate.low:{form}} … {estimate.high:{form}})"
