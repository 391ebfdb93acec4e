"""Elements made ahead arrive in order, no further ahead than was asked for, and the thread ends with them."""

import threading
from collections.abc import Iterator

import pytest

from embeddings.training.prefetch import prefetch


class _BrokenError(Exception):
    pass


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_prefetching_keeps_order_and_ends() -> None:
    assert list(prefetch(range(50), depth=3)) == list(range(50))
    assert list(prefetch([], depth=1)) == []
    assert list(prefetch([None, None])) == [None, None]
    assert not prefetch_threads()


def test_prefetching_runs_ahead_by_its_depth_and_no_further() -> None:
    begun: list[int] = []
    waits = threading.Semaphore(0)

    def source() -> Iterator[int]:
        for number in range(10):
            begun.append(number)
            waits.release()
            yield number

    elements = prefetch(source(), depth=2)
    assert next(elements) == 0
    for _ in range(4):  # one taken, two waiting, one in the making
        assert waits.acquire(timeout=10)
    assert not waits.acquire(timeout=0.1)
    assert begun == [0, 1, 2, 3]
    elements.close()  # type: ignore[attr-defined]


def test_an_exception_arrives_after_the_elements_before_it() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise _BrokenError("it is cut off")

    elements = prefetch(source(), depth=8)
    assert [next(elements), next(elements)] == [1, 2]
    with pytest.raises(_BrokenError, match="it is cut off"):
        next(elements)
    assert not prefetch_threads()


@pytest.mark.parametrize("taken", [1, 3])
@pytest.mark.parametrize("depth", [1, 4])
def test_a_consumer_that_stops_early_ends_the_thread_and_closes_the_source(taken: int, depth: int) -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from range(1_000_000)
        finally:
            closed.set()

    elements = prefetch(source(), depth=depth)
    for _ in range(taken):
        next(elements)
    elements.close()  # type: ignore[attr-defined]
    assert closed.is_set()
    assert not prefetch_threads()


def test_nothing_runs_before_the_first_element_is_asked_for() -> None:
    def source() -> Iterator[int]:
        raise AssertionError("asked too early")
        yield

    prefetch(source())
    assert not prefetch_threads()


def test_a_depth_below_one_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        prefetch([1], depth=0)
