"""`dashclip report`: one page about a folder, whether it holds data, encoders or a sweep."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.commands.options import TABLE

if TYPE_CHECKING:
    from experiments.reports.page import Absent, Section
    from experiments.runtime.terminal import Console


def report(
    folder: Annotated[
        Path,
        typer.Argument(help="Data folder, or what `dashclip sweep` or `dashclip encode` left results in."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where to write the page; the folder itself if not given.")
    ] = None,
    resamples: Annotated[
        int, typer.Option(min=200, help="Bootstrap resamples of users for the interval over users.")
    ] = 1000,
    rng_seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    latency: Annotated[
        Path | None,
        typer.Option(
            help="serving.json to show for a sweep; else its own or that of the folder bench beside it."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Of a folder with encoders: where their products lie, to show what queries find."),
    ] = None,
    table: TABLE = None,
) -> None:
    """One page about a folder: what is in the data, what encoders are worth, or what a sweep compared.

    Of data: tables, columns, rows that break a rule, the log over time, what is frequent, pictures, what is
    missing and what that means. Of encoders: training, table 1, probes and, with --data, what some queries
    find. Of a sweep: its variants compared from the test predictions of the finished runs (also while it
    still runs), and table 1, probes, importance and latency as far as they were measured; writes table2.json
    and table2.md, too. What is missing is named with the command that makes it. The page is report.html.

    Examples: `dashclip report my_log`, `dashclip report runs/encoders --data my_log`
    """
    from rich.markup import escape

    from experiments.reports.evidence import gather
    from experiments.reports.inputs.page import is_data_folder
    from experiments.reports.table2.page import write_report
    from experiments.reports.table2.text import console_table, findings, power_sentences
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from experiments.sweeps.results import SWEEP
    from experiments.sweeps.table2 import build_report

    if latency is not None and not latency.exists():
        raise FileNotFoundError(f"{latency} does not exist; `make bench-serving` writes such a file")
    console = Console()
    if not (folder / SWEEP).exists():
        if is_data_folder(folder):
            _report_inputs(console, folder, out or folder)
        else:
            _report_encoders(console, folder, out or folder, data=data, table=table)
        return
    sweep = folder
    with progress_bars(console) as bars:
        table2 = build_report(sweep, rng_seed=rng_seed, bootstrap_resamples=resamples, progress=bars)
    with console.status("drawing"):
        evidence = gather(sweep, latency=latency, queries="head_query" in table2.slices)
        paths = write_report(table2, out or sweep, evidence=evidence)

    console.print(console_table(table2))
    for sentence in findings(table2) + power_sentences(table2):
        console.print(f"• {escape(sentence)}")
    for note in table2.notes:
        console.print(f"[dim]note: {escape(note)}[/dim]")
    for run in table2.missing:
        sentence = escape(f"{run.variant}, seed {run.seed}: {run.reason}")
        console.print(f"[yellow]missing:[/yellow] {sentence}")
    for path in (paths["json"], paths["markdown"]):
        console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
    _print_end(console, evidence, paths["page"])


def _report_inputs(console: "Console", folder: Path, out: Path) -> None:
    from experiments.reports.inputs.page import gather_inputs, write_inputs_page
    from experiments.runtime.progress import progress_bars

    with progress_bars(console) as bars:
        sections = gather_inputs(folder, progress=bars)
    page = write_inputs_page(folder, out, sections)
    _print_answers(console, sections)
    _print_end(console, sections, page)


def _report_encoders(
    console: "Console", folder: Path, out: Path, *, data: Path | None, table: Path | None
) -> None:
    from experiments.reports.encoders_page import write_encoders_page
    from experiments.reports.evidence import gather_encoders

    evidence = gather_encoders(folder, data=data, table=table)
    page = write_encoders_page(folder, out, evidence=evidence, data=data)
    _print_answers(console, evidence)
    _print_end(console, evidence, page)


def _print_answers(console: "Console", sections: "Sequence[Section | Absent]") -> None:
    from rich.markup import escape

    from experiments.reports.page import Section

    for part in sections:
        if isinstance(part, Section):
            console.print(f"• {escape(part.answer)}", highlight=False)


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
