"""A server is emptied before it ends: told by a file, and quiet by what its workers say."""

import json
import os
from pathlib import Path

import pytest

from serving.servers.background import DRAINING, WORKERS_FOLDER, Background
from serving.servers.endpoint import Body, Endpoint
from serving.servers.torchserve import drain as module
from serving.servers.torchserve.drain import drain
from tests.serving.servers.torchserve.stand_in_handler import stand_in_scorer

BODY = Body(b'{"user_id": 1, "query": "q", "candidates": [101]}')


def says(state: Path, pid: int, **facts: object) -> None:
    (state / WORKERS_FOLDER).mkdir(exist_ok=True)
    (state / WORKERS_FOLDER / f"worker-{pid}.json").write_text(json.dumps(facts))


def test_a_worker_that_is_told_refuses_what_comes_and_says_so(tmp_path: Path) -> None:
    endpoint = Endpoint(stand_in_scorer())
    background = Background(endpoint, status_folder=tmp_path, draining_file=tmp_path / DRAINING)
    background.beat(1)
    assert endpoint.answer([BODY])[0].status == 200
    (tmp_path / DRAINING).touch()
    background.beat(2)
    (answer,) = endpoint.answer([BODY])
    assert (answer.status, answer.retry_after_s) == (503, 5)
    assert b"draining" in answer.content
    said = json.loads((tmp_path / f"worker-{os.getpid()}.json").read_text())
    assert said["draining"]
    assert said["asked_s_ago"] >= 0
    assert 'dashclip_shed_total{reason="draining"} 1.0' in endpoint.measures().page(None).decode()


def test_it_is_empty_once_every_worker_has_been_told_and_nobody_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.001)
    says(tmp_path, 1, draining=True, asked_s_ago=None)
    for facts, empty in [
        ({"draining": True, "asked_s_ago": 0.9}, True),
        ({"draining": True, "asked_s_ago": 0.1}, False),
        ({"draining": False, "asked_s_ago": 9.0}, False),
        ({}, False),
    ]:
        says(tmp_path, 2, **facts)
        assert drain(tmp_path, lambda: [1, 2], timeout_s=0.02) is empty
    assert drain(tmp_path, lambda: [3], timeout_s=0.02) is False  # it has said nothing yet
    assert drain(tmp_path, list, timeout_s=0.02)
    assert (tmp_path / DRAINING).exists()
