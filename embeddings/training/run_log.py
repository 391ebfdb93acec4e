"""Where the numbers of a training go while it runs: TensorBoard, and a tracker beside it if one is given.

Loops write to a `TrainingLog` and know nothing else of either. What a tracker does cannot harm the training:
one that fails is left out from then on, with one warning.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from torch.utils.tensorboard.writer import SummaryWriter

#: How a run ended: "killed" by whoever started it.
Ending = Literal["finished", "failed", "killed"]
#: Steps between the numbers of steps.
LOG_EVERY_STEPS = 20
#: Folder of the TensorBoard scalars in that of a run.
TENSORBOARD = "tensorboard"


class TrackedRun(Protocol):
    """One run as a tracker sees it."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one evaluation."""

    def nested(self) -> "Tracker":
        """What collects the runs that this one is made of."""

    def close(self, ending: Ending) -> None:
        """The run has ended."""


class Tracker(Protocol):
    """A place that collects runs, such as an MLflow server."""

    def open(self, folder: Path, *, name: str, params: Mapping[str, Any]) -> TrackedRun:
        """The run of a folder; the same one again when its training is resumed.

        Args:
            params: what decides its numbers; may be nested.
        """


class TrackerWarning(UserWarning):
    """A tracker failed; the training goes on without it."""


class TrainingLog:
    """Log of one training run; a context that closes it.

    A resumed run says with `resume_at` where it goes on, before it logs anything.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tracker: Tracker | None = None,
        name: str = "",
        params: Mapping[str, Any] | None = None,
        writes: bool = True,
    ) -> None:
        """
        Args:
            folder: of the run; receives `tensorboard/`.
            name, params: of the run, for the tracker.
            writes: whether this process logs; of several ranks, one does.
        """
        self._folder, self._writes = folder, writes
        self._from_step: int | None = None
        self._scalars: SummaryWriter | None = None
        self._tracked: TrackedRun | None = None
        if tracker is not None and writes:
            try:
                self._tracked = tracker.open(folder, name=name, params=params or {})
            except Exception as error:
                self._give_up(error)

    def resume_at(self, step: int) -> None:
        """Take back what was logged after that step, by a process that was killed before it could save."""
        self._close_scalars()
        self._from_step = step + 1

    def step(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of a training step: they are many, so they go to TensorBoard alone."""
        if not self._writes:
            return
        if self._scalars is None:
            self._scalars = SummaryWriter(str(self._folder / TENSORBOARD), purge_step=self._from_step)
        for name, value in values.items():
            self._scalars.add_scalar(name, value, step)

    def evaluation(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of an evaluation after that step."""
        self.step(values, step)
        if self._tracked is not None:
            try:
                self._tracked.log(values, step)
            except Exception as error:
                self._give_up(error)

    def nested(self) -> Tracker | None:
        """What tracks the runs that this one is made of; None where this one is not tracked."""
        return None if self._tracked is None else self._tracked.nested()

    def close(self, ending: Ending = "finished") -> None:
        """Write what is left."""
        self._close_scalars()
        tracked, self._tracked = self._tracked, None
        if tracked is not None:
            try:
                tracked.close(ending)
            except Exception as error:
                self._give_up(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        by_hand = kind is not None and not issubclass(kind, Exception)
        self.close("finished" if kind is None else "killed" if by_hand else "failed")

    def _close_scalars(self) -> None:
        if self._scalars is not None:
            self._scalars.close()
            self._scalars = None

    def _give_up(self, error: Exception) -> None:
        self._tracked = None
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        warnings.warn(
            f"the tracker of {self._folder} failed, so the training goes on without it, and TensorBoard has "
            f"all numbers: {reason}",
            TrackerWarning,
            stacklevel=3,
        )
