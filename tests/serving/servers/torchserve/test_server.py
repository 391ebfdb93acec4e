"""A real TorchServe around the stand-in: started, asked, hurt, stopped. Needs java."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest

from features.online.request import RequestError, ScoreRequest
from serving.client import ClientError, ScoreClient, share_inference_key
from serving.servers.torchserve.archive import build_archive
from serving.servers.torchserve.files import ServerSettings
from serving.servers.torchserve.server import RunningServer, ServerError, running, start, stop, worker_pids
from tests.serving.servers.torchserve.stand_in_handler import AS_OF, stand_in_score

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("java") is None, reason="TorchServe needs java"),
]

REQUEST = ScoreRequest(user_id=1, query="q", candidates=[101, 7])
SCORES = [stand_in_score(101), stand_in_score(7)]


def free_ports() -> int:
    """The first of six; each process of the suite looks in a place of its own, lest two find the same."""
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for first in range(18_080 + 2_000 * process, 60_000, 97):
        try:
            for port in range(first, first + 6):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError("no six free ports in a row")


def test_a_server_lives_while_it_becomes_another_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher becomes Java, and for a moment Linux shows no command at all."""
    code = [sys.executable, "-c", "import time; time.sleep(60)", "org.pytorch.serve.ModelServer"]
    with subprocess.Popen(code, cwd=tmp_path) as process:
        server = RunningServer(process.pid, "", "", "", None, tmp_path / "logs", tmp_path)
        assert server.alive
        shown = psutil.Process.cmdline
        looks = count()
        monkeypatch.setattr(psutil.Process, "cmdline", lambda self: shown(self) if next(looks) > 2 else [])
        calls = [server.alive]
        process.kill()
        process.wait()
        assert [*calls, server.alive] == [True, False]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    build_archive(
        folder,
        folder,
        version="1.0",
        example=b'{"user_id": 1, "query": "q", "candidates": [101]}',
        handler=Path(__file__).with_name("stand_in_handler.py"),
    )
    return folder


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("with a space") / "state"


@pytest.fixture(scope="module")
def server(store: Path, state: Path) -> Iterator[RunningServer]:
    from serving.servers.torchserve.archive import find_archive

    settings = ServerSettings(port=free_ports(), workers=2, batch_size=4, batch_delay_ms=2, token_minutes=1)
    before = sorted(store.rglob("*"))
    os.environ["DASHCLIP_TEST_DATABASE_URL"] = "postgresql://user:secret@host"
    yield start(find_archive(store), settings, state=state)
    scratch = running(state)
    assert scratch is not None
    assert running(store) is None
    assert stop(state)
    assert not scratch.alive
    assert not scratch.scratch.exists()
    assert not list(state.glob("*key*.json"))
    assert not stop(state)
    assert sorted(store.rglob("*")) == before, "the store is never written to"


def client(server: RunningServer, **options: object) -> ScoreClient:
    options = {"key_file": server.key_file, "management_url": server.management_url, **options}
    return ScoreClient(server.url, timeout_s=30, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("body_format", ["json", "arrow"])
def test_torchserve_scores_both_formats(server: RunningServer, body_format: str) -> None:
    with client(server, body_format=body_format) as one:
        assert one.score(REQUEST).scores_N.tolist() == pytest.approx(SCORES)


def test_a_server_does_not_read_what_its_caller_reads(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In `while read name; do dashclip serve $name; done` it would take the rest of the names."""
    from serving.servers.torchserve.archive import find_archive

    started: list[dict[str, Any]] = []

    def launch(command: list[str], **options: Any) -> None:
        started.append(options)
        raise OSError("not started")

    archive = find_archive(store)
    monkeypatch.setattr(subprocess, "Popen", launch)
    with pytest.raises(OSError, match="not started"):
        start(archive, ServerSettings(port=free_ports()), state=tmp_path)
    assert started[-1]["stdin"] == subprocess.DEVNULL


def test_a_client_error_is_400_or_413_and_names_its_field(server: RunningServer) -> None:
    with client(server, retries=0) as one:
        for candidates, field in (([14], "candidate_columns.price"), ([], "candidates")):
            body = json.dumps({"user_id": 1, "query": "q", "candidates": candidates}).encode()
            status, answer, _ = one.post(body, "application/json")
            assert (status, json.loads(answer)["error"]["field"]) == (400, field)
        for kind in ("application/json", "text/plain", "no kind"):
            assert one.post(b"", kind)[0] == 400
            assert one.post(b"{&=+%", kind)[0] == 400
        # A form is refused by us if TorchServe can parse it; if not, its frontend says 500 (docs/serving.md).
        for form in (b"", b'{"user_id":1,"query":"a b","candidates":[1]}'):
            assert one.post(form, "application/x-www-form-urlencoded")[0] == 400
        assert one.post(b" " * 4_500_000, "application/json")[0] == 413
        assert one.post(b" " * 7_000_000, "application/json")[0] == 413


def test_a_bad_request_in_a_batch_does_not_fail_its_neighbours(server: RunningServer) -> None:
    outcomes: list[object] = []

    def ask(candidates: list[int]) -> None:
        with client(server) as one:
            try:
                request = ScoreRequest(user_id=1, query="q", candidates=candidates)
                outcomes.append(one.score(request).scores_N.tolist()[0])
            except RequestError as refusal:
                outcomes.append(refusal.field)

    threads = [threading.Thread(target=ask, args=([14] if i % 4 == 0 else [101],)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("candidate_columns.price") == 4
    assert outcomes.count(pytest.approx(SCORES[0])) == 12


def test_without_a_token_nothing_is_scored_and_a_stale_one_is_renewed(server: RunningServer) -> None:
    with ScoreClient(server.url) as one, pytest.raises(ClientError, match="Token Authorization failed"):
        one.score(REQUEST)
    with client(server, token="stale") as one:
        one.score(REQUEST)
        assert one._tokens is not None
        old = one._tokens.current()
        assert one._tokens.renewed(than=old) != old
        one.score(REQUEST)


def test_the_inference_key_scores_and_cannot_manage(server: RunningServer) -> None:
    assert server.key_file is not None
    shared = share_inference_key(server.key_file)
    assert shared == server.key_file.with_name("inference_key.json")
    key = json.loads(shared.read_text())
    assert set(key) == {"inference"}
    with client(server, key_file=shared, management_url=None) as one:
        one.score(REQUEST)
    request = urllib.request.Request(
        f"{server.management_url}/models", headers={"Authorization": f"Bearer {key['inference']['key']}"}
    )
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request)
    assert error.value.code == 400


@pytest.mark.parametrize(
    ("key", "url", "status"),
    [
        ("management", "http://127.0.0.1:9/x.mar", 404),
        ("management", "s3://bucket/x.mar", 404),
        ("management", "../x", 404),
        ("inference", "dashclip", 400),  # its token is for predictions
    ],
)
def test_models_from_elsewhere_and_by_other_tokens_cannot_be_registered(
    server: RunningServer, key: str, url: str, status: int
) -> None:
    assert server.key_file is not None
    token = json.loads(server.key_file.read_text())[key]["key"]
    request = urllib.request.Request(
        f"{server.management_url}/models?url={url}",
        method="POST",
        headers={"Authorization": f"Bearer {token}"},
    )
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request)
    assert error.value.code == status


def test_a_fault_is_a_json_line_with_its_level_and_the_name_of_its_request(server: RunningServer) -> None:
    with client(server, retries=0) as one, pytest.raises(ClientError, match="its log says where"):
        one.score(ScoreRequest(user_id=1, query="q", candidates=[13]))
    log = server.logs / "workers.jsonl"
    deadline = time.monotonic() + 60
    while not log.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    line = json.loads(log.read_text().splitlines()[-1])
    assert (line["level"], line["logger"]) == ("ERROR", "serving.servers.endpoint")
    assert len(line["request_ids"]) == 1
    assert "ZeroDivisionError" in line["message"]
    assert line["time"].startswith("20")


def test_workers_see_no_secret_of_the_environment(server: RunningServer) -> None:
    for pid in worker_pids(server):
        seen = psutil.Process(pid).environ()
        assert "DASHCLIP_TEST_DATABASE_URL" not in seen
        assert "PATH" in seen


def test_measures_reach_prometheus(server: RunningServer) -> None:
    with client(server) as one:
        one.score(REQUEST)
    # TorchServe reads the worker's measures from its log line by line, so the page may show half.
    wanted = (
        "dashclip_requests_total{",
        "dashclip_candidates_total{",
        "dashclip_latency_seconds_bucket{",
        "dashclip_latency_seconds_count{",
        "dashclip_latency_seconds_sum{",
        "dashclip_snapshot_age_seconds{",
        'le="+Inf"',
    )
    deadline = time.monotonic() + 30
    missing: tuple[str, ...] = wanted
    while missing and time.monotonic() < deadline:
        time.sleep(0.2)
        page = urllib.request.urlopen(server.metrics_url).read().decode()
        missing = tuple(name for name in wanted if name not in page)
    assert not missing


def test_probes_need_no_token_and_say_what_is_served_and_nothing_else(server: RunningServer) -> None:
    with client(server) as one:
        one.score(REQUEST)
    assert probe(server, "/live") == (200, {"live": True})
    assert probe(server, "/token")[0] == 404
    wait_until(lambda: probe(server, "/ready")[1].get("workers") == 2)
    status, said = probe(server, "/ready")
    facts = {"model_version": ["stand-in"], "generation": ["000001"], "as_of": [AS_OF]}
    unknown: dict[str, list[str]] = {"package": [], "generation_files": []}
    state = {"ready": True, "workers": 2, "draining": False, "fallen_back": False}
    assert (status, said) == (200, {**state, **facts, **unknown})
    silent = [socket.create_connection(server.probes, timeout=30) for _ in range(40)]
    wait_until(lambda: probe(server, "/live")[0] == 200)  # who says nothing holds nobody up for long
    for connection in silent:
        connection.close()


def test_a_token_is_renewed_before_it_ends_and_who_reads_the_inference_key_notices_nothing(
    server: RunningServer,
) -> None:
    assert server.key_file is not None
    shared = server.key_file.with_name("inference_key.json")
    first = shared.read_text()
    with client(server, key_file=shared, management_url=None, retries=0) as one:
        wait_until(lambda: bool(one.score(REQUEST)) and shared.read_text() != first)
        one.score(REQUEST)
    assert set(json.loads(shared.read_text())) == {"inference"}
    assert shared.stat().st_mode & 0o777 == 0o600


def test_a_killed_worker_is_replaced_while_the_other_goes_on(server: RunningServer) -> None:
    before = worker_pids(server)
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: before[0] not in worker_pids(server))
    outcomes: list[object] = []
    with client(server, retries=4) as one:
        for _ in range(20):
            try:
                outcomes.append(one.score(REQUEST).scores_N.tolist() == pytest.approx(SCORES))
            except ClientError as error:  # sent to the dead one before TorchServe saw its end
                lost = ("Worker died", "timed out")  # and not sent again: it might kill the next one, too
                outcomes += [str(error), any(words in str(error) for words in lost)]
    assert all(outcomes)
    assert sum(isinstance(one, str) for one in outcomes) <= 1
    assert probe(server, "/ready")[0] == 200


def test_in_the_foreground_a_server_without_a_model_says_503_and_heals_and_management_is_closed(
    tmp_path: Path,
) -> None:
    there = tmp_path / "there"
    there.touch()
    handler = tmp_path / "handler.py"
    handler.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[4])!r})\n"
        "from serving.servers.torchserve.handler import DashclipHandler\n"
        "from tests.serving.servers.torchserve.stand_in_handler import stand_in_scorer\n\n"
        "class OpensLater(DashclipHandler):\n"
        "    def open(self, settings, model_dir):\n"
        f"        Path({str(there)!r}).read_text()\n"
        "        return stand_in_scorer(), None\n"
    )
    store = tmp_path / "store"
    body = b'{"user_id": 1, "query": "q", "candidates": [101]}'
    build_archive(tmp_path, store, version="1.0", example=body, handler=handler)
    there.unlink()
    port = free_ports()
    state = tmp_path / "state"
    command = [sys.executable, "-m", "experiments", "serve", str(store), "--foreground", "--no-token"]
    command += ["--port", str(port), "--state-dir", str(state)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        try:
            wait_until(lambda: running(state) is not None and bool(worker_pids(known(state))))
            server = known(state)
            wait_until(lambda: status_of(server, body)[0] == 503)
            assert int(status_of(server, body)[1] or 0) >= 1
            assert probe(server, "/live")[0] == 200
            assert probe(server, "/ready")[0] == 503
            there.touch()
            wait_until(lambda: status_of(server, body)[0] == 200)
            wait_until(lambda: probe(server, "/ready")[0] == 200)
            for offset in (1, 4):  # management, by HTTP and gRPC
                for address in ("127.0.0.1", "127.255.255.255", "0.0.0.0"):
                    with pytest.raises(OSError, match=r"refused|unreachable"):
                        socket.create_connection((address, port + offset), timeout=5)
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 143
        finally:
            stop(state)
            process.kill()
            process.wait()
    lines = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert all({"time", "level", "message"} <= set(line) for line in lines)
    assert any("there" in line["message"] and line["level"] == "ERROR" for line in lines)
    assert running(state) is None
    assert not server.scratch.exists()


def known(state: Path) -> RunningServer:
    server = running(state)
    assert server is not None
    return server


def status_of(server: RunningServer, body: bytes) -> tuple[int, str | None]:
    """Status and Retry-After; 0 while nobody listens."""
    request = urllib.request.Request(server.url, body, {"content-type": "application/json"})
    try:
        return urllib.request.urlopen(request, timeout=60).status, None
    except urllib.error.HTTPError as error:
        return error.code, error.headers["retry-after"]
    except OSError:
        return 0, None


def probe(server: RunningServer, path: str) -> tuple[int, dict[str, object]]:
    try:
        with urllib.request.urlopen(server.probes_url + path, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
    except OSError:
        return 0, {}


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_second_server_for_the_store_and_a_taken_port_are_refused(
    server: RunningServer, store: Path, state: Path, tmp_path: Path
) -> None:
    from serving.servers.torchserve.archive import find_archive

    archive = find_archive(store)
    with pytest.raises(ServerError, match=r"dashclip stop '.*with a space.*state'"):
        start(archive, ServerSettings(port=free_ports()), state=state)
    other = shutil.copytree(archive.path, tmp_path / "dashclip")
    taken = int(server.url.split(":")[2].split("/")[0])
    with pytest.raises(ServerError, match="--port"):
        start(find_archive(other.parent), ServerSettings(port=taken))
