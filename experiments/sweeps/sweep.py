"""Variants x seeds, each in a run folder of its own, over several processes; resumable at any moment.

SWEEP/sweep.json                  what is compared
      <variant>/seed-<n>/         ranking/run.py
"""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from experiments.config import merged, parse_config
from experiments.runtime.environment import environment, usable_cores
from experiments.runtime.job_pool import DIED, Job, OnProgress, run_jobs
from experiments.sweeps.results import Floor
from features.artifacts import atomic_write_json
from features.progress import Progress
from ranking.popularity import popularity_floor_of
from ranking.run import RunConfig, check_both_classes, check_same_run, execute_run, is_finished
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
    #: "popularity" is shrunken product mean + user mean (ranking/popularity.py).
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

    @property
    def name(self) -> str:
        """As progress names it."""
        return f"{self.config.variant} seed {self.config.seed}"


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
) -> dict[Path, str | None]:
    """Run what is not finished yet. Calling again after a kill goes on where it stopped.

    Args:
        processes: runs at the same time; each gets an equal share of the cores as threads.

    Returns:
        What went wrong with each run, by folder in the order of `plan`; None where nothing did. A failed run
        does not stop the others, and leaves `failure.txt` in its folder; one whose process died is tried once
        more.

    Raises:
        ValueError: `out` holds finished runs of another config or of other inputs, or nothing can be learned
            or measured on the feature set.
    """
    planned = plan(config, out)
    check_both_classes(config.features)
    for run in planned:
        if is_finished(run.folder):
            check_same_run(run.folder, run.config)
    atomic_write_json(out / "sweep.json", _record(config, out, command))
    processes, threads = share_of_cores(processes)
    errors: dict[str, str | None] = {}
    waiting = [run for run in planned if not is_finished(run.folder)]
    for _ in range(2):
        if waiting:
            jobs = [job_of(run) for run in waiting]
            errors |= run_jobs(jobs, processes=processes, threads=threads, on_progress=on_progress)
            waiting = [run for run in waiting if errors[run.name] == DIED]
    return {run.folder: errors.get(run.name) for run in planned}


def share_of_cores(processes: int | None) -> tuple[int, int]:
    """Runs at the same time, one a core if None, and the threads of each: an equal share of the cores."""
    cores = usable_cores()
    processes = processes or cores
    return processes, max(1, cores // processes)


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
    return Floor(name="shrunken product mean + user mean", auc=found.auc, norm_logloss=found.norm_logloss)


def job_of(run: PlannedRun) -> Job:
    """Trains the run, or goes on with it."""
    return Job(run.name, partial(_train, run), run.folder)


def _train(run: PlannedRun, progress: Progress) -> None:
    def on_step(training: TrainingProgress, total_steps: int) -> None:
        if training.step % 10 == 0:
            progress(loss_and_rate(training), training.step, total_steps)

    execute_run(run.config, run.folder, environment=environment(), resume=True, on_step=on_step)


def loss_and_rate(training: TrainingProgress) -> str:
    """Mean loss and rows a second so far, as a progress bar shows them."""
    loss = training.loss_sum / max(1, training.loss_rows)
    return f"loss {loss:.4f}  {training.rows / max(training.seconds, 1e-9):,.0f} rows/s"
