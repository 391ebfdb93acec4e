"""The evidence page of encoders alone."""

from collections.abc import Sequence
from pathlib import Path

from experiments.encoders.table1 import Table1
from experiments.reports.page import Absent, Section
from experiments.reports.records import EvidenceError, read_record
from experiments.reports.sections.retrieval import FILE, TITLES_FILE
from experiments.reports.sections_page import write_sections_page
from features.inputs.origin import Origin


def write_encoders_page(
    folder: Path, out: Path, *, evidence: Sequence[Section | Absent], data: Path | None = None
) -> Path:
    """Write `report.html` into `out`, whole or not at all.

    Args:
        folder: what the page is about; its results say whether the data are simulated.
        evidence: what `experiments.reports.evidence.gather_encoders` found.
        data: where the products of its examples lie; says so, too.
    """
    return write_sections_page(
        out,
        evidence,
        title=f"The evidence for the vectors in {folder.resolve().name}",
        lead="No ranker was compared in this folder: this page is of the vectors alone.",
        origin=Origin(simulated=_simulated(folder, data)),
        command=f"dashclip report {folder}" + (f" --data {data}" if data else ""),
        rests_on=' from the results named under each part; "+changes" or "-dirty" after a commit means that '
        "files differed from it.",
    )


def _simulated(folder: Path, data: Path | None) -> bool | None:
    """Whether the measured data were simulated; None where neither a result nor the data say it."""
    for file in (FILE, TITLES_FILE):
        try:
            record = read_record(folder / file, Table1)
        except EvidenceError:
            continue
        if record is not None:
            return record.simulated
    return Origin.of(data).simulated if data is not None else None
