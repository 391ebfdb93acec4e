"""When to try again: at once, then after pauses that double up to a longest one, for ever."""

import time
from collections.abc import Callable


class Backoff:
    """The moments at which something that failed is tried again.

    >>> now = 0.0
    >>> backoff = Backoff(first_s=1, longest_s=4, clock=lambda: now)
    >>> [backoff.failed() for _ in range(4)]
    [1, 2, 4, 4]
    >>> backoff.due, backoff.wait_s
    (False, 4.0)
    """

    def __init__(
        self, *, first_s: float, longest_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.failures = 0
        self._first_s = first_s
        self._longest_s = longest_s
        self._clock = clock
        self._next = float("-inf")

    @property
    def due(self) -> bool:
        """Whether it may be tried now."""
        return self._clock() >= self._next

    @property
    def wait_s(self) -> float:
        """Seconds until it may be tried."""
        return max(0.0, self._next - self._clock())

    def failed(self) -> float:
        """Note a failure; returns the pause after it, in seconds."""
        # The exponent is bounded: after a thousand failures the power would be no float.
        pause_s = min(self._longest_s, self._first_s * 2 ** min(self.failures, 32))
        self.failures += 1
        self._next = self._clock() + pause_s
        return pause_s

    def succeeded(self) -> None:
        """Note a success: the next failure is a first one."""
        self.failures = 0
        self._next = float("-inf")
