"""The FastAPI app answers as TorchServe's handler does: they share the endpoint."""

import contextlib
import itertools
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from features.online.request import MAX_BODY_BYTES, RequestError, ScoreRequest
from serving.client import ClientError, ScoreClient
from serving.servers.json_lines import JsonLines
from serving.wire.reply import Scorer, ScoreReply
from tests.serving.servers.torchserve.stand_in_handler import stand_in_score, stand_in_scorer

if TYPE_CHECKING:
    from fastapi import FastAPI

uvicorn = pytest.importorskip("uvicorn", reason="the extra `fastapi` is not installed")
guarded_connection = pytest.importorskip("serving.servers.fastapi.guarded_connection")


GET = b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n"
HEAD = b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n"
EXAMPLE = b'{"user_id": 1, "query": "q", "candidates": [101]}'


@contextmanager
def served(app: "FastAPI") -> Iterator[Any]:
    """uvicorn's server in a thread, listening as `serve` does."""
    from serving.servers.fastapi.app import server_config

    server = uvicorn.Server(server_config(app))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join()


def root_of(server: Any) -> str:
    return f"http://127.0.0.1:{port_of(server)}"


def port_of(server: Any) -> int:
    return int(server.servers[0].sockets[0].getsockname()[1])


def connected(server: Any) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(server)), timeout=60)


def until_closed(connection: socket.socket) -> bytes:
    received = b""
    while part := connection.recv(4096):
        received += part
    return received


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    from serving.servers.fastapi.app import create_app

    with served(create_app(stand_in_scorer(), example=EXAMPLE)) as server:
        yield server


@pytest.fixture(scope="module")
def root(server: Any) -> str:
    return root_of(server)


@pytest.mark.parametrize("body_format", ["json", "arrow"])
def test_the_client_gets_scores(root: str, body_format: str) -> None:
    with ScoreClient(f"{root}/score", body_format=body_format) as client:  # type: ignore[arg-type]
        reply = client.score(ScoreRequest(user_id=1, query="q", candidates=[101, 7]))
    assert reply.scores_N.tolist() == pytest.approx([stand_in_score(101), stand_in_score(7)])


def test_a_bad_and_a_too_large_body_are_the_clients_fault(root: str) -> None:
    for body, status in ((b"{", 400), (b" " * (MAX_BODY_BYTES + 1), 413)):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(urllib.request.Request(f"{root}/score", data=body))
        assert error.value.code == status
        assert json.loads(error.value.read())["error"]["field"] == "body"


def test_health_and_metrics_say_what_is_served(root: str) -> None:
    assert json.loads(urllib.request.urlopen(f"{root}/health").read())["model_version"] == "stand-in"
    text = urllib.request.urlopen(f"{root}/metrics").read().decode()
    assert "# TYPE dashclip_requests_total counter" in text
    assert 'dashclip_latency_seconds_bucket{le="+Inf"}' in text


@pytest.mark.slow
def test_workers_are_counted_together_replaced_when_killed_and_end_with_their_parent(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    code = (
        "from serving.servers.fastapi.app import serve\n"
        "from tests.serving.servers.fastapi.patient_scorer import patient_scorer\n"
        f"serve(patient_scorer, host='127.0.0.1', port={url.rsplit(':')[-1]}, workers=2)\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    parent = psutil.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[4], env=environment)
    try:
        wait_until(lambda: len(workers_of(parent)) == 2 and scored(url, 1))
        assert scored(url, 29)
        assert [requests_counted(url) for _ in range(6)] == [30] * 6
        killed, other = workers_of(parent)
        killed.kill()
        wait_until(lambda: len(workers_of(parent)) == 2 and killed not in workers_of(parent))
        assert other in workers_of(parent)
        assert scored(url, 5)
        assert requests_counted(url) == 35
        last = workers_of(parent)
        parent.kill()
        wait_until(lambda: not any(map(runs, last)))
    finally:
        for process in (*workers_of(parent), parent):
            process.kill()
        parent.wait()


def test_a_reply_does_not_wait_for_the_acknowledgement_of_its_head(server: Any) -> None:
    with connected(server) as connection:
        connection.sendall(GET)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        accepted = [one.transport.get_extra_info("socket") for one in server.server_state.connections]
        assert accepted
        assert all(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for one in accepted)


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-1", True), ("x" * 200, False), ("é", False), (None, False)]
)
def test_a_request_keeps_its_name_and_the_log_says_it(
    root: str, given: str | None, kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    body = b'{"user_id": 1, "query": "q", "candidates": [13]}'  # at which the stand-in fails
    headers = {"content-type": "application/json"}
    headers |= {"x-request-id": given.encode().decode("latin-1")} if given else {}
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(urllib.request.Request(f"{root}/score", body, headers))
    said = error.value.headers["x-request-id"]
    assert (said == given) == kept
    line = json.loads(JsonLines().format(caplog.records[-1]))
    assert (line["level"], line["request_ids"]) == ("ERROR", [said])


@pytest.mark.parametrize("sent", [b"", b"P", HEAD[:30], HEAD, HEAD + b"{"])
def test_a_request_that_does_not_arrive_loses_its_connection(
    server: Any, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded_connection, "REQUEST_S", 0.2)
    with connected(server) as connection:
        connection.sendall(sent)
        assert until_closed(connection).startswith(b"HTTP/1.1 408")


def test_a_second_request_that_does_not_arrive_loses_its_connection_too(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(server) as connection:
        connection.sendall(GET)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        monkeypatch.setattr(guarded_connection, "REQUEST_S", 0.2)
        connection.sendall(GET[:20])
        assert b"HTTP/1.1 408" in until_closed(connection)


def test_a_slow_answer_is_no_slow_request(monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.servers.fastapi.app import create_app

    monkeypatch.setattr(guarded_connection, "REQUEST_S", 0.2)
    scorer, going_on = blocked_scorer()
    with served(create_app(scorer)) as server, connected(server) as connection:
        connection.sendall(HEAD.replace(b"100", str(len(EXAMPLE)).encode()) + EXAMPLE)
        time.sleep(1)
        going_on.set()
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")


def test_connections_beyond_the_limit_are_told_to_come_back(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_until(lambda: not server.server_state.connections)
    monkeypatch.setattr(guarded_connection, "MAX_CONNECTIONS", 2)
    with connected(server), connected(server), connected(server) as third:
        answer = until_closed(third)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1" in answer


def test_a_client_that_leaves_is_no_fault(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for sent in (HEAD, HEAD + b"{", HEAD.replace(b"100", str(len(EXAMPLE)).encode()) + EXAMPLE):
        with connected(server) as connection:
            connection.sendall(sent)
    wait_until(lambda: not server.server_state.connections and not server.server_state.tasks)
    assert caplog.records == []


def blocked_scorer() -> tuple[Scorer, threading.Event]:
    """A stand-in that scores nothing until the event is set."""
    scorer, going_on = stand_in_scorer(), threading.Event()
    score_many = scorer.score_many

    def wait(requests: Sequence[ScoreRequest]) -> list[ScoreReply | RequestError]:
        going_on.wait(120)
        return score_many(requests)

    scorer.score_many = wait  # type: ignore[method-assign]
    return scorer, going_on


def test_probes_do_not_wait_for_scores_and_ready_says_that_none_come(monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.servers.fastapi import app

    monkeypatch.setattr(app, "_PROBE_S", 0.1)
    scorer, going_on = blocked_scorer()
    with (
        served(app.create_app(scorer, example=EXAMPLE)) as server,
        connected(server) as connection,
    ):
        connection.sendall(HEAD.replace(b"100", str(len(EXAMPLE)).encode()) + EXAMPLE)
        assert status_of(server, "/live") == 200
        assert status_of(server, "/health") == 200
        assert status_of(server, "/ready") == 503
        going_on.set()
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        assert status_of(server, "/ready") == 200


def test_a_worker_is_ready_if_it_scores_its_example_or_has_scored_of_late() -> None:
    from serving.servers.fastapi.app import create_app

    unwanted = EXAMPLE.replace(b"101", b"14")  # which the stand-in refuses
    with served(create_app(stand_in_scorer(), example=EXAMPLE)) as server:
        assert status_of(server, "/ready") == 200
        assert requests_counted(root_of(server)) == 0
    with served(create_app(stand_in_scorer(), example=unwanted)) as server:
        assert status_of(server, "/ready") == 503
        assert scored(root_of(server), 1)
        assert status_of(server, "/ready") == 200


def test_bodies_beyond_the_budget_of_memory_are_told_to_come_back_and_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from serving.servers.fastapi import app, lanes

    monkeypatch.setattr(lanes, "BODIES_BYTES", 1_000)
    with served(app.create_app(stand_in_scorer())) as server:
        for _ in range(3):
            request = urllib.request.Request(root_of(server) + "/score", b" " * 5_000)
            with pytest.raises(urllib.error.HTTPError) as error:
                urllib.request.urlopen(request)
            assert (error.value.code, error.value.headers["retry-after"]) == (503, "1")
            assert scored(root_of(server), 1)


@pytest.mark.parametrize("opens_later", [False, True])
def test_what_is_served_is_counted_for_drift_if_there_is_a_place_for_it(
    small_run: Path, tmp_path: Path, opens_later: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.drift import live_counts
    from serving.drift.count_files import read_counts
    from serving.scoring.predictor import Predictor
    from serving.servers.fastapi.app import create_app
    from serving.servers.healing import HealingScorer

    monkeypatch.setattr(live_counts, "MOST_A_SECOND", 1e9)
    predictor = Predictor.load(small_run / "package")
    scorer = HealingScorer(lambda: predictor) if opens_later else predictor
    app = create_app(scorer, counts_folder=tmp_path)
    if isinstance(scorer, HealingScorer):
        scorer.open()
    with served(app) as server, ScoreClient(f"{root_of(server)}/score", timeout_s=60) as client:
        for _ in range(3):
            client.score(ScoreRequest(user_id=1, query="query 1", candidates=[0, 4]))
    record, version = predictor.manifest.training_record, predictor.manifest.model_version
    assert record is not None
    windows = read_counts(tmp_path, record, model_version=version).windows
    days = [tally for window, tally in windows.items() if "T" not in window]  # two around midnight
    assert sum(day.requests for day in days) == 3
    assert sum(day.candidates for day in days) == 6


def test_the_schema_is_offered_only_if_it_is_asked_for(server: Any) -> None:
    from serving.servers.fastapi.app import create_app

    hidden = ("/openapi.json", "/docs", "/redoc", "/schema")
    assert [status_of(server, path) for path in hidden] == [404] * 4
    with served(create_app(stand_in_scorer(), schema=True)) as other:
        told = urllib.request.urlopen(root_of(other) + "/openapi.json", timeout=60).read()
        assert {"/score", "/schema"} <= json.loads(told)["paths"].keys()
        assert status_of(other, "/schema") == 503  # the stand-in is no package


def test_the_schema_of_requests_is_that_of_the_package(small_run: Path) -> None:
    from serving.scoring.predictor import Predictor
    from serving.servers.fastapi.app import create_app
    from serving.wire.request_schema import schema_of_package

    with served(create_app(Predictor.load(small_run / "package"), schema=True)) as server:
        told = json.loads(urllib.request.urlopen(root_of(server) + "/schema", timeout=60).read())
    assert told == schema_of_package(small_run / "package")


def test_a_worker_is_replaced_at_once_and_those_that_die_young_after_growing_pauses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from serving.servers.fastapi import supervisor as module

    now, started = 0.0, []

    class Dead:
        """A worker that has ended as soon as it is looked at."""

        pid, exitcode = 7, -9

        def __init__(self, *_: object) -> None:
            self.process = SimpleNamespace(is_alive=lambda: False)

        def start(self) -> None:
            started.append(now)

        def is_alive(self, timeout: float) -> bool:
            return False

        def kill(self) -> None:
            pass

        join = kill

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(module, "Process", Dead)
    monkeypatch.setattr(module, "_clock", lambda: now)
    supervisor = module.Supervisor(SimpleNamespace(workers=1), [], tmp_path)  # type: ignore[arg-type]
    supervisor.processes = [Dead()]  # type: ignore[list-item]
    for half_second in range(2_000):
        now = half_second / 2
        supervisor.keep_subprocess_alive()
        assert supervisor.nobody_serves
    pauses = [later - earlier for earlier, later in itertools.pairwise(started)]
    assert started[0] == 0.5
    assert pauses[:8] == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60], abs=0.51)
    assert not supervisor.should_exit.is_set()


def test_a_server_that_ends_answers_who_asks_meanwhile_and_says_that_it_was_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from serving.servers.fastapi.app import create_app

    monkeypatch.setattr(guarded_connection, "LAST_S", 3.0)
    with served(create_app(stand_in_scorer())) as server:
        idle, asking = connected(server), connected(server)
        for connection in (idle, asking):
            connection.sendall(GET)
            received = b""
            while not received.endswith(b"}"):
                received += connection.recv(4096)
        server.should_exit = True
        while server.servers and server.servers[0].is_serving():
            time.sleep(0.01)
        asking.sendall(GET)
        answer = until_closed(asking)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer
        assert until_closed(idle) == b""


@pytest.mark.slow
def test_a_server_that_cannot_open_its_scorer_says_503_at_once_and_serves_once_it_can(tmp_path: Path) -> None:
    port = free_port()
    there, state = tmp_path / "there", tmp_path / "state"
    code = (
        "from pathlib import Path\n"
        "from serving.servers.fastapi import app\n"
        "from tests.serving.servers.torchserve.stand_in_handler import stand_in_scorer\n"
        "def open_scorer():\n"
        f"    return Path({str(there)!r}).read_text() and stand_in_scorer()\n"
        "if __name__ == '__main__':\n"
        f"    app.serve(open_scorer, host='127.0.0.1', port={port}, "
        f"state=Path({str(state)!r}))\n"
    )
    script = tmp_path / "opens_later.py"
    script.write_text(code)
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[4]),
        "DATABASE_URL": "a:secret@host",
    }
    parent = psutil.Popen(
        [sys.executable, str(script)], stderr=(tmp_path / "err").open("wb"), env=environment
    )
    url = f"http://127.0.0.1:{port}"
    seen = set()
    try:
        wait_until(lambda: listens(port))
        deadline = time.monotonic() + 240
        while not there.exists():
            request = urllib.request.Request(f"{url}/score", EXAMPLE, {"content-type": "application/json"})
            with pytest.raises(urllib.error.HTTPError) as error:
                urllib.request.urlopen(request, timeout=30)
            assert (error.value.code, int(error.value.headers["retry-after"]) >= 1) == (503, True)
            seen.add(json.loads(error.value.read())["error"]["message"].split(";")[0])
            assert urllib.request.urlopen(f"{url}/live", timeout=30).status == 200
            if any("no_model" in said for said in seen):
                there.write_text("yes")
            assert time.monotonic() < deadline
        wait_until(lambda: scored(url, 1))
        seen_by_worker = workers_of(parent)[0].environ()
        assert "DATABASE_URL" not in seen_by_worker
        assert seen_by_worker["PATH"] == os.environ["PATH"]
        assert (state / "server.pid").read_text() == f"{parent.pid}\n"
        parent.terminate()
        assert parent.wait(60) == 0
    finally:
        for process in (*workers_of(parent), parent):
            with contextlib.suppress(psutil.Error):
                process.kill()
    expected = {"no worker is up", "no scores now (no_model)"}
    assert expected <= seen <= expected | {"no scores now (too_slow)"}  # the last on a busy machine
    printed = (tmp_path / "err").read_text()
    assert (state / "logs" / "server.jsonl").read_text() == printed
    lines = [json.loads(line) for line in printed.splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    assert any("cannot be opened" in line["message"] for line in lines)
    assert not (state / "server.pid").exists()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def status_of(server: Any, path: str) -> int:
    try:
        return int(urllib.request.urlopen(root_of(server) + path, timeout=60).status)
    except urllib.error.HTTPError as error:
        return error.code


def runs(process: psutil.Process) -> bool:
    """Whether it has not ended; who should take note of its end may not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def workers_of(parent: psutil.Process) -> list[psutil.Process]:
    """Its worker processes that live, whatever else it has started."""
    if not parent.is_running():
        return []
    alive = [one for one in parent.children() if runs(one)]
    return [one for one in alive if "spawn_main" in " ".join(one.cmdline())]


def scored(url: str, times: int) -> bool:
    """Whether so many requests, each on a connection of its own, get their scores."""
    try:
        for _ in range(times):
            with ScoreClient(f"{url}/score", retries=0, timeout_s=60) as client:
                client.score(ScoreRequest(user_id=1, query="q", candidates=[101]))
    except (ClientError, OSError):
        return False
    return True


def requests_counted(url: str) -> float:
    """What /metrics says, whichever worker answers."""
    page = urllib.request.urlopen(f"{url}/metrics").read().decode()
    return next(
        float(line.split()[1]) for line in page.splitlines() if line.startswith("dashclip_requests_total ")
    )


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
