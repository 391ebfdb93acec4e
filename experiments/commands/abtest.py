"""`dashclip abtest`: online experiments, planned and judged."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from experiments.commands.options import DATA

abtest = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Online experiments: how many users they take, and what they say of a challenger.",
)


def has_tea_tasting() -> bool:
    """Whether the analysis of experiments can run."""
    return importlib.util.find_spec("tea_tasting") is not None


def require_tea_tasting() -> None:
    """Raises ValueError, with what to install, where the analysis of experiments cannot run."""
    if not has_tea_tasting():
        raise ValueError(
            "the analysis of experiments needs tea-tasting, which is not installed; "
            "`pip install 'dashclip-ranker[abtest]'` brings it"
        )


@abtest.command("report")
def report(
    experiment: Annotated[
        Path,
        typer.Argument(
            help="Folder of an experiment (experiment.json, unit_days.parquet or .csv), or of `abtest run`."
        ),
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

    Given the folder of `abtest run`, it judges the experiment in it, with the coverage that `abtest coverage`
    left there.

    Example: `dashclip abtest report runs/abtest`
    """
    from rich.markup import escape

    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console

    require_tea_tasting()
    from experiments.abtest.analysis import analyse_folder
    from experiments.abtest.decision import lift_text
    from experiments.abtest.metrics import METRICS
    from experiments.abtest.simulated.coverage import experiment_in
    from experiments.reports.abtest.page import write_abtest_report

    console = Console()
    command = f"dashclip abtest report {experiment}"
    with progress_bars(console) as bars:
        folder, coverage = experiment_in(experiment)
        name = experiment.resolve().name
        result = analyse_folder(folder, name=name, command=command, coverage=coverage, progress=bars)
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


def write_run_report(run: Path) -> list[Path]:
    """The report on the experiment of `abtest run`, into its own folder; needs tea-tasting."""
    from experiments.abtest.analysis import analyse_folder
    from experiments.abtest.simulated.coverage import experiment_in
    from experiments.reports.abtest.page import write_abtest_report

    command = f"dashclip abtest report {run}"
    folder, coverage = experiment_in(run)
    result = analyse_folder(folder, name=run.resolve().name, command=command, coverage=coverage)
    return write_abtest_report(result, run, command=command)


@abtest.command("plan")
def plan(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Folder for plan.json, plan.md and report.html.")],
    lift: Annotated[float, typer.Option(min=0.0001, help="Relative lift to find: 0.03 is 3 %.")] = 0.03,
    primary: Annotated[
        str, typer.Option(help="Metric that decides: ctr, conversions or conversion_rate.")
    ] = "ctr",
    treatment_share: Annotated[
        float,
        typer.Option(min=0.01, max=0.99, help="Of the users in the experiment, who see the challenger."),
    ] = 0.5,
    traffic: Annotated[
        float, typer.Option(min=0.001, max=1, help="Share of all users that are in the experiment.")
    ] = 1.0,
    most_days: Annotated[
        int, typer.Option(min=1, help="Longest experiment to think of; half of the log at most.")
    ] = 28,
    before_days: Annotated[
        int, typer.Option(min=0, help="Days of behaviour before the experiment to use (CUPED).")
    ] = 28,
    aa_tests: Annotated[int, typer.Option(min=100, help="Tests without a difference.")] = 1000,
) -> None:
    """Say how many users and days an experiment takes, by the log there is.

    An experiment is thought to have run on the last days of the log: who came, how much users differ, and how
    much of it their past explains. Then users are drawn again 1,000 times by the routing that serves, to see
    whether tests find something where there is nothing.

    Example: `dashclip abtest plan runs/data runs/plan --lift 0.03`
    """
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console

    require_tea_tasting()
    from experiments.abtest.metrics import METRICS
    from experiments.abtest.planning import plan_experiment
    from experiments.reports.abtest.plan_page import aa_sentence, plan_sentence, write_plan

    console = Console()
    command = f"dashclip abtest plan {data} {out} --lift {lift:g}"
    with progress_bars(console) as bars:
        planned = plan_experiment(
            data,
            lift=lift,
            primary=primary,
            treatment_share=treatment_share,
            traffic=traffic,
            most_days=most_days,
            before_days=before_days,
            rerandomisations=aa_tests,
            command=command,
            progress=bars,
        )
    with console.status("drawing"):
        written = write_plan(planned, out, command=command)
    for name in planned.metrics:
        console.print(f"• {plan_sentence(planned, name)}", highlight=False)
    for name, check in planned.aa.items():
        console.print(f"[dim]A/A, {METRICS[name].title}: {aa_sentence(check)}[/dim]", highlight=False)
    for path in written:
        console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
