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
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
        self,
        answer: Callable[[list[Body]], list[Answer]],
        shed: Callable[[Unavailable], Answer],
        *,
        batch_size: int = 1,
    ) -> None:
        """
        Args:
            answer: `Endpoint.answer`; called from two threads.
            shed: `Endpoint.shed`, which makes the answer to who has to come back.
            batch_size: small requests that are answered at once, if so many wait; none waits for others.
        """
        sys.setswitchinterval(_SWITCH_S)
        self._shed = shed
        self.small = _Lane("small", answer, nice=0, batch_size=batch_size)
        self.large = _Lane("large", answer, nice=_NICE, batch_size=1)
        self._bodies_bytes = 0

    async def answer(self, body: Body) -> Answer:
        """The answer, or 503 within the budget."""
        lane = self.large if is_large(body.content) else self.small
        wait_s = lane.expected_wait_s
        if wait_s > BUDGET_S:
            return self._shed(Unavailable(QUEUE_FULL, retry_after_s=wait_s))
        asked = lane.submit(body)
        try:
            return await asyncio.wait_for(asked.answer, BUDGET_S)
        except TimeoutError:
            lane.withdraw(asked)
            return self._shed(Unavailable(TOO_SLOW, retry_after_s=lane.expected_wait_s))
        except asyncio.CancelledError:
            lane.withdraw(asked)
            raise

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


@dataclass(frozen=True, eq=False)
class _Asked:
    """A body that waits for its answer."""

    body: Body
    answer: "asyncio.Future[Answer]"


class _Lane:
    """One thread, and how long it takes for a request."""

    def __init__(
        self, name: str, answer: Callable[[list[Body]], list[Answer]], *, nice: int, batch_size: int
    ) -> None:
        self.pool = ThreadPoolExecutor(1, f"dashclip-{name}", initializer=partial(_prepare, nice))
        self._answer = answer
        self._batch_size = batch_size
        self._waiting: deque[_Asked] = deque()
        self._at_work = 0
        self._is_awake = False
        self._mean_s = 0.0
        self._lock = threading.Lock()

    @property
    def expected_wait_s(self) -> float:
        """Until a request that came now would be through with its neighbours."""
        return (len(self._waiting) + self._at_work) * self._mean_s

    def submit(self, body: Body) -> _Asked:
        """Have it answered in turn, for a task of the running loop."""
        asked = _Asked(body, asyncio.get_running_loop().create_future())
        with self._lock:
            self._waiting.append(asked)
            wakes, self._is_awake = not self._is_awake, True
        if wakes:
            self.pool.submit(self._work)
        return asked

    def withdraw(self, asked: _Asked) -> None:
        """Nobody waits for the answer any more; before its turn that costs nothing."""
        with self._lock, contextlib.suppress(ValueError):
            self._waiting.remove(asked)

    def _work(self) -> None:
        """Answer those who wait, as many at once as may be, until nobody does."""
        while True:
            with self._lock:
                batch = [self._waiting.popleft() for _ in range(min(self._batch_size, len(self._waiting)))]
                self._at_work = len(batch)
                if not batch:
                    self._is_awake = False
                    return
            start = time.perf_counter()
            answers: list[Answer] | Exception
            try:
                answers = self._answer([asked.body for asked in batch])
            except Exception as error:
                answers = error
            took_s = (time.perf_counter() - start) / len(batch)
            self._mean_s = took_s if not self._mean_s else self._mean_s + _NEWEST * (took_s - self._mean_s)
            self._at_work = 0
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                batch[0].answer.get_loop().call_soon_threadsafe(_deliver, batch, answers)


def _deliver(batch: Sequence[_Asked], answers: Sequence[Answer] | Exception) -> None:
    """In the loop; one call for a batch wakes it once."""
    for position, asked in enumerate(batch):
        if asked.answer.done():  # it was given up
            continue
        if isinstance(answers, Exception):
            asked.answer.set_exception(answers)
        else:
            asked.answer.set_result(answers[position])


def _prepare(nice: int) -> None:
    torch.set_num_threads(1)
    if nice and hasattr(os, "setpriority"):
        with contextlib.suppress(OSError):  # of this thread alone, on Linux
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
