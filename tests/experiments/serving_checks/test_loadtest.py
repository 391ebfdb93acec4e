"""The load generator against a server whose faults are known."""

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from experiments.cli import app
from experiments.serving_checks.loadtest import (
    LoadPlan,
    LoadResult,
    encoded,
    plot_load,
    resized,
    result_json,
    run_load,
)
from features.online.request import ScoreRequest
from serving.package.parity import read_requests
from serving.servers.endpoint import Body, Endpoint
from serving.wire.json_codec import encode_request
from tests.serving.servers.torchserve.stand_in_handler import stand_in_scorer

REQUEST = ScoreRequest(
    user_id=1,
    query="oat milk",
    candidates=[101, 7, 35],
    context={"device": "web"},
    candidate_columns={"price": np.array([1.0, 2.0, 3.0]), "brand": ["a", None, "b"]},
    history=[5, 6],
)


class SmallServer:
    """Answers over HTTP by the endpoint; stalls once, or drops requests, where told to."""

    def __init__(self) -> None:
        self.endpoint = Endpoint(stand_in_scorer())
        self.stall_s = 0.0
        self.drop_next = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        ).result()
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/score"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()
                return
            headers = dict(line.lower().split(b": ") for line in head.split(b"\r\n")[1:] if line)
            body = await reader.readexactly(int(headers[b"content-length"]))
            if self.drop_next:
                self.drop_next -= 1
                writer.close()
                return
            await asyncio.sleep(self.stall_s)
            self.stall_s = 0.0
            (answer,) = self.endpoint.answer([Body(body, headers[b"content-type"].decode())])
            length = len(answer.content)
            writer.write(
                f"HTTP/1.1 {answer.status} X\r\nContent-Length: {length}\r\n\r\n".encode() + answer.content
            )


@pytest.fixture
def server() -> Iterator[SmallServer]:
    small = SmallServer()
    yield small
    small.close()


def plan(**changes: object) -> LoadPlan:
    bodies, content_type = encoded([REQUEST], "json")
    settings = {"rate_per_s": 100.0, "seconds": 0.5, "warmup_s": 0.0, **changes}
    return LoadPlan(bodies=bodies, content_type=content_type, **settings)  # type: ignore[arg-type]


def test_every_due_request_is_answered_and_the_same_seed_sends_as_many(server: SmallServer) -> None:
    first, second = (run_load(server.url, plan(seed=3)) for _ in range(2))
    assert first.outcomes == second.outcomes
    assert set(first.outcomes) == {"200"}
    assert 20 < first.outcomes["200"] < 100
    assert len(first.latency_ms) == len(first.due_s) == first.outcomes["200"]


def test_no_request_of_the_generator_waits_for_an_acknowledgement(
    server: SmallServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    open_connection = asyncio.open_connection

    async def kept(*args: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await open_connection(*args)
        opened.append(socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())))
        return reader, writer

    monkeypatch.setattr(asyncio, "open_connection", kept)
    assert set(run_load(server.url, plan(seconds=0.1)).outcomes) == {"200"}
    assert opened
    assert all(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for one in opened)
    for one in opened:
        one.close()


def test_a_stall_is_charged_to_everyone_who_waits(server: SmallServer) -> None:
    run_load(server.url, plan(seconds=0.1))
    server.stall_s = 0.3
    result = run_load(server.url, plan(connections=1))
    waited = [latency for latency in result.latency_ms if latency > 50]
    assert len(waited) > 5


def test_a_request_that_is_sent_late_has_waited_since_it_was_due(server: SmallServer) -> None:
    hindered = []

    def hinder(share: float, so_far: LoadResult) -> None:
        if not hindered:
            hindered.append(share)
            time.sleep(0.3)  # the generator is not on the processor, though requests are due

    result = run_load(server.url, plan(seconds=1.5), progress=hinder)
    assert max(result.late_ms) > 200
    assert all(latency >= late for latency, late in zip(result.latency_ms, result.late_ms, strict=True))


def test_malformed_requests_are_counted_apart(server: SmallServer) -> None:
    result = run_load(server.url, plan(bad_share=0.5))
    assert set(result.outcomes) == {"200"}
    assert result.bad_outcomes["400"] > 5


def test_a_lost_connection_is_an_outcome_and_not_the_end(server: SmallServer) -> None:
    server.drop_next = 3
    result = run_load(server.url, plan(seconds=1.0))
    assert result.outcomes["connection lost"] == 3
    assert result.outcomes["200"] > 10


def test_nobody_listening_and_other_schemes_are_said() -> None:
    with pytest.raises(ConnectionError, match="nothing is listening"):
        run_load("http://127.0.0.1:9/score", plan())
    with pytest.raises(ValueError, match="plain http"):
        run_load("https://127.0.0.1:9/score", plan())


@pytest.mark.parametrize("wrong", [{"bodies": []}, {"rate_per_s": 0.0}, {"bad_share": 2.0}])
def test_a_plan_that_cannot_be_sent_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        LoadPlan(**{"bodies": [b"x"], "content_type": "a", "rate_per_s": 1.0, "seconds": 1.0, **wrong})  # type: ignore[arg-type]


def test_percentiles_of_a_hundred_latencies_are_theirs() -> None:
    result = LoadResult(seconds=2.0, latency_ms=list(map(float, range(1, 101))), late_ms=[0.0])
    result.outcomes["200"] = 100
    summary = result.summary()
    assert summary["answered_per_s"] == 50
    assert summary["latency_ms"]["p50"] == 50.5
    assert summary["latency_ms"]["max"] == 100


def test_without_answers_there_are_no_percentiles() -> None:
    result = LoadResult(seconds=1.0)
    result.outcomes["timeout"] = 4
    assert result.summary()["latency_ms"]["p99"] is None
    assert json.loads(result_json("http://x", plan(), result))["outcomes"] == {"timeout": 4}
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_load(result, Path("unused.png"), title="")


def test_a_resized_request_repeats_its_candidates_with_their_live_values() -> None:
    five = resized(REQUEST, 5)
    assert five.candidates.to_pylist() == [101, 7, 35, 101, 7]
    assert list(five.candidate_columns["price"]) == [1, 2, 3, 1, 2]
    assert five.candidate_columns["brand"] == ["a", None, "b", "a", None]
    assert resized(REQUEST, 2).candidates.to_pylist() == [101, 7]


def test_recorded_requests_are_read_and_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(encode_request(REQUEST) + b"\n\n")
    assert [request.candidates.to_pylist() for request in read_requests(path)] == [[101, 7, 35]]
    path.write_bytes(b"\n")
    with pytest.raises(ValueError, match="one JSON request per line"):
        read_requests(path)


def test_the_command_writes_json_and_a_picture_and_fails_on_wrong_answers(
    server: SmallServer, tmp_path: Path
) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(encode_request(REQUEST) + b"\n")
    arguments = ["loadtest", server.url, "--requests", str(path), "--rate", "60", "--seconds", "0.5"]
    arguments += ["--candidates", "20", "--format", "arrow", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "out" / "loadtest.json").read_text())
    assert (written["candidates"], written["format"]) == (20, "arrow")
    assert set(written["outcomes"]) == {"200"}
    assert (tmp_path / "out" / "loadtest.png").stat().st_size > 1_000
    server.drop_next = 1000
    assert CliRunner().invoke(app, arguments).exit_code == 1
