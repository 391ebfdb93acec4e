"""Who is scored next, and who is told to come back: a lane for small requests, one for large, and budgets.

A request of 10,000 candidates takes a hundred times as long as one of 20. In one queue the small ones would
wait for it; so each lane has a thread of its own, and that of the large ones yields the processor to the
other. Nobody waits longer than the budget: who would is told at once, who was is told then.
"""

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch

from serving.servers.endpoint import Answer, Body
from serving.wire.body_weight import is_large
from serving.wire.reply import Unavailable

#: From its last byte to its answer. The client gives up after two seconds.
BUDGET_S = 2.0
#: Bodies that are being received or wait or are scored.
BODIES_BYTES = 64 * 2**20
#: Weight of the latest request in the mean time that one takes.
_NEWEST = 0.1
_NICE = 10
# A thread asks for the interpreter after so long; the default of 5 ms is as long as a small request takes.
_SWITCH_S = 5e-4

QUEUE_FULL, TOO_SLOW, MEMORY = "queue_full", "too_slow", "memory"


class Lanes:
    """Answers bodies in two threads, within a budget of time and one of memory."""

    def __init__(
        self, answer: Callable[[list[Body]], list[Answer]], shed: Callable[[Unavailable], Answer]
    ) -> None:
        """
        Args:
            answer: `Endpoint.answer`; called from two threads.
            shed: `Endpoint.shed`, which makes the answer to who has to come back.
        """
        sys.setswitchinterval(_SWITCH_S)
        self._answer = answer
        self._shed = shed
        self.small, self.large = _Lane("small", nice=0), _Lane("large", nice=_NICE)
        self._bodies_bytes = 0

    async def answer(self, body: Body) -> Answer:
        """The answer, or 503 within the budget."""
        lane = self.large if is_large(body.content) else self.small
        wait_s = lane.expected_wait_s
        if wait_s > BUDGET_S:
            return self._shed(Unavailable(QUEUE_FULL, retry_after_s=wait_s))
        work = lane.submit(partial(self._answer, [body]))
        try:
            (answer,) = await asyncio.wait_for(asyncio.wrap_future(work), BUDGET_S)
            return answer
        except TimeoutError:
            return self._shed(Unavailable(TOO_SLOW, retry_after_s=lane.expected_wait_s))

    def take(self, count: int) -> bool:
        """Whether so many more bytes of bodies may be kept; `release` gives them back."""
        self._bodies_bytes += count
        return self._bodies_bytes <= BODIES_BYTES

    def release(self, count: int) -> None:
        """Bytes that were taken are no longer kept."""
        self._bodies_bytes -= count

    def shed_for_memory(self) -> Answer:
        """The answer to who would have been too much."""
        return self._shed(Unavailable(MEMORY))

    def shutdown(self) -> None:
        """End the threads, once they are through with what they have."""
        for lane in (self.small, self.large):
            lane.pool.shutdown()


class _Lane:
    """One thread, and how long it takes."""

    def __init__(self, name: str, *, nice: int) -> None:
        self.pool = ThreadPoolExecutor(1, f"dashclip-{name}", initializer=partial(_prepare, nice))
        self._waiting = 0
        self._mean_s = 0.0
        self._lock = threading.Lock()

    @property
    def expected_wait_s(self) -> float:
        """Until a request that came now would be through with its neighbours."""
        return self._waiting * self._mean_s

    def submit(self, work: Callable[[], list[Answer]]) -> "Future[list[Answer]]":
        """Have it done in turn; a future that is cancelled before its turn costs nothing."""
        with self._lock:
            self._waiting += 1
        future = self.pool.submit(self._timed, work)
        future.add_done_callback(self._through)
        return future

    def _timed(self, work: Callable[[], list[Answer]]) -> list[Answer]:
        start = time.perf_counter()
        try:
            return work()
        finally:
            took_s = time.perf_counter() - start
            self._mean_s = took_s if not self._mean_s else self._mean_s + _NEWEST * (took_s - self._mean_s)

    def _through(self, _: "Future[list[Answer]]") -> None:
        with self._lock:
            self._waiting -= 1


def _prepare(nice: int) -> None:
    torch.set_num_threads(1)
    if nice and hasattr(os, "setpriority"):
        with contextlib.suppress(OSError):  # of this thread alone, on Linux
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
