"""Work that requests leave behind: a bounded line and one thread, so that no request ever waits for it."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

_log = logging.getLogger(__name__)

WorkT = TypeVar("WorkT")


class WaitingLine(Generic[WorkT]):
    """Pieces of work in the order they came. What does not fit is turned away at once."""

    def __init__(
        self,
        do: Callable[[WorkT], None],
        *,
        name: str,
        room: int,
        idle: Callable[[], None] = lambda: None,
        idle_s: float = 1.0,
    ) -> None:
        """
        Args:
            do: done with each piece, in the line's thread; what it raises is logged.
            room: sum of the sizes that may wait; a larger piece is taken where nothing else waits.
            idle: done in the same thread about every `idle_s` seconds, whether or not there is work.
        """
        self._do, self._idle, self._idle_s, self._room = do, idle, idle_s, room
        self._waiting: deque[tuple[WorkT, int]] = deque()
        self._size = 0
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=f"dashclip-{name}", daemon=True)
        self._thread.start()

    def offer(self, work: WorkT, *, size: int = 1) -> bool:
        """Add a piece; False if there is no room, or the line has ended."""
        with self._changed:
            if self._stopped or (self._size and self._size + size > self._room):
                return False
            self._waiting.append((work, size))
            self._size += size
            self._changed.notify_all()
            return True

    def close(self) -> None:
        """Do what waits, and end the thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiting and not self._stopped:
                    self._changed.wait(self._idle_s)
                taken = self._waiting.popleft() if self._waiting else None
                ended = self._stopped and taken is None
            if taken is not None:
                self._attempt(partial(self._do, taken[0]))
                with self._changed:
                    self._size -= taken[1]
            self._attempt(self._idle)
            if ended:
                return

    def _attempt(self, do: Callable[[], None]) -> None:
        try:
            do()
        except Exception as error:
            # What it says may quote a request.
            _log.error("%s failed: %s", self._thread.name, type(error).__name__)
