"""The servers to compare: TorchServe with and without a model, workers and batches, and FastAPI."""

import http.client
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
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
from serving.servers.torchserve.server import RunningServer, running, start, stop, worker_pids
from serving.wire import json_codec

_HANDLER = Path(__file__).with_name("noop_handler.py")
FASTAPI, NOOP = "fastapi", "noop"
_TOKEN_MINUTES = 600
#: Servers that are asked in JSON, too.
_BOTH_FORMATS = ("w1", "w1_before", FASTAPI, "fastapi_before")


@dataclass(frozen=True)
class Setting:
    """One server; `workers` and `batch_size` as for `dashclip serve`.

    Attributes:
        scores: False for TorchServe with a handler that does nothing.
        before: the server of an earlier checkout.
    """

    title: str
    workers: int = 1
    batch_size: int = 1
    fastapi: bool = False
    scores: bool = True
    before: bool = False


#: Servers by name. The first is the one that end-to-end numbers are of.
SETTINGS = {
    "w1": Setting("TorchServe, 1 worker"),
    NOOP: Setting("TorchServe, no-op handler", scores=False),
    "noop_b8": Setting("TorchServe, no-op handler, batches of 8", batch_size=8, scores=False),
    "w2": Setting("TorchServe, 2 workers", workers=2),
    "w1b8": Setting("TorchServe, 1 worker, batches of 8", batch_size=8),
    "w2b4": Setting("TorchServe, 2 workers, batches of 4", workers=2, batch_size=4),
    FASTAPI: Setting("FastAPI + uvicorn, 1 worker", fastapi=True),
    "fastapi_b8": Setting("FastAPI + uvicorn, 1 worker, batches of 8", batch_size=8, fastapi=True),
    "fastapi_w2b4": Setting(
        "FastAPI + uvicorn, 2 workers, batches of 4", workers=2, batch_size=4, fastapi=True
    ),
}
#: Those of an earlier checkout that are measured beside them.
BEFORE = {
    f"{name}_before": replace(SETTINGS[name], title=f"{SETTINGS[name].title}, before", before=True)
    for name in ("w1", "w1b8", FASTAPI)
}
_KNOWN = {**SETTINGS, **BEFORE}


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes:
        start_s: from the start of its process to its first scores.
        worker_pids: tells the process ids of its workers.
        frontend_pids: likewise, of what passes requests to them, or keeps them.
    """

    host: str
    port: int
    path: str
    start_s: float
    worker_pids: Callable[[], list[int]]
    tokens: Tokens | None = None
    frontend_pids: Callable[[], list[int]] = list

    def cpu_s(self) -> dict[str, float]:
        """Processor time of its processes up to now."""
        return {"frontend": _cpu_s(self.frontend_pids()), "workers": _cpu_s(self.worker_pids())}

    def target(self, requests: Sequence[ScoreRequest], body_format: str) -> Target:
        """These requests as bytes, ready to be sent."""
        token = self.tokens.current() if self.tokens else None
        bodies, content_type = encoded(requests, body_format)
        whole = [http_request(self.path, body, content_type, token=token) for body in bodies]
        return Target(self.host, self.port, whole)


def _cpu_s(pids: Sequence[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return float(sum(one.user + one.system for one in times))


@contextmanager
def servers(
    package: Path,
    folder: Path,
    names: Sequence[str],
    *,
    noop_candidates: int,
    before: Path | None = None,
    progress: Callable[[str], None],
) -> Iterator[dict[str, Server | str]]:
    """Started servers by name, or why one could not be; all of them are stopped in the end.

    Args:
        before: an earlier checkout, for the names of `BEFORE`.
    """
    started: dict[str, Server | str] = {}
    with ExitStack() as stack:
        for name in names:
            setting = _KNOWN[name]
            progress(f"starting {setting.title}")
            try:
                one: AbstractContextManager[Server]
                if setting.fastapi:
                    one = _fastapi(package, setting, checkout=before if setting.before else None)
                elif setting.before:
                    assert before is not None
                    one = _torchserve_of(before, package, folder / name, setting)
                else:
                    one = _torchserve(package, folder / name, setting, noop_candidates=noop_candidates)
                started[name] = stack.enter_context(one)
            except (ValueError, OSError, ImportError, subprocess.SubprocessError) as error:
                started[name] = str(error)
        yield started


@contextmanager
def _torchserve(package: Path, store: Path, setting: Setting, *, noop_candidates: int) -> Iterator[Server]:
    if setting.scores:
        archive = archive_package(package, store, name="dashclip", embed=False)
    else:
        example = json_codec.encode_request(ScoreRequest(user_id=1, query="", candidates=[1]))
        settings: Mapping[str, Any] = {"noop_candidates": noop_candidates}
        archive = build_archive(
            package, store, version="1", example=example, handler=_HANDLER, settings=settings
        )
    ports = ServerSettings(
        port=free_ports(),
        workers=setting.workers,
        batch_size=setting.batch_size,
        token_minutes=_TOKEN_MINUTES,
    )
    began = time.perf_counter()
    try:
        yield _server_of(start(archive, ports), began)
    finally:
        stop(store)


@contextmanager
def _torchserve_of(checkout: Path, package: Path, store: Path, setting: Setting) -> Iterator[Server]:
    """TorchServe as the commands of another checkout start it."""

    def command(*words: object) -> None:
        called = [sys.executable, "-m", "experiments", *map(str, words)]
        subprocess.run(called, cwd=checkout, check=True, stdout=subprocess.DEVNULL)

    command("archive", package, store)
    sizes = ("--workers", setting.workers, "--batch-size", setting.batch_size)
    began = time.perf_counter()
    try:
        command("serve", store, "--port", free_ports(), "--token-minutes", _TOKEN_MINUTES, *sizes)
        found = running(store)
        if found is None:
            raise ValueError(f"the server of {checkout} has ended")
        yield _server_of(found, began)
    finally:
        stop(store)


def _server_of(found: RunningServer, began: float) -> Server:
    parts = urlsplit(found.url)
    assert found.key_file is not None
    return Server(
        host=str(parts.hostname),
        port=int(parts.port or 80),
        path=parts.path,
        start_s=time.perf_counter() - began,
        worker_pids=lambda: worker_pids(found),
        frontend_pids=lambda: [found.pid],
        tokens=Tokens(found.key_file, found.management_url),
    )


@contextmanager
def _fastapi(package: Path, setting: Setting, *, checkout: Path | None) -> Iterator[Server]:
    port = free_ports(1)
    command = [sys.executable, "-m", "experiments", "serve", str(package), "--fastapi", "--port", str(port)]
    command += ["--workers", str(setting.workers), "--batch-size", str(setting.batch_size)]
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=checkout, stdout=subprocess.DEVNULL)
    try:
        while not _answers(port):
            if process.poll() is not None:
                raise ValueError("`dashclip serve --fastapi` ended at once; its output is above")
            if time.perf_counter() - began > 120:
                raise ValueError("FastAPI did not answer within two minutes")
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [one.pid for one in children if "resource_tracker" not in " ".join(one.cmdline())]
        yield Server(
            "127.0.0.1",
            port,
            "/score",
            time.perf_counter() - began,
            lambda: workers,
            frontend_pids=lambda: [process.pid],
        )
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

    `cpu_ms` is the processor time of a request by who spent it: the frontend, the workers, the client.

    Args:
        failed: gets a server's title and what went wrong, if an answer is not 200 or does not come; that
            server has no rows then.
    """
    plan = [
        (name, form, count, 1)
        for count in requests
        for name in started
        for form in ("json", "arrow")
        if form == "arrow" or name in _BOTH_FORMATS
    ]
    most = 100 if 100 in requests else max(requests)
    plan += [(name, "arrow", count, 8) for count in requests if count in (20, most) for name in started]
    latencies: dict[Any, list[Floats]] = {key: [] for key in plan}
    rates: dict[Any, list[float]] = {key: [] for key in plan}
    cpu_s: dict[Any, Counter[str]] = {key: Counter() for key in plan}
    for turn in range(rounds + 1):
        progress(f"servers, round {turn} of {rounds}")
        for key in plan:
            name, form, count, clients = key
            title = _KNOWN[name].title
            if title in failed:
                continue
            try:
                target = started[name].target(requests[count], form)
                before = {**started[name].cpu_s(), "client": time.process_time()}
                answers = ask(target, connections=clients, seconds=seconds if turn else min(seconds, 0.3))
                after = {**started[name].cpu_s(), "client": time.process_time()}
            except (OSError, psutil.Error) as error:
                failed[title] = str(error)
                continue
            if set(answers.statuses) != {200}:
                failed[title] = f"it answered with {dict(answers.statuses)}"
            elif turn:
                latencies[key].append(answers.latency_ms)
                rates[key].append(len(answers.latency_ms) / answers.seconds)
                cpu_s[key].update({kind: after[kind] - before[kind] for kind in after})
    return [
        {
            "server": name,
            "title": _KNOWN[name].title,
            "format": form,
            "candidates": count,
            "clients": clients,
            "requests_per_s": sorted(rates[key])[rounds // 2],
            "cpu_ms": {kind: 1e3 * took / sum(map(len, latencies[key])) for kind, took in cpu_s[key].items()},
            **vars(Timing.of(latencies[key])),
        }
        for key in plan
        for name, form, count, clients in (key,)
        if _KNOWN[name].title not in failed
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
