"""Numbers of training steps, such as losses, brought from a device without waiting for it.

To read a number of a GPU is to wait until all that was asked of it is done: at each step that leaves it idle
while the next step is prepared. So the numbers of some steps travel together, into pinned memory and behind
the work that makes them, and are read when the next lot sets out: then they have long arrived, unless the
device is that far behind. On a CPU there is nothing to wait for, and each number is read in its step.

Shapes: K numbers of a step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from embeddings.catalog.device_copies import ToHost
from embeddings.training.run_log import LOG_EVERY_STEPS


@dataclass(frozen=True)
class StepNumbers:
    """The numbers of one step, counted as its loop does."""

    step: int
    numbers_K: list[float]


class NumbersOnTheWay:
    """What steps have noted and nobody has read yet.

    The order in which numbers arrive depends on steps alone, not on clocks: several ranks read the numbers of
    one step in the same step.

    >>> way = NumbersOnTheWay(torch.device("cpu"), every=2)
    >>> [len(way.note(step, torch.tensor([float(step)]))) for step in range(5)]
    [0, 0, 0, 2, 0]
    >>> [found.step for found in way.settle()]
    [2, 3, 4]
    """

    def __init__(self, device: torch.device, *, every: int | None = None) -> None:
        """
        Args:
            every: steps whose numbers travel together, and for how many more they may be on their way; by
                default none on a CPU, where a number is read in its step.
        """
        self.every = (0 if device.type == "cpu" else LOG_EVERY_STEPS) if every is None else every
        self._noted: list[tuple[int, Tensor]] = []
        self._sent: _Lot | None = None

    def note(self, step: int, numbers_K: Tensor) -> list[StepNumbers]:
        """Note the numbers of a step, which has a graph or none; those of which step have arrived now."""
        self._noted.append((step, numbers_K.detach()))
        if not self.every:
            return self.settle()
        return self._send() if len(self._noted) == self.every else []

    def settle(self) -> list[StepNumbers]:
        """All that was noted and not read, oldest first; waits for the device."""
        arrived = self._send()
        if self._sent is not None:
            arrived += self._sent.read()
            self._sent = None
        return arrived

    def _send(self) -> list[StepNumbers]:
        """Send what was noted on its way, and read what was sent before."""
        arrived = [] if self._sent is None else self._sent.read()
        self._sent = _Lot.sent(self._noted) if self._noted else None
        self._noted = []
        return arrived


@dataclass(frozen=True)
class _Lot:
    """Numbers of several steps [S, K] on their way to the host."""

    steps: list[int]
    numbers_SK: ToHost

    @classmethod
    def sent(cls, noted: list[tuple[int, Tensor]]) -> "_Lot":
        return cls([step for step, _ in noted], ToHost(torch.stack([numbers_K for _, numbers_K in noted])))

    def read(self) -> list[StepNumbers]:
        numbers = self.numbers_SK.read().tolist()
        return [StepNumbers(step, numbers_K) for step, numbers_K in zip(self.steps, numbers, strict=True)]
