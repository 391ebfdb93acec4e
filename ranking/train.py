"""Training of a ranker: passes over the training window, stopped early on the validation days.

A checkpoint holds the weights, both optimizers, the loader's position, the random generator and the history;
everything in between is a function of these, so that a resumed run gives the same bits.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from embeddings.training.base_loop import TrainingDivergedError, TrainingLoop, autocast
from embeddings.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from embeddings.training.precision import Precision, resolve_precision
from embeddings.training.ranks import Ranks, decided_by_first, gather_objects
from embeddings.training.run_log import LOG_EVERY_STEPS, TrainingLog
from embeddings.training.step_numbers import NumbersOnTheWay, StepNumbers
from features.artifacts import StrictModel, atomic_write_json
from features.batches.batch import Batch
from features.batches.loader import BatchLoader
from features.batches.streams import StreamLoader
from ranking.checkpoint import WEIGHTS, load_ranker_weights, ranker_weights, whole_weights
from ranking.metrics import log_loss, roc_auc
from ranking.model import Ranker
from ranking.optimizer import OptimizerConfig, RankerOptimizer
from ranking.prediction import predict
from ranking.read_ahead import ahead


class TrainingConfig(StrictModel):
    """How a ranker is trained; the validation days decide when to stop and which weights to keep."""

    #: Impressions of a step.
    batch_size: Annotated[int, Field(ge=1)] = 2048
    #: Passes over the training window, at most.
    max_epochs: Annotated[int, Field(ge=1)] = 3
    #: Looks at the validation days in each pass.
    evaluations_per_epoch: Annotated[int, Field(ge=1)] = 2
    #: Stop after so many evaluations without a lower validation log loss.
    patience: Annotated[int, Field(ge=1)] = 3
    optimizer: OptimizerConfig = OptimizerConfig()
    #: Share of ids that training takes for unknown ones, so that these have a trained embedding.
    id_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.01
    #: "auto" is bfloat16 where the machine has units for it, else float32 (bfloat16 is emulated there).
    precision: Precision = "auto"
    #: A checkpoint is written after every evaluation, and between them every so many minutes.
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 10.0


@dataclass(frozen=True)
class Evaluation:
    """One look at the validation days."""

    step: int
    rows: int
    train_loss: float
    validation_auc: float
    validation_logloss: float


@dataclass
class TrainingProgress:
    """What changes while training; saved in every checkpoint.

    `loss_sum` is over the `loss_rows` since the last evaluation whose losses have been read; on a GPU those
    of the last steps are still on their way.
    """

    step: int = 0
    rows: int = 0
    loss_sum: float = 0.0
    loss_rows: int = 0
    seconds: float = 0.0
    history: list[Evaluation] = field(default_factory=list)
    stopped: bool = False

    @property
    def best(self) -> Evaluation | None:
        """The evaluation with the lowest validation log loss, the first of equals."""
        return min(self.history, key=lambda evaluation: evaluation.validation_logloss, default=None)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "TrainingProgress":
        evaluations = [Evaluation(**evaluation) for evaluation in content["history"]]
        return cls(**{**content, "history": evaluations})


#: Batches to train on; either kind says where it is and goes on from there.
Loader = BatchLoader | StreamLoader
#: Called after every step with (progress, total steps).
OnStep = Callable[[TrainingProgress, int], None]


def train(
    ranker: Ranker,
    config: TrainingConfig,
    *,
    training: Loader,
    validation: BatchLoader,
    folder: Path,
    seed: int,
    device: torch.device | None = None,
    resume: bool = False,
    on_step: OnStep | None = None,
    log: TrainingLog | None = None,
    make_loop: "Callable[..., RankerLoop] | None" = None,
) -> TrainingProgress:
    """Train `ranker` in place; it ends with the weights of the best evaluation.

    Args:
        folder: receives `checkpoints/`, `best/` and `tensorboard/`.
        resume: go on from the newest checkpoint in `folder`, if there is one.
        log: where numbers go; TensorBoard in `folder` alone if None. The caller closes it.
        make_loop: makes the loop of what `RankerLoop` takes; that of one process if None.

    Raises:
        TrainingDivergedError: a loss is NaN or infinite. On a CPU the update is not applied; on a GPU some
            steps more are, before the loss is read, but no evaluation and no checkpoint comes in between.
        UndefinedMetricError: the validation days hold clicks only, or none.
    """
    chosen = device or torch.device("cpu")
    with (
        nullcontext(log) if log is not None else TrainingLog(folder) as opened,
        torch.random.fork_rng(devices=[]),
    ):
        loop = (make_loop or RankerLoop)(
            ranker, config, training, validation, folder, chosen, on_step, opened
        )
        torch.manual_seed(seed)
        if resume:
            loop.resume()
        loop.run()
    return loop.progress


@dataclass(frozen=True)
class _Taken:
    """What of a batch tells why its loss is no number, kept until that has been read."""

    dense_BF: Tensor
    row_B: Tensor


class RankerLoop(TrainingLoop):
    """Steps, evaluations and checkpoints of one run; `train` is the way to use it.

    No step waits for the device: batches are read and pinned ahead, losses are read when they have arrived.
    """

    step_digits = 10
    checkpoints_kept = 1
    #: This process among those that train together; alone unless a subclass says otherwise.
    ranks = Ranks()

    def __init__(
        self,
        ranker: Ranker,
        config: TrainingConfig,
        training: Loader,
        validation: BatchLoader,
        folder: Path,
        device: torch.device,
        on_step: OnStep | None,
        log: TrainingLog,
    ) -> None:
        steps = len(training)  # of an epoch
        parts = config.evaluations_per_epoch
        evaluation_steps = {
            epoch * steps + min(steps, part * -(-steps // parts))
            for epoch in range(config.max_epochs)
            for part in range(1, parts + 1)
        }
        super().__init__(folder / "checkpoints", evaluation_steps=evaluation_steps, patience=config.patience)
        self.ranker = ranker
        self.config = config
        self.training = training
        self.validation = validation
        self.folder = folder
        self.device = device
        self.on_step = on_step
        self.log = log
        self.progress = TrainingProgress()
        self.total_steps = config.max_epochs * steps
        self.optimizer = RankerOptimizer(ranker, config.optimizer, total_steps=self.total_steps)
        self.precision = resolve_precision(config.precision, device)
        self.checkpointed_at = time.monotonic()
        #: Whether a thread reads batches ahead; on a CPU it would take the step's own time.
        self.reads_ahead = device.type != "cpu"
        self.on_the_way = NumbersOnTheWay(device)
        self.taken: dict[int, _Taken] = {}
        #: Where the loader was after each batch that is read and not yet trained on, and after the last one.
        self.positions: deque[dict[str, int]] = deque()
        self.position = training.state_dict()

    @property
    def losses(self) -> list[float]:
        return [evaluation.validation_logloss for evaluation in self.progress.history]

    def restore(self, saved: Checkpoint, source: Path) -> None:
        if WEIGHTS not in saved.parts:
            raise ValueError(
                f"{source} was written under torchrun, whose batches are other ones; go on with `torchrun "
                "--nproc-per-node 1 -m experiments train …`, or train again in another folder"
            )
        self.check_precision(saved, source)
        load_ranker_weights(self.ranker, saved.parts[WEIGHTS], source=source)
        optimizer = saved.parts["optimizer"]
        torch.set_rng_state(optimizer.pop("random/cpu"))
        self.optimizer.load_state_tensors(optimizer)
        self.restore_progress(saved)

    def check_precision(self, saved: Checkpoint, source: Path) -> None:
        if saved.progress["precision"] != self.precision:
            raise ValueError(
                f"{source} was trained in {saved.progress['precision']}, this machine would go on in "
                f"{self.precision}; set training.precision, or train again in another folder"
            )

    def restore_progress(self, saved: Checkpoint) -> None:
        self.training.load_state_dict(saved.progress["loader"])
        self.position = self.training.state_dict()
        self.progress = TrainingProgress.from_json(saved.progress["training"])
        self.log.resume_at(self.progress.step)

    def run(self) -> None:
        while self.progress.step < self.total_steps and not self.stopped:
            self.run_epoch()
        best = self.folder / "best"
        load_ranker_weights(self.ranker, read_checkpoint(best).parts[WEIGHTS], source=best)

    def run_epoch(self) -> None:
        self.ranker.train()
        started = time.monotonic()
        self.positions.clear()
        with closing(self.batches()) as batches:
            for _ in self.steps(batches):
                self.progress.seconds += time.monotonic() - started  # loading included
                if self.on_step:
                    self.on_step(self.progress, self.total_steps)
                self.after_step(self.progress.step, checkpoint=self.checkpoint_due())
                if self.stopped:
                    break
                started = time.monotonic()

    def batches(self) -> Generator[Batch, None, None]:
        """What is left of the epoch, read ahead."""
        located = ((batch, self.training.state_dict()) for batch in self.training)
        with closing(ahead(located, self.device, by_thread=self.reads_ahead)) as ready:
            for batch, position in ready:
                self.positions.append(position)
                yield batch

    def steps(self, batches: Iterator[Batch]) -> Iterator[None]:
        """Take a step with each batch."""
        for batch in batches:
            self.take_step(batch)
            yield

    def checkpoint_due(self) -> bool:
        """Whether the last checkpoint is old enough for one between evaluations."""
        return (time.monotonic() - self.checkpointed_at) / 60 >= self.config.checkpoint_minutes

    def logits(self, batch: Batch) -> Tensor:
        """Logits of a batch on the device, in training."""
        return self.ranker(batch.dense_BF, batch.sparse, batch.semantic)

    def noted(self, loss: Tensor) -> Tensor:
        """What of a step is noted, float64 [K]: its loss."""
        return loss.detach().double().reshape(1)

    def mean_loss(self, found: StepNumbers) -> float:
        """The loss of a step, of what was noted."""
        return found.numbers_K[0]

    def take_step(self, batch: Batch) -> None:
        """One update by one batch."""
        self.optimizer.set_learning_rates(self.progress.step)
        self.optimizer.update(self.loss_of(batch.to(self.device)))
        self.count(len(batch))

    def loss_of(self, batch: Batch) -> Tensor:
        """The loss of a batch on the device, noted to be read when it has arrived.

        Raises:
            TrainingDivergedError: one that has arrived, its own or one of a step before, is no number.
        """
        with autocast(self.device, self.precision):
            logit_B = self.logits(batch)
        loss = binary_cross_entropy_with_logits(logit_B.float(), batch.clicked_B)
        self.last = self.taken[self.progress.step] = _Taken(batch.dense_BF, batch.row_B)
        self.read(self.on_the_way.note(self.progress.step, self.noted(loss)))
        return loss

    def count(self, rows: int) -> None:
        """Count a step that was taken."""
        self.progress.step += 1
        self.progress.rows += rows * self.ranks.count
        if self.positions:
            self.position = self.positions.popleft()

    def read(self, arrived: Iterable[StepNumbers]) -> None:
        """Check, add up and log the losses that have arrived."""
        for found in arrived:
            loss, taken = self.mean_loss(found), self.taken.pop(found.step)
            if not np.isfinite(loss):
                raise self.diverged(found.step, loss, taken)
            rows = len(taken.row_B) * self.ranks.count
            self.progress.loss_sum += loss * rows
            self.progress.loss_rows += rows
            step = found.step + 1
            if step % LOG_EVERY_STEPS == 0:
                factor = self.optimizer.factor_of(found.step)
                self.log.step({"train/loss": loss, "train/learning_rate_factor": factor}, step)

    def settle(self) -> None:
        """Read all losses, and wait for those that have not arrived."""
        self.read(self.on_the_way.settle())

    def evaluate(self) -> None:
        self.settle()
        progress = self.progress
        clicked_N, logit_N = predict(self.ranker, self.validation, device=self.device, ranks=self.ranks)
        if not np.isfinite(logit_N).all():  # the loss was a number, but its gradient was none
            raise self.diverged(progress.step, float("nan"), self.last)
        evaluation = decided_by_first(
            self.ranks,
            lambda: Evaluation(
                step=progress.step,
                rows=progress.rows,
                train_loss=progress.loss_sum / progress.loss_rows,
                validation_auc=roc_auc(clicked_N, logit_N),
                validation_logloss=log_loss(clicked_N, logit_N),
            ),
        )
        progress.loss_sum, progress.loss_rows = 0.0, 0
        progress.history.append(evaluation)
        numbers = {
            name.replace("_", "/", 1): value
            for name, value in asdict(evaluation).items()
            if isinstance(value, float)
        }
        self.log.evaluation(numbers, progress.step)
        if self.since_best == 0:
            weights = {WEIGHTS: whole_weights(self.ranker, self.ranks), "optimizer": {}}
            best = Checkpoint(weights, asdict(evaluation))
            decided_by_first(self.ranks, lambda: write_checkpoint(self.folder / "best", best))
        progress.stopped = self.stopped

    def state(self) -> Checkpoint:
        self.checkpointed_at = time.monotonic()
        random = {"random/cpu": torch.get_rng_state()}
        tensors = {
            WEIGHTS: ranker_weights(self.ranker),
            "optimizer": self.optimizer.state_tensors() | random,
        }
        return Checkpoint(tensors, self.progress_state())

    def progress_state(self) -> dict[str, Any]:
        """What a checkpoint holds beside tensors."""
        self.settle()
        return {
            "training": asdict(self.progress),
            "loader": self._next_position(),
            "precision": self.precision,
        }

    def _next_position(self) -> dict[str, int]:
        state = self.position
        if state["rows_done"] == state["rows"]:
            return {**state, "epoch": state["epoch"] + 1, "rows_done": 0}
        return state

    def diverged(self, step: int, loss: float, taken: _Taken) -> TrainingDivergedError:
        names = self.training.dense_columns
        is_bad_F = ~torch.isfinite(taken.dense_BF).all(dim=0)
        bad = [name for name, is_bad in zip(names, is_bad_F.tolist(), strict=True) if is_bad]
        of_ranks = gather_objects((bad, self.training.impression_ids(taken.row_B.numpy())), self.ranks)
        bad = [name for name in names if any(name in found for found, _ in of_ranks)]
        impressions = [impression for _, found in of_ranks for impression in found]
        record = self.folder / "diverged_batch.json"
        content = {"step": step, "features": bad, "impressions": impressions}
        decided_by_first(self.ranks, lambda: atomic_write_json(record, content))
        cause = (
            f"its dense features {bad} are not finite; clean them in the input"
            if bad
            else "its features are finite, so the weights have diverged; lower the learning rates"
        )
        return TrainingDivergedError(
            f"the loss of step {step} is {loss}: {cause}. The batch's {len(impressions)} "
            f"impressions (first: {impressions[0]!r}) are listed in {record}"
        )
