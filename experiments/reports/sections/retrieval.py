"""Table 1 on the evidence page: which products the vectors find for a query, from `table1.json`."""

from dataclasses import replace
from pathlib import Path

from experiments.encoders.table1 import Table1
from experiments.reports.page import Grid, Plot, Section, svg_source
from experiments.reports.records import origin_of, read_record
from experiments.reports.sections import plots as evidence_plots
from experiments.reports.table1_text import PAPER_HEADING, metric_titles, paper_rows, pool_title, row_title
from experiments.statistics import paper
from experiments.statistics.cells import limits, number, with_limits

FILE = "table1.json"
TITLE = "Table 1: products found for a query"
QUESTION = "Do the vectors find the right products?"


TITLES_FILE = "title_to_image.json"
TITLES_TITLE = "Images found for a title"
TITLES_QUESTION = "Do titles find the images of products that no stage was trained on?"


def title_section(folder: Path) -> Section | None:
    """Title-to-image retrieval, which needs neither queries nor grades; None if it was not measured.

    Raises:
        EvidenceError: the file is broken.
    """
    found = retrieval_section(folder, file=TITLES_FILE)
    if found is None:
        return None
    return replace(found, anchor="titles", title=TITLES_TITLE, question=TITLES_QUESTION)


def retrieval_section(sweep: Path, *, file: str = FILE) -> Section | None:
    """Table 1 with a plot of all queries and one of each slice; None if it was not measured.

    Raises:
        EvidenceError: the file is broken.
    """
    path = sweep / file
    record = read_record(path, Table1)
    if record is None:
        return None
    keys = metric_titles(record)
    plots = [
        Plot(
            "All queries",
            f"Mean over queries with its 95 % interval over {record.drawn}. Dotted: what the best possible "
            "order reaches. Each panel has its own scale.",
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
        origin=origin_of(path, record.command, record.environment, created=record.created),
        sentences=(
            f"{record.queries:,} queries, the best {record.k} of {pool_title(record)}. Graded relevance is "
            f"the mean grade of the first {record.k} places, from 0 (all irrelevant) to 1 (all highly "
            "relevant).",
        ),
        grids=(_grid(record, keys), *_paper(record)),
        plots=tuple(plots),
    )


def _answer(record: Table1) -> str:
    """The candidate against the strongest of the others."""
    graded = {name: found.mean for name, row in record.rows.items() if (found := row.get("graded_rel"))}
    others = {name: value for name, value in graded.items() if name != record.candidate}
    if record.candidate not in graded or not others:
        return f"{len(record.rows)} ways to order products were measured."
    rival = max(others, key=others.__getitem__)
    difference = record.differences.get(rival, {}).get("graded_rel")
    title, value = row_title(record.candidate), graded[record.candidate]
    compared = f"{value:.3f} graded relevance at {record.k} against {others[rival]:.3f} of {row_title(rival)}"
    if difference is None or difference.low is None or difference.high is None:
        return f"{title} reaches {compared}, the best of the others."
    interval = f"difference {value - others[rival]:+.3f}, 95 % {limits(difference, 3, sign=True)}"
    if difference.low > 0:
        return f"Yes: {title} reaches {compared}, the best of the others ({interval})."
    if difference.high < 0:
        return f"Not better than {row_title(rival)}: {title} reaches {compared} ({interval})."
    return f"{title} cannot be told from {row_title(rival)}: {compared} ({interval})."


def _grid(record: Table1, keys: dict[str, str]) -> Grid:
    rows = [
        (row_title(name), *(with_limits(row.get(key), 3) for key in keys))
        for name, row in record.rows.items()
    ]
    best = ("Best possible order", *(number(record.best_possible.get(key), 3) for key in keys))
    names = list(record.rows)
    place = names.index(record.candidate) if record.candidate in names else -1
    bold = frozenset((place, column) for column in range(len(keys) + 1))
    caption = f"Mean over queries (95 % interval over {record.drawn}"
    if record.bootstrap_resamples:
        caption += f", {record.bootstrap_resamples:,} resamples"
    return Grid(f"{caption}).", ("Row", *keys.values()), (*rows, best), bold)


def _paper(record: Table1) -> list[Grid]:
    if record.candidate not in paper.TABLE1 or record.candidate not in record.rows:
        return []
    caption = "The same rows in the paper: other products and another K, so only the order of rows compares."
    return [Grid(caption, PAPER_HEADING, tuple(paper_rows(record)))]
