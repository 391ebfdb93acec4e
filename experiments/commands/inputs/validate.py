"""`dashclip validate`: hold the input tables to named rules."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from features.inputs.findings import ValidationReport


def validate_tables(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder with the input tables.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.json and quarantine/; nothing is written without.")
    ] = None,
    write_clean: Annotated[
        bool,
        typer.Option("--write-clean", help="Also write OUT/clean/, the tables without quarantined rows."),
    ] = False,
    max_bad_share: Annotated[
        float, typer.Option(min=0, max=1, help="Fail if more of a table's rows are quarantined.")
    ] = 0.01,
    memory_limit: Annotated[
        str, typer.Option(help="What DuckDB may use; larger state goes to temporary files.")
    ] = "2GB",
    threads: Annotated[int, typer.Option(min=1, help="Threads for rows and images.")] = 2,
    images: Annotated[bool, typer.Option("--images/--no-images", help="Open every product image.")] = True,
) -> None:
    """Check the four input tables: types, ids, times, labels, grades, products named by the logs, images.

    A row that breaks a **quarantine** rule is set aside with its reasons, file and row number, never dropped;
    corrected rows can be fed back. **warn** rules count only. The command fails (exit code 2) if a table
    cannot be used or too many of its rows are bad.

    Example: `dashclip validate runs/marketplace --out runs/checked --write-clean`
    """
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from features.artifacts import atomic_write_json
    from features.inputs.tables import InputError
    from features.inputs.validation import validate

    if write_clean and out is None:
        raise InputError("--write-clean needs --out FOLDER; the clean tables go to FOLDER/clean")
    console = Console()
    with progress_bars(console) as bars:
        report = validate(
            data,
            quarantine=out / "quarantine" if out else None,
            clean=out / "clean" if out and write_clean else None,
            max_bad_share=max_bad_share,
            memory_limit=memory_limit,
            threads=threads,
            check_images=images,
            progress=bars.under("checking"),
        )
    if out is not None:
        atomic_write_json(out / "report.json", report.to_json())
    for table in _summary(report):
        console.print(table)
    for sentence in _notes(report):
        console.print(sentence, highlight=False, soft_wrap=True)
    if out is not None:
        console.print(f"written to {out}", soft_wrap=True)
    report.raise_if_failed()
    if out is not None and write_clean:
        console.print(f"go on with {out / 'clean'}: the tables without quarantined rows", soft_wrap=True)
    elif any(finding.quarantined for finding in report.tables.values()):
        command = shlex.join(["dashclip", "validate", str(data), "--out", str(out or "OUT"), "--write-clean"])
        console.print(
            f"go on with a clean copy, as features are not built of such rows: {command}", soft_wrap=True
        )


def _summary(report: "ValidationReport") -> list[Any]:
    from rich.table import Table

    tables = Table(title=f"{report.data}: {'passed' if report.passed else 'FAILED'}")
    for heading in ("table", "rows", "rules", "to quarantine", "share"):
        tables.add_column(heading, justify="left" if heading == "table" else "right")
    rules = Table(title="Broken rules")
    for heading in ("rule", "severity", "rows", "share", "first"):
        rules.add_column(
            heading, justify="right" if heading in ("rows", "share") else "left", overflow="fold"
        )
    for name, finding in report.tables.items():
        tables.add_row(
            name,
            f"{finding.rows:,}",
            str(len(finding.rules)),
            f"{finding.quarantined:,}",
            f"{finding.share:.2%}",
        )
        for rule in finding.broken:
            colour = {"warn": "yellow", "quarantine": "red", "fail": "bold red"}[rule.severity]
            first = f"{rule.example.file}:{rule.example.row}" if rule.example else ""
            severity = f"[{colour}]{rule.severity}[/]"
            rules.add_row(rule.rule, severity, f"{rule.rows:,}", f"{rule.share:.2%}", first)
    return [tables, rules] if rules.row_count else [tables]


def _notes(report: "ValidationReport") -> list[str]:
    from rich.markup import escape

    found = [
        f"[bold]{rule.rule}[/]: {escape(rule.sentence)}"
        for finding in report.tables.values()
        for rule in finding.broken
    ]
    return found + [f"note: {escape(absence)}" for absence in report.absences]
