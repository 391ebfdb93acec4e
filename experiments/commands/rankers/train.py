"""`dashclip train`: one run of one variant."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.commands.options import MLFLOW, MLFLOW_EXPERIMENT, tracker_of

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from ranking.sharded.plan import TablePlace
    from ranking.train import TrainingProgress


def train(
    config: Annotated[Path, typer.Argument(help="TOML file of a run (see `dashclip config show run`).")],
    out: Annotated[Path, typer.Argument(help="Run folder to write.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in OUT.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, or cuda:1.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores by default.")] = None,
    mlflow: MLFLOW = None,
    mlflow_experiment: MLFLOW_EXPERIMENT = "dashclip",
) -> None:
    """Train one ranker and evaluate it on the test days.

    OUT receives the resolved config, checkpoints, TensorBoard scalars (`tensorboard --logdir OUT`), test
    predictions and metrics. With --mlflow, config and evaluations are a run of MLflow as well. Interrupted at
    any point, the same command with `--resume` ends with the same bits.

    Started by `torchrun --nproc-per-node N -m experiments`, N ranks share the tables and each batch
    ([sharding] of the config, docs/scaling.md); threads are those of a rank then.

    Example: `dashclip train run.toml runs/first`
    """
    import torch
    from torchrec.distributed.comm import get_local_size

    from experiments.config import load_config
    from experiments.runtime.environment import environment
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.ranks import device_of_rank, one_of_ranks
    from experiments.runtime.terminal import Console
    from experiments.sweeps.sweep import loss_and_rate
    from features.machine import usable_cores
    from ranking.run import RunConfig, execute_run

    chosen = _device(device)
    with one_of_ranks(chosen) as ranks:
        run, tracker = load_config(config, RunConfig), tracker_of(mlflow, mlflow_experiment)
        torch.set_num_threads(threads or max(1, usable_cores() // get_local_size(ranks.count)))
        console = Console(quiet=not ranks.first)
        with progress_bars(console) as bars:

            def on_step(training: "TrainingProgress", total_steps: int) -> None:
                bars("training", training.step, total_steps, loss_and_rate(training))

            metrics = execute_run(
                run,
                out,
                environment=environment(),
                device=device_of_rank(chosen, ranks),
                resume=resume,
                on_step=on_step,
                tracker=tracker,
                ranks=ranks,
                on_plan=lambda places: console.print(_plan_table(places)),
            )
    test = metrics["test"]
    for kind, coverage in metrics["coverage"].items():
        console.print(f"{kind} vectors: {coverage}")
    console.print(
        f"test: AUC {test['auc']:.4f}  normalised LogLoss {test['norm_log_loss']:.4f}  "
        f"calibration {test['calibration']:.3f}  rows {test['rows']:,}"
    )
    console.print(f"written to {out}")


def _plan_table(places: "Sequence[TablePlace]") -> "Table":
    """Where each table lies, and what each rank holds of all."""
    from rich.table import Table

    table = Table("table", "sharding", "ranks", "GB a rank", title="Tables", title_justify="left")
    held: dict[int, float] = {}
    for place in places:
        ranks = sorted(place.gb_of)
        shown = f"{ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else f"{ranks[0]}"
        table.add_row(place.table, place.sharding, shown, f"{max(place.gb_of.values()):.3g}")
        for rank, size in place.gb_of.items():
            held[rank] = held.get(rank, 0.0) + size
    if held:
        table.add_section()
        table.add_row(
            "all", "", f"{len(held)} ranks", f"{min(held.values()):.3g} to {max(held.values()):.3g}"
        )
    return table


def _device(name: str) -> "torch.device":
    import torch

    try:
        chosen = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name!r} is not a device; use cpu, cuda or cuda:N") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA device; `dashclip doctor` says why")
    return chosen
