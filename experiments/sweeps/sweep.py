"""Variants x seeds, each in a run folder of its own, over several processes; resumable at any moment.

SWEEP/sweep.json                  what is compared
      <variant>/seed-<n>/         ranking/run.py
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from experiments.config import merged, parse_config
from experiments.runtime.environment import environment, usable_cores
from experiments.runtime.job_pool import end_with_parent
from experiments.runtime.quiet import quiet_imports
from experiments.sweeps.results import Floor
from features.artifacts import atomic_write_json
from ranking.popularity import popularity_floor_of
from ranking.run import RunConfig, check_same_run, execute_run, is_finished
from ranking.train import TrainingProgress


class VariantConfig(BaseModel):
    """What a variant has of its own; `ranker` and `training` are merged over the sweep's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str | None = None
    ranker: dict[str, Any] = {}
    training: dict[str, Any] = {}
    product_table: Path | None = None
    query_table: Path | None = None


class SweepConfig(BaseModel):
    """What is compared on which data. Relative paths start at the current folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    baseline: str = "dcn"
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (1, 2, 3, 4, 5)
    features: Path
    product_table: Path | None = None
    query_table: Path | None = None
    #: True click probabilities of a simulated log: impression_id, click_probability.
    truth: Path | None = None
    simulated: bool = False
    #: A score without any model, shown beside the variants.
    #: "popularity" is item mean + user mean (ranking/popularity.py).
    floor: Literal["popularity"] | None = None
    ranker: dict[str, Any] = {}
    training: dict[str, Any] = {}
    variants: Annotated[dict[str, VariantConfig], Field(min_length=1)]

    @model_validator(mode="after")
    def _baseline_is_a_variant(self) -> Self:
        if self.baseline not in self.variants:
            raise ValueError(f"baseline {self.baseline!r} is not one of the variants {list(self.variants)}")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must differ from each other, got {self.seeds}")
        return self


@dataclass(frozen=True)
class PlannedRun:
    """One cell of the sweep."""

    config: RunConfig
    folder: Path


@dataclass(frozen=True)
class RunOutcome:
    """How one run ended; `error` is None when it finished."""

    folder: Path
    error: str | None


@dataclass(frozen=True)
class RunProgress:
    """Where a run is; `ended` with its last message, whether it finished or failed."""

    name: str
    step: int = 0
    total_steps: int = 0
    rows_per_s: float = 0.0
    loss: float = float("nan")
    ended: bool = False


OnProgress = Callable[[RunProgress], None]


def plan(config: SweepConfig, out: Path) -> list[PlannedRun]:
    """Every run of the sweep, seeds outermost: a sweep that is stopped early still compares all variants.

    Raises:
        ConfigError: the merged settings of a variant are not a valid run.
    """
    planned = []
    for seed in config.seeds:
        for name, variant in config.variants.items():
            content = {
                "variant": name,
                "seed": seed,
                "features": config.features,
                "product_table": variant.product_table or config.product_table,
                "query_table": variant.query_table or config.query_table,
                "ranker": merged(config.ranker, variant.ranker),
                "training": merged(config.training, variant.training),
            }
            run = parse_config(content, RunConfig, where=f"variant {name!r} of sweep {config.name!r}")
            planned.append(PlannedRun(run, out / name / f"seed-{seed}"))
    return planned


def execute_sweep(
    config: SweepConfig,
    out: Path,
    *,
    processes: int | None = None,
    command: str | None = None,
    on_progress: OnProgress | None = None,
) -> list[RunOutcome]:
    """Run what is not finished yet. Calling again after a kill goes on where it stopped.

    Args:
        processes: runs at the same time; each gets an equal share of the cores as threads.

    Returns:
        One outcome a run, in the order of `plan`. A failed run does not stop the others, and leaves
        `failure.txt` in its folder; runs that a dying worker took along are tried once more.

    Raises:
        ValueError: `out` holds finished runs of another config or of other inputs.
    """
    planned = plan(config, out)
    for run in planned:
        if is_finished(run.folder):
            check_same_run(run.folder, run.config)
    atomic_write_json(out / "sweep.json", _record(config, out, command))
    processes, threads = share_of_cores(processes)
    errors: dict[Path, str | None] = {run.folder: None for run in planned}
    waiting = [run for run in planned if not is_finished(run.folder)]
    for _ in range(2):
        if waiting:
            errors |= _execute_all(waiting, min(processes, len(waiting)), threads, on_progress)
            waiting = [run for run in waiting if errors[run.folder] == _WORKER_DIED]
    return [RunOutcome(run.folder, errors[run.folder]) for run in planned]


def share_of_cores(processes: int | None) -> tuple[int, int]:
    """Runs at the same time, one a core if None, and the threads of each: an equal share of the cores."""
    cores = usable_cores()
    processes = processes or cores
    return processes, max(1, cores // processes)


_WORKER_DIED = "its worker process died (out of memory?); run the sweep again to resume"


def _execute_all(
    runs: list[PlannedRun], processes: int, threads: int, on_progress: OnProgress | None
) -> dict[Path, str | None]:
    """Errors by run folder, None for a finished run."""
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=_start_worker, initargs=(messages, threads)
    ) as pool:
        futures = {pool.submit(_run_in_worker, run): run for run in runs}
        _relay(messages, futures, on_progress)
        return {run.folder: _error(future) for future, run in futures.items()}


def _record(config: SweepConfig, out: Path, command: str | None) -> dict[str, Any]:
    content = config.model_dump(mode="json")
    return {
        "name": config.name,
        "baseline": config.baseline,
        "variants": list(config.variants),
        "titles": {name: variant.title for name, variant in config.variants.items() if variant.title},
        "seeds": list(config.seeds),
        "simulated": config.simulated,
        # relative to the sweep's folder, so that both can be moved together
        "truth": os.path.relpath(config.truth, out) if config.truth else None,
        "features": content["features"],
        "floor": _floor(config.features).model_dump() if config.floor else None,
        "data": content["features"],
        "command": command,
        "config": content,
        "environment": environment(),
    }


def _floor(features: Path) -> Floor:
    found = popularity_floor_of(features)
    return Floor(name="item mean + user mean", auc=found.auc, norm_logloss=found.norm_logloss)


def _relay(
    messages: Any, futures: dict[Future[str | None], PlannedRun], on_progress: OnProgress | None
) -> None:
    """Pass the workers' progress on until all are done and the last message is read."""
    while True:
        done = all(future.done() for future in futures)
        try:
            message = messages.get(timeout=0.2)
        except Empty:
            if done:
                return
            continue
        if on_progress:
            on_progress(message)


def _error(future: Future[str | None]) -> str | None:
    try:
        return future.result()
    except BrokenProcessPool:
        return _WORKER_DIED


_messages: Any = None  # the worker's end of the progress queue, set once by _start_worker


def _start_worker(messages: Any, threads: int) -> None:
    global _messages
    quiet_imports()
    import torch

    _messages = messages
    torch.set_num_threads(threads)
    end_with_parent()


def _run_in_worker(run: PlannedRun) -> str | None:
    return train_planned(run, _messages.put)


def train_planned(run: PlannedRun, on_progress: OnProgress) -> str | None:
    """Train one run in this process, or go on with it.

    Returns:
        What went wrong, also in `failure.txt`; None when the run is finished.
    """
    name = f"{run.config.variant} seed {run.config.seed}"

    def on_step(progress: TrainingProgress, total_steps: int) -> None:
        if progress.step % 10 == 0:
            loss = progress.loss_sum / max(1, progress.loss_rows)
            rows_per_s = progress.rows / max(progress.seconds, 1e-9)
            on_progress(RunProgress(name, progress.step, total_steps, rows_per_s, loss))

    failure = run.folder / "failure.txt"
    failure.unlink(missing_ok=True)
    try:
        execute_run(run.config, run.folder, environment=environment(), resume=True, on_step=on_step)
    except Exception as error:  # reported by name; the other runs go on
        run.folder.mkdir(parents=True, exist_ok=True)
        failure.write_text(traceback.format_exc())
        return f"{type(error).__name__}: {error}"
    else:
        return None
    finally:
        on_progress(RunProgress(name, ended=True))
