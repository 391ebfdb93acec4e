"""`dashclip validate`: hold the input tables to named rules."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from features.validation_report import ValidationReport


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("validate")(validate_tables)


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
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from features.files import atomic_write_json
    from features.tables import InputError
    from features.validation import validate

    if write_clean and out is None:
        raise InputError("--write-clean needs --out FOLDER; the clean tables go to FOLDER/clean")
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("opening", total=None)

        def show(stage: str, done: int, total: int) -> None:
            bars.update(task, description=stage, completed=done, total=total)

        report = validate(
            data,
            quarantine=out / "quarantine" if out else None,
            clean=out / "clean" if out and write_clean else None,
            max_bad_share=max_bad_share,
            memory_limit=memory_limit,
            threads=threads,
            check_images=images,
            progress=show,
        )
    if out is not None:
        atomic_write_json(out / "report.json", report.to_json())
    console.print(_summary(report))
    for sentence in _notes(report):
        console.print(sentence, highlight=False, soft_wrap=True)
    if out is not None:
        console.print(f"written to {out}", soft_wrap=True)
    report.raise_if_failed()


def _summary(report: "ValidationReport") -> Any:
    from rich.table import Table

    table = Table(title=f"Validation of {report.data}: {'passed' if report.passed else 'FAILED'}")
    for heading in ("table", "rule", "severity"):
        table.add_column(heading)
    for heading in ("rows", "share"):
        table.add_column(heading, justify="right")
    table.add_column("first at")
    for name, finding in report.tables.items():
        kept = f"{len(finding.rules)} rules, {finding.quarantined:,} rows to quarantine"
        table.add_row(name, kept, "", f"{finding.rows:,}", f"{finding.share:.2%}", "", style="bold")
        for rule in finding.broken:
            colour = {"warn": "yellow", "quarantine": "red", "fail": "bold red"}[rule.severity]
            place = str(rule.example) if rule.example else ""
            cells = (f"{rule.rows:,}", f"{rule.share:.2%}", place)
            table.add_row("", rule.rule, f"[{colour}]{rule.severity}[/]", *cells)
    return table


def _notes(report: "ValidationReport") -> list[str]:
    from rich.markup import escape

    found = [
        f"[bold]{rule.rule}[/]: {escape(rule.sentence)}"
        for finding in report.tables.values()
        for rule in finding.broken
    ]
    return found + [f"note: {escape(absence)}" for absence in report.absences]
