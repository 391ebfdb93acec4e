"""`dashclip abtest`: online experiments, planned and judged."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

abtest = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Online experiments: how many users they take, and what they say of a challenger.",
)


def require_tea_tasting() -> None:
    """Raises ValueError, with what to install, where the analysis of experiments cannot run."""
    if importlib.util.find_spec("tea_tasting") is None:
        raise ValueError(
            "the analysis of experiments needs tea-tasting, which is not installed; "
            "`pip install 'dashclip-ranker[abtest]'` brings it"
        )


@abtest.command("report")
def report(
    experiment: Annotated[
        Path, typer.Argument(help="Folder of an experiment: experiment.json and unit_days.parquet or .csv.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where to write the report; the folder itself if not given.")
    ] = None,
) -> None:
    """Judge a challenger by the log of an experiment, simulated or real: ship, stop, go on, or invalid.

    CTR, conversions, revenue and relevance with variances over users (delta method), made narrower by what
    users did before (CUPED), Fieller's limits for relative lifts, limits for those who look every day, sample
    ratio, guardrails, days, and slices. docs/abtest.md says which columns the tables have. Writes
    result.json, report.md and report.html.

    Example: `dashclip abtest report runs/abtest`
    """
    from rich.console import Console
    from rich.markup import escape

    from experiments.runtime.progress import progress_bars

    require_tea_tasting()
    from experiments.abtest.analysis import analyse_folder
    from experiments.abtest.decision import lift_text
    from experiments.abtest.metrics import METRICS
    from experiments.reports.abtest.page import write_abtest_report

    console = Console()
    command = f"dashclip abtest report {experiment}"
    with progress_bars(console) as bars:
        result = analyse_folder(experiment, command=command, progress=bars)
    with console.status("drawing"):
        written = write_abtest_report(result, out or experiment, command=command)
    for name, found in result.metrics.items():
        console.print(f"• {METRICS[name].title}: {lift_text(found)}", highlight=False)
    for note in result.decision.notes:
        console.print(f"[dim]note: {escape(note)}[/dim]", highlight=False)
    console.print(
        f"[bold]{result.decision.verdict}:[/bold] {escape(result.decision.sentence)}", highlight=False
    )
    for path in written:
        console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
