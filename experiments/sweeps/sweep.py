"""Variants x seeds, each in a run folder of its own, over several processes; resumable at any moment.

Several calls may work on one sweep at the same time: each run is trained by one of them.

SWEEP/sweep.json                  what is compared
      <variant>/seed-<n>/         ranking/run.py
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from embeddings.training.run_log import Tracker, TrainingLog
from experiments.config import KeysOf, merged, parse_config
from experiments.runtime.environment import environment
from experiments.runtime.job_pool import BUSY, DIED, Job, OnProgress, run_jobs
from experiments.runtime.parts import WHOLE, Part
from experiments.sweeps.results import SWEEP, Floor
from features.artifacts import BusyError, atomic_write_json
from features.feature_set import FeatureSet
from features.machine import usable_cores
from features.progress import Progress
from ranking.model import RankerConfig
from ranking.popularity import popularity_floor_of
from ranking.run import (
    RunConfig,
    check_both_classes,
    check_same_run,
    execute_locked_run,
    is_finished,
    open_run,
    run_lock,
)
from ranking.train import TrainingConfig, TrainingProgress

#: How often is looked whether a run that another process trains has ended.
LOOK_EVERY_S = 2.0


class VariantConfig(BaseModel):
    """What a variant has of its own; `ranker` and `training` are merged over the sweep's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: What tables call it; its name if left out.
    title: str | None = None
    #: Keys that differ from the sweep's [ranker].
    ranker: Annotated[dict[str, Any], KeysOf(RankerConfig, otherwise="as the sweep has it")] = {}
    #: Keys that differ from the sweep's [training].
    training: Annotated[dict[str, Any], KeysOf(TrainingConfig, otherwise="as the sweep has it")] = {}
    #: Folder of the product vectors that this variant reads.
    product_table: Path | None = None
    #: Folder of the query vectors that this variant reads.
    query_table: Path | None = None
    #: It knows the simulated truth, as no model of real data can: shown as what could be reached, never as
    #: the best variant.
    ceiling: bool = False


class SweepConfig(BaseModel):
    """What is compared on which data. Relative paths start at the current folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: What the report is called.
    name: str
    #: The variant that all others are compared with.
    baseline: str = "dcn"
    #: A cheap variant that all others are compared with as well.
    second_baseline: str | None = None
    #: Every variant is trained with each of these.
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (1, 2, 3, 4, 5)
    #: Folder of the feature set, made by `dashclip features build`.
    features: Path
    #: Folder of the product vectors, for variants without their own.
    product_table: Path | None = None
    #: Folder of the query vectors, for variants without their own.
    query_table: Path | None = None
    #: True click probabilities of a simulated log: impression_id, click_probability.
    truth: Path | None = None
    #: Whether reports must say that the log is simulated.
    simulated: bool = False
    #: A score without any model, shown beside the variants.
    #: "popularity" is shrunken product mean + user mean (ranking/popularity.py).
    floor: Literal["popularity"] | None = None
    #: Sizes of the ranker, common to all variants.
    ranker: Annotated[dict[str, Any], KeysOf(RankerConfig)] = {}
    #: How rankers are trained, common to all variants.
    training: Annotated[dict[str, Any], KeysOf(TrainingConfig)] = {}
    #: What is compared, by name.
    variants: Annotated[dict[str, VariantConfig], Field(min_length=1)]

    @model_validator(mode="after")
    def _baseline_is_a_variant(self) -> Self:
        if self.baseline not in self.variants:
            raise ValueError(f"baseline {self.baseline!r} is not one of the variants {list(self.variants)}")
        if self.second_baseline is not None and (
            self.second_baseline not in self.variants or self.second_baseline == self.baseline
        ):
            others = [name for name in self.variants if name != self.baseline]
            raise ValueError(
                f"second_baseline must be one of the variants besides the baseline, {others}, "
                f"got {self.second_baseline!r}"
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must differ from each other, got {self.seeds}")
        return self

    def moved(self, folder: Path) -> "SweepConfig":
        """The same sweep in `folder`: what lies beside the features now is looked for beside them there.

        Raises:
            ValueError: something that it reads does not lie in the folder of the features.
        """
        home = self.features.parent

        def there(path: Path | None) -> Path | None:
            if path is not None and not path.is_relative_to(home):
                raise ValueError(
                    f"sweep {self.name!r} reads {path}, which is not in {home} as its features are, so the "
                    "sweep cannot be moved to another folder"
                )
            return path and folder / path.relative_to(home)

        def moved(owner: "SweepConfig | VariantConfig", names: Sequence[str]) -> dict[str, Any]:
            return {name: there(getattr(owner, name)) for name in names}

        tables = ("product_table", "query_table")
        variants = {
            name: variant.model_copy(update=moved(variant, tables)) for name, variant in self.variants.items()
        }
        return self.model_copy(update={**moved(self, ("features", "truth", *tables)), "variants": variants})

    @model_validator(mode="after")
    def _ceilings_know_a_simulated_truth(self) -> Self:
        if self.ceilings and not self.simulated:
            raise ValueError(
                f"variants {self.ceilings} are ceilings, which know the simulated truth, but the sweep is "
                "not simulated; take ceiling = true out, or set simulated = true"
            )
        for name in (self.baseline, self.second_baseline):
            if name in self.ceilings:
                raise ValueError(
                    f"{name!r} is a baseline, so it cannot be a ceiling; take ceiling = true out"
                )
        return self

    @property
    def ceilings(self) -> list[str]:
        """Names of the variants that know the truth."""
        return [name for name, variant in self.variants.items() if variant.ceiling]


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


def tables_read(runs: Iterable[PlannedRun]) -> dict[str, Path | None]:
    """Of each variant the folder with the tables that its rankers read; None if they read none."""
    return {
        run.config.variant: run.config.product_table.parent
        if run.config.ranker.semantic and run.config.product_table
        else None
        for run in runs
    }


def execute_sweep(
    config: SweepConfig,
    out: Path,
    *,
    processes: int | None = None,
    threads: int = 1,
    command: str | None = None,
    on_progress: OnProgress | None = None,
    tracker: Tracker | None = None,
    part: Part = WHOLE,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[Path, str | None]:
    """Run what is not finished yet. Calling again after a kill goes on where it stopped.

    Runs that another process trains are left to it, and waited for at the end; one that it leaves unfinished
    is trained here.

    Args:
        processes: runs at the same time; as many as the cores have threads for if None.
        threads: of each run. Its last digits may depend on them, never on `processes`.
        tracker: gets a run for the sweep, in which those of the rankers are nested.
        part: whose runs are trained here; the others are left alone.
        sleep: called with seconds while another process trains what is left.

    Returns:
        What went wrong with each run of the part, by folder in the order of `plan`; None where nothing did. A
        failed run does not stop the others, and leaves `failure.txt` in its folder; one whose process died is
        tried once more.

    Raises:
        ValueError: a run cannot open what it reads, nothing can be learned or measured on the feature set, or
            `out` holds runs of another config or of other inputs. No run was trained then.
    """
    sweep = plan(config, out)
    planned = part.of(sweep)
    waiting = [run for run in planned if not is_finished(run.folder)]
    check_inputs(waiting)
    for run in sweep:
        check_same_run(run.folder, run.config)
    write_record(config, out, command)
    processes = processes_of(processes, threads=threads)
    errors: dict[str, str | None] = {}
    died, elsewhere = set[str](), list[PlannedRun]()
    params = config.model_dump(mode="json")
    with TrainingLog(out, tracker=tracker, name=f"sweep {config.name}", params=params) as log:
        while waiting or elsewhere:
            if not waiting:
                waiting = _wait_for_one(elsewhere, sleep)
                elsewhere = [run for run in elsewhere if run not in waiting]
            jobs = [job_of(run, tracker=log.nested()) for run in waiting]
            found = run_jobs(jobs, processes=processes, threads=threads, on_progress=on_progress)
            elsewhere += [run for run in waiting if found[run.name] == BUSY]
            waiting = [run for run in waiting if found[run.name] == DIED and run.name not in died]
            died |= {run.name for run in waiting}
            errors |= found
    return {run.folder: errors.get(run.name) for run in planned}


def check_inputs(runs: Sequence[PlannedRun]) -> None:
    """Open what each of the runs reads and build its ranker, once a variant.

    Raises:
        ValueError: names each variant that cannot be trained, and why.
    """
    problems = []
    for variant in dict.fromkeys(run.config.variant for run in runs):
        config = next(run.config for run in runs if run.config.variant == variant)
        try:
            check_both_classes(config.features)
            open_run(config)
        except (ValueError, OSError) as problem:
            problems.append(f"variant {variant!r}: {problem}")
    if problems:
        raise ValueError(f"nothing was trained, as inputs are missing or wrong: {'; '.join(problems)}")


def processes_of(processes: int | None, *, threads: int = 1) -> int:
    """Runs at the same time: as asked for, or as many as the cores have threads for."""
    return processes or max(1, usable_cores() // threads)


def _wait_for_one(runs: Sequence[PlannedRun], sleep: Callable[[float], None]) -> list[PlannedRun]:
    """Those of the runs that no other process trains any more, once there is one."""
    while not (left := [run for run in runs if not _is_busy(run.folder)]):
        sleep(LOOK_EVERY_S)
    return left


def _is_busy(folder: Path) -> bool:
    try:
        with run_lock(folder):
            return False
    except BusyError:
        return True


def write_record(config: SweepConfig, out: Path, command: str | None) -> None:
    """Write `sweep.json`, which says what the runs in `out` are and where their inputs lie."""
    content = config.model_dump(mode="json")
    record = {
        "name": config.name,
        "baseline": config.baseline,
        "second_baseline": config.second_baseline,
        "ceilings": config.ceilings,
        "variants": list(config.variants),
        "titles": {name: variant.title for name, variant in config.variants.items() if variant.title},
        "seeds": list(config.seeds),
        "simulated": config.simulated,
        "constructed": FeatureSet.open(config.features).manifest.data.constructed,
        # relative to the sweep's folder, so that both can be moved together
        "truth": os.path.relpath(config.truth, out) if config.truth else None,
        "features": content["features"],
        "floor": _floor(config.features).model_dump() if config.floor else None,
        "data": content["features"],
        "command": command,
        "config": content,
        "environment": environment(),
    }
    atomic_write_json(out / SWEEP, record)


def _floor(features: Path) -> Floor:
    found = popularity_floor_of(features)
    return Floor(name="shrunken product mean + user mean", auc=found.auc, norm_logloss=found.norm_logloss)


def job_of(
    run: PlannedRun,
    *,
    name: str | None = None,
    needs: tuple[str, ...] = (),
    tracker: Tracker | None = None,
) -> Job:
    """Trains the run, or goes on with it; nothing is left to do if another process has finished it."""
    train, claim = partial(_train, run, tracker), partial(run_lock, run.folder)
    return Job(name or run.name, train, run.folder, needs, claim=claim)


def _train(run: PlannedRun, tracker: Tracker | None, progress: Progress) -> None:
    if is_finished(run.folder):
        return

    def on_step(training: TrainingProgress, total_steps: int) -> None:
        if training.step % 10 == 0:
            progress(loss_and_rate(training), training.step, total_steps)

    execute_locked_run(
        run.config, run.folder, environment=environment(), resume=True, on_step=on_step, tracker=tracker
    )


def loss_and_rate(training: TrainingProgress) -> str:
    """Mean loss and rows a second so far, as a progress bar shows them.

    After an evaluation on a GPU no loss has arrived yet; until then the mean before it is shown.
    """
    loss = training.loss_sum / max(1, training.loss_rows)
    if not training.loss_rows and training.history:
        loss = training.history[-1].train_loss
    return f"loss {loss:.4f}  {training.rows / max(training.seconds, 1e-9):,.0f} rows/s"
