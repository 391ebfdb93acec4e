"""The sections of a page as Markdown: what a page says, without its plots."""

from collections.abc import Sequence

from experiments.reports.page import Absent, Grid, Section
from experiments.statistics.cells import markdown_table

MARKDOWN = "report.md"


def sections_markdown(sections: Sequence[Section | Absent], *, title: str, lead: str) -> str:
    """Question, answer, sentences, tables and notes of each section; cells keep their words."""
    lines = [f"# {title}", "", lead]
    for section in sections:
        lines += ["", f"## {section.title}", "", f"*{section.question}*", ""]
        if isinstance(section, Absent):
            lines.append(section.reason + (f" To make it: `{section.command}`" if section.command else ""))
            continue
        lines.append(section.answer)
        if section.sentences:
            lines += ["", *(f"- {sentence}" for sentence in section.sentences)]
        for grid in section.grids:
            lines += ["", *_table(grid)]
        for note in section.notes:
            lines += ["", note]
    return "\n".join([*lines, ""])


def _table(grid: Grid) -> list[str]:
    rows = [[cell.replace("|", "\\|") for cell in row] for row in grid.rows]
    table = markdown_table(grid.columns, rows, text_columns=grid.text_columns)
    return [grid.caption, "", *table] if grid.caption else table
