"""A page that is a list of sections: one self-contained HTML file, made of `templates/sections.html`."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from experiments.reports.page import Absent, Section, render, time_of
from features.artifacts import atomic_write_bytes
from features.inputs.origin import Origin

PAGE = "report.html"


def write_sections_page(
    out: Path,
    sections: Sequence[Section | Absent],
    *,
    title: str,
    lead: str,
    origin: Origin,
    command: str,
    rests_on: str,
    facts: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write `report.html` into `out`, whole or not at all.

    Args:
        origin: of the data; where nothing says whether they were simulated, the page says neither.
        command: what makes the page again.
        rests_on: the end of the sentence "Page made ... by COMMAND".
        facts: numbers with their names, to stand below the title.
    """
    page = render(
        "sections.html",
        title=title,
        lead=lead,
        origin=origin,
        sections=sections,
        command=command,
        rests_on=rests_on,
        facts=facts,
        made=time_of(datetime.now(UTC)),
    )
    atomic_write_bytes(out / PAGE, (page.rstrip() + "\n").encode())
    return out / PAGE
