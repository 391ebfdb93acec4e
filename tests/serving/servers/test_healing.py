"""What cannot be opened is tried again, and says so to who asks; who waits for nobody is told at once."""

import json
import socket
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path

import pytest

from serving.scoring.predictor import Predictor
from serving.servers.endpoint import Body, Endpoint, readiness
from serving.servers.fastapi.standby import Standby
from serving.servers.healing import HealingScorer
from serving.wire.reply import Scorer
from tests.serving.servers.torchserve.stand_in_handler import stand_in_scorer
from tests.serving.small_packages import copy_generation

ASKED = Body(b'{"user_id": 1, "query": "q", "candidates": [101]}')


def failing(times: int) -> Callable[[], Scorer]:
    """Opens the stand-in after so many failures."""
    left = [times]

    def open_scorer() -> Scorer:
        if left[0]:
            left[0] -= 1
            raise OSError("the disk is away")
        return stand_in_scorer()

    return open_scorer


def test_a_scorer_that_cannot_be_opened_answers_503_at_once_and_is_tried_again_with_growing_pauses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0.0
    healing = HealingScorer(failing(3), clock=lambda: now)
    endpoint = Endpoint(healing)
    tried = []
    healing.open()
    for second in range(20):
        now = second
        (answer,) = endpoint.answer([ASKED])
        if answer.status == 200:
            break
        assert (answer.status, answer.retry_after_s) in {(503, 1), (503, 2), (503, 3), (503, 4)}
        assert b"disk" not in answer.content
        before = len(caplog.records)
        healing.reload_if_changed()
        tried += [second] * (len(caplog.records) > before)
    assert tried == [1, 3]  # pauses of 1, 2 and 4 seconds
    assert second == 8
    assert "the disk is away" in caplog.text
    series = endpoint.measures().series()
    assert series["dashclip_shed_total", "no_model"] == 8
    assert series["dashclip_failed_total", ""] == 0
    assert series["dashclip_model_open", ""] == 1


def test_what_is_not_open_says_why_and_its_measures_say_that_it_is_not() -> None:
    healing = HealingScorer(failing(99))
    healing.open()
    assert healing.facts() == {"unavailable": "the disk is away"}
    series = Endpoint(healing).measures().series()
    assert series["dashclip_model_open", ""] == 0
    with pytest.raises(OSError, match="disk"):
        healing.open(raises=True)


def test_an_open_scorer_is_asked_to_reload() -> None:
    healing = HealingScorer(failing(0))
    healing.open()
    healing.reload_if_changed()
    assert healing.scorer.reloads == 1  # type: ignore[union-attr]


def test_a_package_served_from_an_older_generation_says_so_in_readiness_and_measure(package: Path) -> None:
    copy_generation(package)
    (package / "generations/000002/vectors/product/rows.npy").write_bytes(b"")
    predictor = Predictor.load(package, fall_back=True)
    endpoint = Endpoint(predictor)
    assert readiness(predictor.facts())["fallen_back"]
    assert readiness(predictor.facts())["generation"] == "000001"
    assert endpoint.measures().series()["dashclip_generation_refused", ""] == 1


def asked(port: int, path: str, body: bytes = b"") -> tuple[int, str | None, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST" if body else "GET", path, body or None)
    answer = connection.getresponse()
    return answer.status, answer.headers["retry-after"], answer.read()


def test_while_nobody_serves_requests_get_503_at_once_and_the_process_is_alive() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        needed = [True]
        standby = Standby(listening, lambda: needed[0])
        standby.start()
        try:
            for body in (b"{}", b"x" * 3_000_000):
                status, retry_after, answer = asked(port, "/score", body)
                assert (status, retry_after) == (503, "1")
                assert "no worker" in json.loads(answer)["error"]["message"]
            assert asked(port, "/ready")[:2] == (503, "1")
            assert asked(port, "/live")[0] == 200
            for _ in range(40):  # who says nothing holds nobody up
                socket.create_connection(("127.0.0.1", port))
            needed[0] = False
            time.sleep(0.2)
            silent = socket.create_connection(("127.0.0.1", port), timeout=0.3)
            silent.sendall(b"GET /live HTTP/1.1\r\n\r\n")
            with pytest.raises(TimeoutError):
                silent.recv(1)
        finally:
            standby.stop()
