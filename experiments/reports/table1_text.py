"""Table 1 as text: Markdown and a terminal table."""

from rich import box
from rich.markup import escape
from rich.table import Table

from embeddings.evaluation.retrieval import METRICS
from experiments.encoders.table1 import SliceResult, Table1, metric_key
from experiments.statistics import paper
from experiments.statistics.cells import markdown_table, number, with_limits

_TITLES = {
    "random": "Random",
    "bm25": "BM25",
    "bm25_stemmed": "BM25, stemmed and tuned",
    "char_tfidf": "Character n-gram TF-IDF",
    "fusion": "Fusion of both",
    "lsa": "LSA",
    "clip_text": "CLIP (text)",
    "clip_image": "CLIP (image)",
    "blip_text": "BLIP (text)",
    "blip_image": "BLIP (image)",
    "flava_text": "FLAVA (text)",
    "flava_image": "FLAVA (image)",
    "stage1": "Stage 1 only",
    "paper": "The paper's own recipe",
    "dashclip": "DashCLIP",
}
#: Of a name on a terminal; longer ones take several lines.
NAME_COLUMNS = 24
PAPER_HEADING = ("Row", "Graded Rel", "Recall@K", "Precision@K")


def row_title(name: str) -> str:
    """A readable title: `clip_text` is "CLIP (text)"; an unknown name has its underscores opened."""
    return _TITLES.get(name, name.replace("_", " "))


def metric_title(metric: str, k: int) -> str:
    """Column heading: "recall" at 10 is "Recall@10"."""
    titles = {"graded_rel": "Graded Rel", "mrr": f"MRR@{k}", "ndcg": f"nDCG@{k}"}
    return titles.get(metric, f"{metric.title()}@{k}")


def to_markdown(table: Table1) -> str:
    """The whole table: all queries, differences, slices, how it was measured."""
    kind = "SIMULATED data (generated, not real users)" if table.simulated else "Real data"
    lines = [f"# {table.title}", "", f"**{kind}.** {table.description}", ""]
    lines += [f"{table.queries:,} queries, the best {table.k} of {pool_title(table)}.", ""]
    lines += _rows(table, table)
    if table.differences:
        keys = metric_titles(table)
        rows = (
            [row_title(name), *(with_limits(found[key], 3, sign=True) for key in keys)]
            for name, found in table.differences.items()
        )
        lines += ["", f"## {row_title(table.candidate)} minus each other row", ""]
        lines += markdown_table(["Against", *keys.values()], rows)
    for title, found in table.slices.items():
        lines += ["", f"## {title} ({found.queries:,} queries, {found.products:,} products)", ""]
        lines += _rows(table, found)
    if in_paper := paper_rows(table):
        lines += ["", "## In the paper (other data, K not stated)", ""]
        lines += markdown_table(PAPER_HEADING, in_paper)
    lines += ["", _how_measured(table)]
    lines += [
        f"- {row_title(name)} knows nothing of {missing.products:,} products and {missing.queries:,} queries."
        for name, missing in table.missing.items()
        if missing.products or missing.queries
    ]
    return "\n".join(lines) + "\n"


def console_table(table: Table1) -> Table:
    """The table of all queries: names stay whole, and intervals take further lines to fit 80 columns."""
    keys = metric_titles(table)
    label = "[bold]SIMULATED data[/bold]" if table.simulated else "real data"
    title = f"{table.title.partition(':')[0]}: {label}, {table.queries:,} queries"
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names = [row_title(name) for name in [*table.rows, "best possible"]]
    shown.add_column("Row", width=min(NAME_COLUMNS, max(map(len, names))), overflow="fold")
    for heading in keys.values():
        shown.add_column(heading.replace("@", "\n@"), justify="right", no_wrap=True)
    for name, found in table.rows.items():
        cells = [with_limits(found[key], 3).replace(" (", "\n(").replace(" … ", " …\n") for key in keys]
        shown.add_row(escape(row_title(name)), *cells)
    shown.add_row("[dim]best possible[/dim]", *(number(table.best_possible[key], 3) for key in keys))
    return shown


def metric_titles(table: Table1) -> dict[str, str]:
    """Column headings by the names that metrics have in the table."""
    return {metric_key(metric, table.k): metric_title(metric, table.k) for metric in METRICS}


def pool_title(table: Table1) -> str:
    """What competes for the places of a query."""
    if table.pool == "catalogue":
        return f"the whole catalogue of {table.products:,} products"
    return "the products that were judged for each query"


def paper_rows(table: Table1) -> list[tuple[str, ...]]:
    """The rows that the paper has, too."""
    return [
        (row_title(name), *(f"{value:.3f}" for value in paper.TABLE1[name]))
        for name in table.rows
        if name in paper.TABLE1
    ]


def _rows(table: Table1, found: SliceResult) -> list[str]:
    keys = metric_titles(table)
    rows = [
        [row_title(name), *(with_limits(row[key], 3) for key in keys)] for name, row in found.rows.items()
    ]
    best = ["*best possible*", *(number(found.best_possible[key], 3) for key in keys)]
    return markdown_table(["Row", *keys.values()], [*rows, best])


def _how_measured(table: Table1) -> str:
    recall, ndcg = (table.queries_with_value[metric_key(metric, table.k)] for metric in ("recall", "ndcg"))
    return (
        "Graded Rel: mean grade / 2 of the places. Recall: share of the highly relevant products found. "
        "Precision: share of places with a highly relevant product. nDCG: gain 2^grade - 1. MRR: 1 / place "
        f"of the first highly relevant product, 0 beyond {table.k}. Recall and MRR are means over the "
        f"{recall:,} queries that have a highly relevant product, nDCG over the {ndcg:,} that have any "
        f"relevant one. In brackets: 95 % interval from {table.bootstrap_resamples:,} bootstrap resamples of "
        f"whole {table.drawn}."
    )
