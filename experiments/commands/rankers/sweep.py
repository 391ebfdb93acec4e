"""`dashclip sweep`: variants x seeds, and the table that compares them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from experiments.runtime.job_pool import JobProgress
    from experiments.sweeps.sweep import SweepConfig


def sweep(
    config: Annotated[Path, typer.Argument(help="TOML file of a sweep.")],
    out: Annotated[Path, typer.Argument(help="Folder for the runs and the report.")],
    processes: Annotated[
        int | None, typer.Option(min=1, help="Runs at the same time; one per core by default.")
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

    errors = run_sweep(load_config(config, SweepConfig), out, processes, f"dashclip sweep {config} {out}")
    report(out)
    exit_if_failed(errors)


def run_sweep(
    config: "SweepConfig", out: Path, processes: int | None, command: str
) -> dict[Path, str | None]:
    """Execute the sweep behind one progress bar a running run and one for all."""
    from rich.console import Console

    from experiments.runtime.progress import progress_bars
    from experiments.sweeps.sweep import execute_sweep, plan
    from ranking.run import is_finished

    runs = plan(config, out)
    ended = {run.name for run in runs if is_finished(run.folder)}
    with progress_bars(Console()) as bars:

        def on_progress(job: "JobProgress") -> None:
            bars.job(job)
            if job.ended:
                ended.add(job.name)
            bars(f"sweep {config.name}", len(ended), len(runs), "")

        return execute_sweep(config, out, processes=processes, command=command, on_progress=on_progress)


def exit_if_failed(errors: Mapping[Any, str | None]) -> None:
    """Name the runs that failed and end with exit code 1, after the report on the others."""
    failed = [(run, error) for run, error in errors.items() if error]
    for run, error in failed:
        typer.secho(f"failed: {run}: {error}", err=True, fg=typer.colors.RED)
    if failed:
        raise typer.Exit(1)
