"""A line does what it took in order, and turns away what does not fit without waiting."""

import logging
import threading

import pytest

from serving.observers.waiting_line import WaitingLine


def test_work_is_done_in_order_and_closing_waits_for_it() -> None:
    done: list[int] = []
    line = WaitingLine(done.append, name="test", room=1_000)
    assert all(line.offer(number) for number in range(500))
    line.close()
    assert done == [*range(500)]
    assert not line.offer(1)


class Held:
    """Work that waits until it may go on."""

    def __init__(self) -> None:
        self.started, self.go_on = threading.Event(), threading.Event()
        self.done: list[str] = []

    def work(self, name: str) -> None:
        self.started.set()
        self.go_on.wait(30)
        self.done.append(name)


def test_what_does_not_fit_is_turned_away_at_once_and_fits_again_later() -> None:
    held = Held()
    line = WaitingLine(held.work, name="test", room=10)
    assert line.offer("first", size=6)
    held.started.wait(30)
    assert line.offer("second", size=4), "what is being done counts until it is done"
    assert not line.offer("third", size=1)
    assert not line.offer("huge", size=11)
    held.go_on.set()
    line.close()
    assert held.done == ["first", "second"]


def test_a_piece_larger_than_the_room_is_taken_when_nothing_else_waits() -> None:
    """The largest request for three shadows, say: turned away, it would never be scored."""
    held = Held()
    line = WaitingLine(held.work, name="test", room=10)
    assert line.offer("huge", size=30)
    held.started.wait(30)
    assert not line.offer("small", size=1)
    held.go_on.set()
    line.close()
    assert held.done == ["huge"]


def test_a_failure_is_logged_without_its_words_and_the_next_piece_is_done(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 1:
            raise ValueError("secret query text")
        done.append(number)

    with caplog.at_level(logging.ERROR):
        line = WaitingLine(work, name="test", room=10)
        for number in range(3):
            line.offer(number)
        line.close()
    assert done == [0, 2]
    assert "dashclip-test failed: ValueError" in caplog.text
    assert "secret" not in caplog.text


def test_idle_work_is_done_although_there_is_no_other() -> None:
    idled = threading.Event()
    line = WaitingLine(lambda _: None, name="test", room=1, idle=idled.set, idle_s=0.001)
    assert idled.wait(30)
    line.close()
