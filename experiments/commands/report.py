"""`dashclip report`: the comparison of a sweep, made again from its run folders."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="report")(report)


def report(
    sweep: Annotated[Path, typer.Argument(help="Folder that `dashclip sweep` wrote (it holds sweep.json).")],
    out: Annotated[
        Path | None, typer.Option(help="Where to write the report; the sweep folder if not given.")
    ] = None,
    resamples: Annotated[
        int, typer.Option(min=200, help="Bootstrap resamples of users for the interval over users.")
    ] = 1000,
    rng_seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
) -> None:
    """Compare a sweep's variants: AUC, log loss, differences with intervals, slices, plots.

    Reads the test predictions of the finished runs, so it can be repeated at will, also while a sweep
    still runs; runs that are missing are named. Writes table2.json, table2.md and report.html.

    Example: `dashclip report runs/demo`
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from experiments.report import build_report, write_report
    from experiments.report_tables import console_table, findings

    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        tasks = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done)

        table = build_report(sweep, rng_seed=rng_seed, bootstrap_resamples=resamples, progress=advance)
    paths = write_report(table, out or sweep)

    console.print(console_table(table))
    for sentence in findings(table):
        console.print(f"• {escape(sentence)}")
    for note in table.notes:
        console.print(f"[dim]note: {escape(note)}[/dim]")
    for run in table.missing:
        sentence = escape(f"{run.variant}, seed {run.seed}: {run.reason}")
        console.print(f"[yellow]missing:[/yellow] {sentence}")
    for path in paths.values():
        console.print(f"wrote {path}", highlight=False, markup=False)
