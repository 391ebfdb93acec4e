"""The FastAPI app answers as TorchServe's handler does: they share the endpoint."""

import json
import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from features.online.request import MAX_BODY_BYTES, ScoreRequest
from serving.client import ClientError, ScoreClient
from tests.serving.servers.stand_in_handler import stand_in_score, stand_in_scorer

uvicorn = pytest.importorskip("uvicorn", reason="the extra `fastapi` is not installed")


@pytest.fixture(scope="module")
def root() -> Iterator[str]:
    from serving.servers.fastapi_app import create_app

    server = uvicorn.Server(uvicorn.Config(create_app(stand_in_scorer()), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    code = (
        "from serving.servers.fastapi_app import serve\n"
        "from tests.serving.servers.stand_in_handler import stand_in_scorer\n"
        f"serve(stand_in_scorer, host='127.0.0.1', port={url.rsplit(':')[-1]}, workers=2)\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    parent = psutil.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[3], env=environment)
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


def test_a_reply_does_not_wait_for_the_acknowledgement_of_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.servers import fastapi_app

    accepted_no_delay = []

    class Accepting:
        def __init__(self, _: object, sockets: list[socket.socket]) -> None:
            self.listening = sockets[0]

        def run(self) -> None:
            with socket.create_connection(self.listening.getsockname()):
                accepted, _ = self.listening.accept()
                with accepted:
                    accepted_no_delay.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(fastapi_app, "Multiprocess", Accepting)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")  # `serve` sets it for its workers: put back afterwards
    fastapi_app.serve(stand_in_scorer, host="127.0.0.1", port=0)
    assert accepted_no_delay == [1]


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
