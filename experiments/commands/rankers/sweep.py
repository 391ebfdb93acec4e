"""`dashclip sweep`: variants x seeds, and the table that compares them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from experiments.sweeps.sweep import RunOutcome, RunProgress, SweepConfig


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sweep")(sweep)


def sweep(
    config: Annotated[Path, typer.Argument(help="TOML file of a sweep.")],
    out: Annotated[Path, typer.Argument(help="Folder for the runs and the report.")],
    processes: Annotated[
        int | None, typer.Option(min=1, help="Runs at the same time; one a core if not given.")
    ] = None,
) -> None:
    """Train every variant with every seed and compare them with intervals.

    Finished runs are kept and interrupted ones resumed, so the same command continues a stopped sweep.
    `dashclip report OUT` writes the report again without training.

    Example: `dashclip sweep my_sweep.toml runs/my_sweep`
    """
    from experiments.commands.rankers.report import report
    from experiments.config import load_config
    from experiments.sweeps.sweep import SweepConfig

    outcomes = run_sweep(load_config(config, SweepConfig), out, processes, f"dashclip sweep {config} {out}")
    report(out)
    exit_if_failed(outcomes)


def run_sweep(config: "SweepConfig", out: Path, processes: int | None, command: str) -> "list[RunOutcome]":
    """Execute the sweep behind one progress bar a running run and one for all."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    from experiments.sweeps.sweep import execute_sweep, plan
    from ranking.run import is_finished

    runs = plan(config, out)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    ) as bars:
        finished = sum(is_finished(run.folder) for run in runs)
        overall = bars.add_task(f"sweep {config.name}", total=len(runs), completed=finished)
        bar_of: dict[str, TaskID] = {}

        def on_progress(run: "RunProgress") -> None:
            if run.ended:
                bars.advance(overall)
                if run.name in bar_of:
                    bars.remove_task(bar_of.pop(run.name))
                return
            if run.name not in bar_of:
                bar_of[run.name] = bars.add_task(run.name, total=run.total_steps)
            description = f"  {run.name}  loss {run.loss:.4f}  {run.rows_per_s:,.0f} rows/s"
            bars.update(bar_of[run.name], completed=run.step, total=run.total_steps, description=description)

        return execute_sweep(config, out, processes=processes, command=command, on_progress=on_progress)


def exit_if_failed(outcomes: "list[RunOutcome]") -> None:
    """Name the runs that failed and end with exit code 1, after the report on the others."""
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in failed:
        typer.secho(f"failed: {outcome.folder}: {outcome.error}", err=True, fg=typer.colors.RED)
    if failed:
        raise typer.Exit(1)
