"""The evidence page of encoders alone: one self-contained HTML file."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from experiments.encoders.table1 import Table1
from experiments.reports.page import Absent, Section, render, time_of
from experiments.reports.records import EvidenceError, read_record
from experiments.reports.sections.retrieval import FILE, TITLES_FILE
from features.artifacts import atomic_write_bytes

PAGE = "report.html"


def write_encoders_page(folder: Path, out: Path, *, evidence: Sequence[Section | Absent]) -> Path:
    """Write `report.html` into `out`, whole or not at all.

    Args:
        folder: what the page is about; its results say whether the data are simulated.
        evidence: what `experiments.reports.evidence.gather_encoders` found.
    """
    page = render(
        "encoders.html",
        name=folder.resolve().name,
        folder=folder,
        simulated=_simulated(folder),
        sections=evidence,
        made=time_of(datetime.now(UTC)),
    )
    atomic_write_bytes(out / PAGE, (page.rstrip() + "\n").encode())
    return out / PAGE


def _simulated(folder: Path) -> bool | None:
    """Whether the measured data were simulated; None where no result says it."""
    for file in (FILE, TITLES_FILE):
        try:
            record = read_record(folder / file, Table1)
        except EvidenceError:
            continue
        if record is not None:
            return record.simulated
    return None
