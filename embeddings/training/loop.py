"""The training loop of both stages: warm-up and cosine, accumulation, bf16, DDP, early stop, exact resume.

A stage is a `Task`: a module whose forward returns named losses, the batches of an epoch, and an evaluation.
On one CPU thread a run that was killed and resumed ends with the same bits as one that was not.
"""

import math
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from embeddings.training.base_loop import TrainingDivergedError, TrainingLoop, autocast, without_denormals
from embeddings.training.checkpoint import Checkpoint, CheckpointError
from embeddings.training.evaluation import learned_nothing
from embeddings.training.precision import Precision, resolve_precision
from embeddings.training.ranks import Ranks, sum_over_ranks
from embeddings.training.run_log import LOG_EVERY_STEPS, TrainingLog
from embeddings.training.step_numbers import NumbersOnTheWay, StepNumbers
from features.artifacts import StrictModel
from features.inputs.shares import rounded_down

#: Norm above which a step's gradient is scaled down; a guard against single bad batches.
GRADIENT_NORM = 5.0

Share = Annotated[float, Field(ge=0, le=1)]


class OptimizerConfig(StrictModel):
    """AdamW with linear warm-up and cosine decay to a share of the peak."""

    #: Passes over the training rows.
    epochs: Annotated[int, Field(ge=1)]
    #: Optimizer steps at most, where a pass over all rows would take too long; the learning rate falls until
    #: the last of them, and an evaluation follows it. None sets no limit.
    max_steps: Annotated[
        Annotated[int, Field(ge=1)] | None, Field(exclude_if=lambda steps: steps is None)
    ] = None
    #: Rows of one optimizer step, over all ranks and micro-batches.
    batch_size: Annotated[int, Field(ge=2)]
    #: Micro-batches of one optimizer step: each contrasts only its own rows.
    accumulation: Annotated[int, Field(ge=1)] = 1
    #: Peak learning rate of AdamW.
    learning_rate: Annotated[float, Field(gt=0)]
    #: Share of all steps in which the learning rate rises to its peak.
    warmup_share: Share = 0.1
    #: Share of the peak at the last step.
    final_share: Share = 0.01
    #: Of AdamW; biases and norms have none.
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    #: Type of the passes; losses stay in float32. "auto" is bfloat16 where the machine has units for it.
    precision: Precision = "float32"
    #: Evaluations an epoch, evenly spread; the last one is at its end.
    evaluations_per_epoch: Annotated[int, Field(ge=1)] = 1
    #: Stop after this many evaluations without a new best.
    patience: Annotated[int, Field(ge=1)] = 3
    #: Steps between checkpoints, from which a killed run continues.
    checkpoint_every_steps: Annotated[int, Field(ge=1)] = 200
    #: Of batches, augmentation and whatever else the stage draws.
    seed: int = 0

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size must be a multiple of accumulation, got {self.batch_size} and "
                f"{self.accumulation}"
            )
        return self


class Task(Protocol):
    """One stage, as the loop sees it."""

    #: What it is called and what a row is, where people read of its progress: "stage 1", "products".
    title: str
    rows_name: str

    @property
    def module(self) -> nn.Module:
        """What computes the losses, their mean over ranks being that of the global micro-batch."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""

    @property
    def batch_rows(self) -> int:
        """Rows of one optimizer step, over all ranks and micro-batches."""

    def micro_batches(self, epoch: int, first_step: int) -> Generator[Any, None, None]:
        """This rank's micro-batches of the steps `first_step` ... of an epoch, in a fixed order."""

    def before_step(self, step: int) -> None:
        """What happens to the module before the forward passes of a step."""

    def evaluate(self) -> dict[str, float]:
        """Measures on held-out rows; `loss` decides on the best weights, lower is better.

        A measure whose chance level is known has that beside it (`embeddings.training.evaluation`).
        """


@dataclass(frozen=True)
class TrainingOutcome:
    """How a run went."""

    steps: int
    best_step: int
    best: dict[str, float]
    #: One entry an evaluation: step, training loss since the last one, measures.
    history: list[dict[str, float]]
    stopped_early: bool
    rows_per_second: float
    #: By processor time, which other work on the machine does not stretch; both rates count evaluations in.
    rows_per_cpu_second: float


@dataclass(frozen=True)
class Report:
    """What a progress display may show after a step."""

    title: str
    rows_name: str
    step: int
    total_steps: int
    losses: dict[str, float]
    rows_per_second: float
    evaluation: dict[str, float] | None
    #: After the last step: what the stage has not learned, if there is something.
    remark: str | None = None


def learning_rate_share(step: int, *, total: int, warmup: int, final_share: float) -> float:
    """Share of the peak learning rate at a step: linear up, then half a cosine down to `final_share`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    turn = (step - warmup) / max(1, total - warmup)
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * turn))


def trained_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What is trained, by name: all that is not frozen."""
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def rows_of_a_step(config: OptimizerConfig, available: int, *, ranks: Ranks, fewest: int = 1) -> int:
    """The batch size, or the rows there are if those are fewer, rounded down to equal micro-batches.

    Args:
        fewest: rows that a micro-batch of all ranks must have.

    Raises:
        ValueError: the ranks do not divide the micro-batches, or there are too few rows.
    """
    parts = config.accumulation * ranks.count
    if config.batch_size % parts:
        raise ValueError(
            f"batch_size must be a multiple of accumulation times ranks, got {config.batch_size} for "
            f"{config.accumulation} micro-batches on {ranks.count} ranks"
        )
    rows = min(config.batch_size, available) // parts * parts
    if rows // config.accumulation < max(fewest, ranks.count):
        raise ValueError(
            f"{available} training rows are too few for {config.accumulation} micro-batches on {ranks.count} "
            "ranks; lower accumulation or the number of ranks"
        )
    return rows


def train(
    task: Task,
    folder: Path,
    *,
    config: OptimizerConfig,
    fingerprint: str,
    ranks: Ranks | None = None,
    progress: Callable[[Report], None] | None = None,
    log: TrainingLog | None = None,
) -> TrainingOutcome:
    """Train until the epochs or the patience end; leaves the best weights in the module.

    `folder` holds the checkpoints; what an earlier call left there is resumed if its fingerprint is the same.

    Args:
        fingerprint: names config and inputs: a run resumes only its own checkpoints.
        log: where numbers go; nowhere if None.

    Raises:
        TrainingDivergedError: a loss or a gradient is not finite; names the step. All ranks raise it alike,
            on a GPU some steps later, but before any evaluation or checkpoint.
        CheckpointError: the checkpoints in `folder` are of another run or damaged.
    """
    log = log or TrainingLog(folder, writes=False)
    return _EncoderLoop(task, folder, config, fingerprint, ranks or Ranks(), progress, log).train()


class _EncoderLoop(TrainingLoop):
    step_digits = 8
    checkpoints_kept = 2  # one more than needed, should the newest turn out damaged

    def __init__(
        self,
        task: Task,
        folder: Path,
        config: OptimizerConfig,
        fingerprint: str,
        ranks: Ranks,
        progress: Callable[[Report], None] | None,
        log: TrainingLog,
    ) -> None:
        self.total_steps = config.epochs * task.steps_per_epoch
        if config.max_steps is not None:
            self.total_steps = min(self.total_steps, config.max_steps)
        every = task.steps_per_epoch / config.evaluations_per_epoch
        evaluation_steps = {
            epoch * task.steps_per_epoch + max(1, round((part + 1) * every))
            for epoch in range(config.epochs)
            for part in range(config.evaluations_per_epoch)
        }
        super().__init__(
            folder,
            evaluation_steps=evaluation_steps | {self.total_steps},
            patience=config.patience,
            writes=ranks.first,
        )
        self.task, self.config = task, config
        self.fingerprint, self.ranks, self.progress, self.log = fingerprint, ranks, progress, log
        self.named = trained_parameters(task.module)
        decayed = [p for _, p in self.named if p.ndim >= 2]
        plain = [p for _, p in self.named if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            fused=True,  # one pass over each parameter: the loop over passes took up to a third of a step
        )
        self.device = self.named[0][1].device
        self.in_bfloat16 = resolve_precision(config.precision, self.device) == "bfloat16"
        # Products without an image leave the cross-attention of a step unused, on some ranks only.
        self.module: nn.Module = (
            DistributedDataParallel(task.module, find_unused_parameters=True, broadcast_buffers=False)
            if ranks.count > 1
            else task.module
        )
        self.warmup = rounded_down(config.warmup_share, self.total_steps)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.measures: dict[str, float] = {}  # of the last evaluation
        self.best, self.best_step = self.measures, 0
        self.best_weights: dict[str, Tensor] = {}
        self.loss_sum, self.loss_steps = 0.0, 0
        self.on_the_way = NumbersOnTheWay(self.device)
        self.names: list[str] = []  # of the numbers of a step, but for the norm of its gradient
        self.read_losses: dict[str, float] = {}  # of the last step that was read

    def train(self) -> TrainingOutcome:
        """The loop; the caller's random state is as before afterwards."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), without_denormals():
            self.resume()
            self.started, self.first_step = time.perf_counter(), self.step
            cpu_started = time.process_time()
            while self.step < self.total_steps and not self.stopped:
                self._run_epoch()
            rate = self._rows_per(time.perf_counter() - self.started)
            cpu_rate = self._rows_per(time.process_time() - cpu_started)
        weights = self.task.module.state_dict()
        for name, value in self.best_weights.items():
            weights[name].copy_(value)
        return TrainingOutcome(
            steps=self.step,
            best_step=self.best_step,
            best=self.best,
            history=self.history,
            stopped_early=self.step < self.total_steps,
            rows_per_second=rate,
            rows_per_cpu_second=cpu_rate,
        )

    @property
    def losses(self) -> list[float]:
        return [entry["loss"] for entry in self.history]

    def _run_epoch(self) -> None:
        epoch, offset = divmod(self.step, self.task.steps_per_epoch)
        stop = min(self.task.steps_per_epoch, offset + self.total_steps - self.step)
        with closing(self.task.micro_batches(epoch, offset)) as batches:
            for _ in range(offset, stop):
                self._one_step(batches)
                self.after_step(self.step, checkpoint=self.step % self.config.checkpoint_every_steps == 0)
                if self.progress and self.ranks.first:
                    names = self.task.title, self.task.rows_name
                    rate = self._rows_per(time.perf_counter() - self.started)
                    evaluation = self.measures if self.step in self.evaluation_steps else None
                    ended = self.stopped or self.step == self.total_steps
                    remark = learned_nothing(self.task.title, self.best) if ended else None
                    self.progress(
                        Report(
                            *names, self.step, self.total_steps, self.read_losses, rate, evaluation, remark
                        )
                    )
                if self.stopped:
                    break

    def _rows_per(self, seconds: float) -> float:
        return (self.step - self.first_step) * self.task.batch_rows / max(seconds, 1e-9)

    def _one_step(self, batches: Generator[Any, None, None]) -> None:
        # Dropout draws anew for each step and rank, so that a resumed run draws what a whole one does.
        draw = np.random.default_rng((self.config.seed, self.step, self.ranks.rank))
        torch.manual_seed(int(draw.integers(2**62)))
        share = self._learning_rate_share(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * share
        self.task.module.train()
        self.task.before_step(self.step)
        sums: dict[str, Tensor] = {}
        for micro in range(self.config.accumulation):
            with self._no_sync(micro):
                with autocast(self.device, self.config.precision):
                    parts = self.module(next(batches))
                (parts["loss"] / self.config.accumulation).backward()
            for name, value in parts.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
        shared = sum_over_ranks(torch.stack(list(sums.values())), self.ranks)
        means = shared / (self.config.accumulation * self.ranks.count)
        norm = nn.utils.clip_grad_norm_([parameter for _, parameter in self.named], GRADIENT_NORM)
        self.names = list(sums)
        self._read(self.on_the_way.note(self.step, torch.cat([means, norm.reshape(1).to(means)])))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def _read(self, arrived: list[StepNumbers]) -> None:
        """Check, add up and log the losses of steps that have arrived.

        Raises:
            TrainingDivergedError: a loss or the norm of a gradient is no number.
        """
        for found in arrived:
            *means, norm = found.numbers_K
            losses = dict(zip(self.names, means, strict=True))
            step = found.step + 1
            for what, value in (("loss", losses["loss"]), ("gradient norm", norm)):
                if not math.isfinite(value):
                    raise TrainingDivergedError(
                        f"the {what} of step {step} is {value} ({losses}); lower learning_rate, or use "
                        'precision = "float32"'
                    )
            self.loss_sum += losses["loss"]
            self.loss_steps += 1
            self.read_losses = losses
            if step % LOG_EVERY_STEPS == 0:
                named = {f"train/{name}": value for name, value in losses.items()}
                share = self._learning_rate_share(found.step)
                self.log.step({**named, "train/learning_rate_share": share}, step)

    def _learning_rate_share(self, step: int) -> float:
        return learning_rate_share(
            step, total=self.total_steps, warmup=self.warmup, final_share=self.config.final_share
        )

    def _no_sync(self, micro: int) -> AbstractContextManager[None]:
        last = micro == self.config.accumulation - 1
        if last or not isinstance(self.module, DistributedDataParallel):
            return nullcontext()
        return self.module.no_sync()

    def evaluate(self) -> None:
        self._read(self.on_the_way.settle())
        self.task.module.eval()
        with torch.no_grad(), autocast(self.device, self.config.precision):
            measures = self.task.evaluate()
        if not math.isfinite(measures["loss"]):
            raise TrainingDivergedError(
                f"the evaluation loss after step {self.step} is {measures['loss']} ({measures}); lower "
                'learning_rate, or use precision = "float32"'
            )
        train_loss = self.loss_sum / max(1, self.loss_steps)
        self.history.append({"step": self.step, "train_loss": train_loss, **measures})
        named = {f"evaluation/{name}": value for name, value in measures.items()}
        self.log.evaluation({"train/mean_loss": train_loss, **named}, self.step)
        self.loss_sum, self.loss_steps = 0.0, 0
        self.measures = measures
        if self.since_best == 0:
            self.best, self.best_step = measures, self.step
            trained = {name for name, _ in self.named}
            self.best_weights = {
                name: value.detach().clone()
                for name, value in self.task.module.state_dict().items()
                if name in trained
            }

    def save(self, name: str) -> None:
        """Write a checkpoint, from the first rank; all know by then whether a loss was no number."""
        self._read(self.on_the_way.settle())
        super().save(name)

    def state(self) -> Checkpoint:
        optimizer = {
            f"{name}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
            for name, parameter in self.named
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        return Checkpoint(
            {"module": self.task.module.state_dict(), "optimizer": optimizer, "best": self.best_weights},
            progress={
                "fingerprint": self.fingerprint,
                "bfloat16": self.in_bfloat16,
                "step": self.step,
                "history": self.history,
                "best": self.best,
                "best_step": self.best_step,
                "since_best": self.since_best,
                "loss_sum": self.loss_sum,
                "loss_steps": self.loss_steps,
            },
        )

    def restore(self, saved: Checkpoint, source: Path) -> None:
        if saved.progress["fingerprint"] != self.fingerprint:
            raise CheckpointError(
                f"{source} is of a run with other settings or inputs; delete {source.parent} to start again, "
                "or choose another output folder"
            )
        if saved.progress.get("bfloat16", self.in_bfloat16) != self.in_bfloat16:  # older ones do not say
            before, now = ("bfloat16", "float32") if saved.progress["bfloat16"] else ("float32", "bfloat16")
            raise CheckpointError(
                f'{source} was trained in {before}, but precision = "auto" is {now} on this machine; set '
                f'precision = "{before}", or delete {source.parent} to start again'
            )
        self.task.module.load_state_dict(saved.parts["module"])
        for name, parameter in self.named:
            prefix = f"{name}."
            own = {
                key.removeprefix(prefix): value
                for key, value in saved.parts["optimizer"].items()
                if key.startswith(prefix) and "." not in key.removeprefix(prefix)
            }
            if own:
                # the fused kernel keeps its step counter beside the parameter, wherever that is
                self.optimizer.state[parameter] = {
                    key: value.to(parameter.device) for key, value in own.items()
                }
        self.best_weights = {name: value.to(self.device) for name, value in saved.parts["best"].items()}
        for name in ("step", "history", "best", "best_step", "loss_sum", "loss_steps"):
            setattr(self, name, saved.progress[name])
        self.log.resume_at(self.step)
