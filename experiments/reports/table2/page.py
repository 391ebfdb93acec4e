"""The evidence page of a sweep, one self-contained HTML file, and the files that go with it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.reports.page import Absent, Section, render, time_of
from experiments.reports.table2.sections import table2_sections
from experiments.reports.table2.text import (
    compares_with_paper,
    findings,
    gap_sentences,
    pair_rows,
    power_sentences,
    rows_of_slice,
    to_markdown,
)
from experiments.statistics.cells import number
from experiments.statistics.paper import TABLE2
from experiments.sweeps.table2 import Table2, to_json
from features.artifacts import atomic_write_bytes


def write_report(table: Table2, out: Path, *, evidence: Sequence[Section | Absent] = ()) -> dict[str, Path]:
    """Write `table2.json`, `table2.md` and `report.html` into `out`, each whole or not at all.

    Args:
        evidence: what `experiments.reports.evidence.gather` found for the page beside table 2.

    Returns:
        The path of each, by kind: "json", "markdown", "page".
    """
    contents = {
        "json": ("table2.json", json.dumps(to_json(table), indent=2, ensure_ascii=False, allow_nan=False)),
        "markdown": ("table2.md", to_markdown(table)),
        "page": ("report.html", to_html(table, evidence)),
    }
    paths = {}
    for kind, (name, text) in contents.items():
        paths[kind] = out / name
        atomic_write_bytes(paths[kind], (text.rstrip() + "\n").encode())
    return paths


def to_html(table: Table2, evidence: Sequence[Section | Absent] = ()) -> str:
    """The whole page: table 2, then what else was measured. It names simulated data before any number."""
    sections = table2_sections(table)
    return render(
        "report.html",
        record=table.results.record,
        data=_text(table.results.record.data),
        everything=table.slices["all"],
        table=table,
        number=number,
        findings=findings(table) + power_sentences(table),
        gaps=gap_sentences(table),
        rows=rows_of_slice(table, "all"),
        slices=[
            (facts, rows_of_slice(table, key), key in TABLE2)
            for key, facts in table.slices.items()
            if key != "all"
        ],
        pairs=pair_rows(table),
        paper=compares_with_paper(table),
        lift=sections[0],
        by_slice=sections[1],
        sections=[*sections, *evidence],
        undefined=_undefined(table),
        machines=sorted({str(found) for found in _recorded(table, "cpu")}),
        environment=_environment(table),
        made=time_of(table.created),
    )


def _undefined(table: Table2) -> list[str]:
    """Each undefined metric once, with the slice and the reason."""
    first = next(iter(table.variants.values()))
    return [
        f"{table.slices[key].title}: {reason}."
        for key, found in first.slices.items()
        for metric, reason in found.undefined.items()
        if metric in ("auc", "calibration") or (metric == "gauc_user" and "auc" not in found.undefined)
    ]


def _recorded(table: Table2, key: str) -> list[Any]:
    runs = [run for by_seed in table.results.runs.values() for run in by_seed.values()]
    return [run.environment[key] for run in runs if run.environment.get(key)]


def _environment(table: Table2) -> str:
    packages: dict[str, str] = next(iter(_recorded(table, "packages")), {})
    return ", ".join(f"{name} {version}" for name, version in packages.items())


def _text(value: str | dict[str, Any] | None) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)
