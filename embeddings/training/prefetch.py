"""Elements made ahead, by a thread of their own, while others are used."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def prefetch(iterable: Iterable[T], *, depth: int = 2) -> Iterator[T]:
    """Go through `iterable` in one background thread, at most `depth` elements ahead (and one in the making).

    An exception in it is raised here, after the elements before it. When the consumer stops early, the thread
    ends with the element in the making, and `iterable` is closed.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    return _prefetched(iterable, depth)


def _prefetched(iterable: Iterable[T], depth: int) -> Iterator[T]:
    waiting: queue.Queue[tuple[str, T | None, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def produce() -> None:
        try:
            for element in iterable:
                waiting.put(("element", element, None))
                if stopped.is_set():
                    return
            last: tuple[str, None, BaseException | None] = ("end", None, None)
        except BaseException as error:
            last = ("failure", None, error)
        finally:
            close = getattr(iterable, "close", None)
            if close is not None:
                close()
        waiting.put(last)

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, element, error = waiting.get()
            if kind == "element":
                yield element  # type: ignore[misc]
            elif error is not None:
                raise error
            else:
                return
    finally:
        stopped.set()
        # Room for the one put that may be under way; the thread looks at `stopped` after it.
        while not waiting.empty():
            waiting.get_nowait()
        thread.join()
