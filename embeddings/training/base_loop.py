"""What the training loops of encoders and rankers share: early stop, checkpoints, resume.

A run that is killed at any moment and resumed gives the same bits as one that was not (on a CPU, at the same
number of threads), as long as its checkpoints hold all that the next step depends on.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from embeddings.training.checkpoint import Checkpoint, add_checkpoint, newest_checkpoint, read_checkpoint
from embeddings.training.precision import Precision, resolve_precision


class TrainingDivergedError(ValueError):
    """A loss or a gradient that is not finite; the message names the step and what to do."""


class TrainingLoop(ABC):
    """What happens between the steps of a training."""

    #: Digits of the step in the name of a checkpoint, and checkpoints that are kept.
    step_digits: int
    checkpoints_kept: int

    def __init__(
        self, checkpoints: Path, *, evaluation_steps: set[int], patience: int, writes: bool = True
    ) -> None:
        """
        Args:
            evaluation_steps: numbers of the steps, from 1, that an evaluation follows.
            patience: stop after so many evaluations without a lower loss.
            writes: whether this process writes the checkpoints; of several ranks, one does.
        """
        self.checkpoints, self.evaluation_steps = checkpoints, evaluation_steps
        self.patience, self.writes = patience, writes

    @property
    @abstractmethod
    def losses(self) -> list[float]:
        """The loss of each evaluation so far; lower is better."""

    @abstractmethod
    def evaluate(self) -> None:
        """Add one to `losses`, and keep the weights if `since_best` is 0 then."""

    @abstractmethod
    def state(self) -> Checkpoint:
        """What `restore` needs to go on from here."""

    @abstractmethod
    def restore(self, saved: Checkpoint, source: Path) -> None:
        """Go back to where `state` was taken."""

    @property
    def since_best(self) -> int:
        """Evaluations since the one with the lowest loss, the first of equals."""
        losses = self.losses
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0

    @property
    def stopped(self) -> bool:
        """Whether the patience has ended."""
        return self.since_best >= self.patience

    def after_step(self, step: int, *, checkpoint: bool) -> None:
        """Evaluate if that is due, and write a checkpoint then, too."""
        if step in self.evaluation_steps:
            self.evaluate()
        if checkpoint or step in self.evaluation_steps:
            self.save(f"step-{step:0{self.step_digits}d}")

    def save(self, name: str) -> None:
        """Write a checkpoint of that name, if this process writes any."""
        if self.writes:
            add_checkpoint(self.checkpoints, name, self.state(), keep=self.checkpoints_kept)

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one.

        Raises:
            CheckpointError: it is damaged, or of another run.
        """
        newest = newest_checkpoint(self.checkpoints)
        if newest is not None:
            self.restore(read_checkpoint(newest), newest)


@contextmanager
def without_denormals() -> Iterator[None]:
    """Results below 1e-38 are zero meanwhile, in this thread and in those that it starts.

    A sharp softmax hands on gradients as small as that, and a processor takes some hundred times as long for
    them as for other numbers: stage 2 came to half its speed as it learned (experiments/LOG.md).
    """
    were_gone = bool(torch.tensor(1e-39) * 1 == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(were_gone)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """With "bfloat16", matrix products in it; softmax, norms and losses stay in float32."""
    enabled = resolve_precision(precision, device) == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
