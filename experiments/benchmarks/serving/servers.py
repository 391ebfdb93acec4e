"""The servers to compare: TorchServe with and without a model, workers and batches, and FastAPI."""

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from experiments.benchmarks.serving.closed_loop import Target, ask
from experiments.benchmarks.serving.interleaved import Floats, Timing
from experiments.benchmarks.serving.memory import pss_mib
from experiments.runtime.ports import free_ports
from experiments.serving_checks.loadtest import encoded, http_request
from features.online.request import ScoreRequest
from serving.client import Tokens
from serving.servers.torchserve.archive import archive_package, build_archive
from serving.servers.torchserve.files import ServerSettings
from serving.servers.torchserve.server import start, stop, worker_pids
from serving.wire import json_codec

_HANDLER = Path(__file__).with_name("noop_handler.py")
FASTAPI, NOOP = "fastapi", "noop"


@dataclass(frozen=True)
class Setting:
    """One server; `workers` and `batch_size` as for `dashclip serve`."""

    title: str
    workers: int = 1
    batch_size: int = 1


#: Servers by name. The first is the one that end-to-end numbers are of.
SETTINGS = {
    "w1": Setting("TorchServe, 1 worker"),
    NOOP: Setting("TorchServe, no-op handler"),
    "w2": Setting("TorchServe, 2 workers", workers=2),
    "w1b8": Setting("TorchServe, 1 worker, batches of 8", batch_size=8),
    "w2b8": Setting("TorchServe, 2 workers, batches of 8", workers=2, batch_size=8),
    FASTAPI: Setting("FastAPI + uvicorn, 1 worker"),
}


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes:
        start_s: from the start of its process to its first scores.
        worker_pids: tells the process ids of its workers.
    """

    host: str
    port: int
    path: str
    start_s: float
    worker_pids: Callable[[], list[int]]
    tokens: Tokens | None = None

    def target(self, requests: Sequence[ScoreRequest], body_format: str) -> Target:
        """These requests as bytes, ready to be sent."""
        token = self.tokens.current() if self.tokens else None
        bodies, content_type = encoded(requests, body_format)
        whole = [http_request(self.path, body, content_type, token=token) for body in bodies]
        return Target(self.host, self.port, whole)


@contextmanager
def servers(
    package: Path,
    folder: Path,
    names: Sequence[str],
    *,
    noop_candidates: int,
    progress: Callable[[str], None],
) -> Iterator[dict[str, Server | str]]:
    """Started servers by name, or why one could not be; all of them are stopped in the end."""
    started: dict[str, Server | str] = {}
    with ExitStack() as stack:
        for name in names:
            progress(f"starting {SETTINGS[name].title}")
            try:
                if name == FASTAPI:
                    started[name] = stack.enter_context(_fastapi(package))
                else:
                    one = _torchserve(package, folder / name, name, noop_candidates=noop_candidates)
                    started[name] = stack.enter_context(one)
            except (ValueError, OSError, ImportError) as error:
                started[name] = str(error)
        yield started


@contextmanager
def _torchserve(package: Path, store: Path, name: str, *, noop_candidates: int) -> Iterator[Server]:
    setting = SETTINGS[name]
    if name == NOOP:
        example = json_codec.encode_request(ScoreRequest(user_id=1, query="", candidates=[1]))
        settings: Mapping[str, Any] = {"noop_candidates": noop_candidates}
        archive = build_archive(
            package, store, version="1", example=example, handler=_HANDLER, settings=settings
        )
    else:
        archive = archive_package(package, store, name="dashclip", embed=False)
    ports = ServerSettings(
        port=free_ports(), workers=setting.workers, batch_size=setting.batch_size, token_minutes=600
    )
    began = time.perf_counter()
    try:
        running = start(archive, ports)
        parts = urlsplit(running.url)
        assert running.key_file is not None
        yield Server(
            host=str(parts.hostname),
            port=int(parts.port or 80),
            path=parts.path,
            start_s=time.perf_counter() - began,
            worker_pids=lambda: worker_pids(running),
            tokens=Tokens(running.key_file, running.management_url),
        )
    finally:
        stop(store)


@contextmanager
def _fastapi(package: Path) -> Iterator[Server]:
    port = free_ports(1)
    command = [sys.executable, "-m", "experiments", "serve", str(package), "--fastapi", "--port", str(port)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while not _answers(port):
            if process.poll() is not None:
                raise ValueError("`dashclip serve --fastapi` ended at once; its output is above")
            if time.perf_counter() - began > 120:
                raise ValueError("FastAPI did not answer within two minutes")
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [one.pid for one in children if "resource_tracker" not in " ".join(one.cmdline())]
        yield Server("127.0.0.1", port, "/score", time.perf_counter() - began, lambda: workers)
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.terminate()
        process.terminate()
        process.wait(timeout=20)


def measure_servers(
    started: Mapping[str, Server],
    requests: Mapping[int, Sequence[ScoreRequest]],
    *,
    rounds: int,
    seconds: float,
    failed: dict[str, str],
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """One row for each server, body format, number of candidates and of clients, measured in turns.

    Args:
        failed: gets a server's title and what went wrong, if an answer is not 200 or does not come; that
            server has no rows then.
    """
    plan = [
        (name, form, count, 1)
        for count in requests
        for name in started
        for form in ("json", "arrow")
        if form == "arrow" or name in ("w1", FASTAPI)
    ]
    most = 100 if 100 in requests else max(requests)
    plan += [(name, "arrow", count, 8) for count in requests if count in (20, most) for name in started]
    latencies: dict[Any, list[Floats]] = {key: [] for key in plan}
    rates: dict[Any, list[float]] = {key: [] for key in plan}
    for turn in range(rounds + 1):
        progress(f"servers, round {turn} of {rounds}")
        for key in plan:
            name, form, count, clients = key
            if SETTINGS[name].title in failed:
                continue
            try:
                target = started[name].target(requests[count], form)
                answers = ask(target, connections=clients, seconds=seconds if turn else min(seconds, 0.3))
            except OSError as error:
                failed[SETTINGS[name].title] = str(error)
                continue
            if set(answers.statuses) != {200}:
                failed[SETTINGS[name].title] = f"it answered with {dict(answers.statuses)}"
            elif turn:
                latencies[key].append(answers.latency_ms)
                rates[key].append(len(answers.latency_ms) / answers.seconds)
    return [
        {
            "server": name,
            "title": SETTINGS[name].title,
            "format": form,
            "candidates": count,
            "clients": clients,
            "requests_per_s": sorted(rates[name, form, count, clients])[rounds // 2],
            **vars(Timing.of(latencies[name, form, count, clients])),
        }
        for name, form, count, clients in plan
        if SETTINGS[name].title not in failed
    ]


def worker_memory(started: Mapping[str, Server]) -> dict[str, list[float]]:
    """PSS in MiB of each server's workers, after the load."""
    return {name: [pss_mib(pid) for pid in server.worker_pids()] for name, server in started.items()}


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/health")
        return "generation" in json.loads(connection.getresponse().read())
    except (OSError, ValueError, http.client.HTTPException):
        return False
    finally:
        connection.close()
