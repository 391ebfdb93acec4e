"""`dashclip report`: the evidence page of a sweep, made again from what it left on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.reports.page import Absent, Section


def report(
    sweep: Annotated[
        Path, typer.Argument(help="Folder that `dashclip sweep` or `dashclip encode` left results in.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where to write the report; the sweep folder if not given.")
    ] = None,
    resamples: Annotated[
        int, typer.Option(min=200, help="Bootstrap resamples of users for the interval over users.")
    ] = 1000,
    rng_seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    latency: Annotated[
        Path | None,
        typer.Option(
            help="serving.json to show; if not given, SWEEP's or that of the folder bench beside it."
        ),
    ] = None,
) -> None:
    """The evidence page: a sweep's variants compared, and what else was measured, on one page.

    Compares from the test predictions of the finished runs, so it can be repeated at will, also while a sweep
    still runs; runs that are missing are named. Joins table1.json, probes.json with its pictures,
    importance.json and serving.json as far as they exist, and names the command that makes each of the
    others. Writes table2.json, table2.md and report.html. Of a folder without a sweep, the page is of its
    encoders alone.

    Example: `dashclip report runs/demo`
    """
    from rich.console import Console
    from rich.markup import escape

    from experiments.reports.encoders_page import write_encoders_page
    from experiments.reports.evidence import gather, gather_encoders
    from experiments.reports.page import Section
    from experiments.reports.table2.page import write_report
    from experiments.reports.table2.text import console_table, findings, power_sentences
    from experiments.runtime.progress import progress_bars
    from experiments.sweeps.results import SWEEP
    from experiments.sweeps.table2 import build_report

    if latency is not None and not latency.exists():
        raise FileNotFoundError(f"{latency} does not exist; `make bench-serving` writes such a file")
    console = Console()
    if not (sweep / SWEEP).exists():
        evidence = gather_encoders(sweep)
        page = write_encoders_page(sweep, out or sweep, evidence=evidence)
        for part in evidence:
            if isinstance(part, Section):
                console.print(f"• {escape(part.answer)}")
        _print_end(console, evidence, page)
        return
    with progress_bars(console) as bars:
        table = build_report(sweep, rng_seed=rng_seed, bootstrap_resamples=resamples, progress=bars)
    with console.status("drawing"):
        evidence = gather(sweep, latency=latency, queries="head_query" in table.slices)
        paths = write_report(table, out or sweep, evidence=evidence)

    console.print(console_table(table))
    for sentence in findings(table) + power_sentences(table):
        console.print(f"• {escape(sentence)}")
    for note in table.notes:
        console.print(f"[dim]note: {escape(note)}[/dim]")
    for run in table.missing:
        sentence = escape(f"{run.variant}, seed {run.seed}: {run.reason}")
        console.print(f"[yellow]missing:[/yellow] {sentence}")
    for path in (paths["json"], paths["markdown"]):
        console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
    _print_end(console, evidence, paths["page"])


def _print_end(console: "Console", evidence: "Sequence[Section | Absent]", page: Path) -> None:
    """What is not on the page, and where the page is."""
    from rich.markup import escape

    from experiments.reports.page import Absent

    for part in evidence:
        if isinstance(part, Absent):
            command = f" To make it: {part.command}" if part.command else ""
            sentence = escape(f"{part.title}: {part.reason}{command}")
            console.print(f"[yellow]not on the page:[/yellow] {sentence}", highlight=False)
    console.print(f"[bold]evidence page:[/bold] {escape(str(page))}", highlight=False, soft_wrap=True)
