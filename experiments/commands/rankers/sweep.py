"""`dashclip sweep`: variants x seeds, and the table that compares them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.commands.options import MLFLOW, MLFLOW_EXPERIMENT, tracker_of

if TYPE_CHECKING:
    from experiments.runtime.job_pool import JobProgress
    from experiments.runtime.mlflow_tracker import MlflowTracker
    from experiments.runtime.parts import Part
    from experiments.sweeps.sweep import SweepConfig

#: In the sweep's folder: where each run was when, and what failed.
LOG = "sweep.log"


def sweep(
    config: Annotated[Path, typer.Argument(help="TOML file of a sweep.")],
    out: Annotated[Path, typer.Argument(help="Folder for the runs and the report.")],
    processes: Annotated[
        int | None, typer.Option(min=1, help="Runs at the same time; one per core by default.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each run.")] = 1,
    mlflow: MLFLOW = None,
    mlflow_experiment: MLFLOW_EXPERIMENT = "dashclip",
    part: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Train the I-th of N parts of the runs, as one job of an array."),
    ] = None,
) -> None:
    """Train every variant with every seed and compare them with intervals.

    What every variant reads is checked before the first training. Finished runs are kept and interrupted ones
    resumed, so the same command continues a stopped sweep; given twice at the same time, the two share the
    runs. OUT/sweep.log has a line now and then for each run, and at once for one that fails.
    `dashclip report OUT` writes the report again without training. With --mlflow the sweep is a run of MLflow
    that its runs are nested in. With --part the report is left to the part that ends last.

    Examples: `dashclip sweep my_sweep.toml runs/my_sweep`, `dashclip sweep my_sweep.toml OUT --part 2/8`
    """
    from experiments.commands.rankers.report import report
    from experiments.config import load_config
    from experiments.runtime.parts import WHOLE, Part
    from experiments.sweeps.sweep import SweepConfig, plan
    from ranking.run import is_finished

    own = Part.parse(part) if part else WHOLE
    settings, command = load_config(config, SweepConfig), f"dashclip sweep {config} {out}"
    tracker = tracker_of(mlflow, mlflow_experiment)
    errors = run_sweep(settings, out, processes, command, threads=threads, tracker=tracker, part=own)
    left = [run for run in plan(settings, out) if not is_finished(run.folder)]
    if left and own.count > 1:
        typer.echo(
            f"part {own} has ended; {len(left)} runs of the sweep are not finished yet, such as "
            f"{left[0].name}. The part that ends last writes the report; `dashclip report {out}` does at any "
            "time"
        )
    else:
        report(out)
    exit_if_failed(errors)


def run_sweep(
    config: "SweepConfig",
    out: Path,
    processes: int | None,
    command: str,
    *,
    threads: int = 1,
    tracker: "MlflowTracker | None" = None,
    part: "Part | None" = None,
) -> dict[Path, str | None]:
    """Execute the sweep behind one progress bar a running run and one for all, with lines in `LOG`."""
    from experiments.runtime.parts import WHOLE
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from experiments.sweeps.sweep import execute_sweep, plan
    from ranking.run import is_finished

    part = part or WHOLE
    runs = part.of(plan(config, out))
    ended = {run.name for run in runs if is_finished(run.folder)}
    with progress_bars(Console(), log=out / LOG) as bars:

        def on_progress(job: "JobProgress") -> None:
            bars.job(job)
            # One whose process died, or that another process trained, may begin once more.
            (ended.add if job.ended else ended.discard)(job.name)
            bars(f"sweep {config.name}", len(ended), len(runs), "")

        return execute_sweep(
            config,
            out,
            processes=processes,
            threads=threads,
            command=command,
            on_progress=on_progress,
            tracker=tracker,
            part=part,
        )


def exit_if_failed(errors: Mapping[Any, str | None]) -> None:
    """Name the runs that failed and end with exit code 1, after the report on the others."""
    failed = [(run, error) for run, error in errors.items() if error]
    for run, error in failed:
        typer.secho(f"failed: {run}: {error}", err=True, fg=typer.colors.RED)
    if failed:
        raise typer.Exit(1)
