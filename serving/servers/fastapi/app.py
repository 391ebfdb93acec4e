"""The second server: the same endpoint behind FastAPI and uvicorn. Needs the extra `fastapi`.

POST /score takes and gives what TorchServe's endpoint does, GET /health says what is served, GET /metrics
speaks Prometheus, GET /live answers while the process does, GET /ready while it scores. There is no
authorization: put a reverse proxy in front of anything but loopback.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import mark_process_dead
from starlette.requests import ClientDisconnect
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from features.artifacts import atomic_write_bytes
from features.online.request import MAX_BODY_BYTES, ScoreRequest
from serving.drift.count_files import DRIFT_FOLDER, begin_counts
from serving.drift.live_counts import LiveCounts
from serving.feature_log.feature_log import FeatureLogSettings
from serving.observers.assembly import build_endpoint
from serving.scoring.backoff import Backoff
from serving.scoring.predictor import Predictor
from serving.scoring.routed_scorer import RoutedScorer
from serving.servers.background import Background
from serving.servers.endpoint import Body, readiness
from serving.servers.environment import only_allowed
from serving.servers.fastapi.guarded_connection import IDLE_S, GuardedConnection
from serving.servers.fastapi.lanes import Lanes
from serving.servers.fastapi.standby import Standby
from serving.servers.healing import HealingScorer
from serving.servers.json_lines import log_as_json
from serving.servers.log_stream import LogStream
from serving.servers.trace_settings import TraceSettings
from serving.wire.json_codec import decode_request
from serving.wire.reply import CHAMPION, Scorer, ScoreReply
from serving.wire.request_schema import request_schema

#: Header of a request and its answer: what the logs call it.
REQUEST_ID = "x-request-id"
#: In a state folder.
PID_NAME = "server.pid"
_LONGEST_ID = 128

_log = logging.getLogger(__name__)
_clock = time.monotonic

#: A worker that says nothing for so long is replaced; it says nothing while it imports torch.
_IMPORT_S = 60
#: A worker that scored this short a time ago is ready; otherwise it is asked to score its example.
READY_S = 30.0
#: For that example.
_PROBE_S = 5.0
#: Before a worker is replaced; the pause doubles with each that does not live for the longest of them.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0


def create_app(
    scorer: Scorer,
    *,
    example: bytes | None = None,
    schema: bool = False,
    workers_folder: Path | None = None,
    counts_folder: Path | None = None,
    log: FeatureLogSettings | None = None,
    traces: TraceSettings | None = None,
) -> FastAPI:
    """An app that answers by one predictor, in two lanes with threads of their own: probes never wait.

    Args:
        example: body of a JSON request that /ready has scored if nothing else was of late.
        schema: offer /openapi.json, and /schema: what a request may hold.
        counts_folder: for the counts of `dashclip drift`, if the scorer is a package's.
        workers_folder: where prometheus_client counts if there are several workers; /metrics is then of all.
        log: what goes to the feature log.
        traces: where spans are sent.
    """
    endpoint = build_endpoint(scorer, log=log, traces=traces)

    def count_from_now(opened: Scorer) -> None:
        champion = opened.variants[CHAMPION] if isinstance(opened, RoutedScorer) else opened
        if counts_folder is not None and isinstance(champion, Predictor):
            endpoint.live = LiveCounts.of_package(champion.manifest)

    def schema_now() -> dict[str, Any] | None:
        """What a request may hold, if a package is open."""
        opened = scorer.scorer if isinstance(scorer, HealingScorer) else scorer
        champion = opened.variants[CHAMPION] if isinstance(opened, RoutedScorer) else opened
        if not isinstance(champion, Predictor):
            return None
        return request_schema(champion.manifest, champion.live.features)

    count_from_now(scorer)
    if isinstance(scorer, HealingScorer):
        scorer.on_open = count_from_now
    background = Background(endpoint, counts_folder=counts_folder)
    lanes = Lanes(endpoint.answer, endpoint.shed)
    probe = None if example is None else decode_request(example)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        background.start()
        if workers_folder is not None:
            _serving_mark(workers_folder, os.getpid()).touch()
        yield
        if workers_folder is not None:
            _serving_mark(workers_folder, os.getpid()).unlink(missing_ok=True)
        background.stop()
        lanes.shutdown()
        endpoint.close()

    app = FastAPI(
        title="DashCLIP Ranker",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if schema else None,
    )

    @app.post("/score")
    async def score(request: Request) -> Response:
        content = bytearray()
        kept = True
        try:
            async for part in request.stream():
                content += part
                kept = lanes.take(len(part)) and kept
                if len(content) > MAX_BODY_BYTES or not kept:
                    break
            request_id = _request_id(request.headers.get(REQUEST_ID))
            body = Body(
                content,
                request.headers.get("content-type"),
                request_id,
                request.headers.get("traceparent"),
            )
            answer = await lanes.answer(body) if kept else lanes.shed_for_memory()
        except ClientDisconnect:
            return Response(status_code=400)  # which nobody reads
        finally:
            lanes.release(len(content))
        headers = {REQUEST_ID: request_id}
        if answer.retry_after_s is not None:
            headers["retry-after"] = str(answer.retry_after_s)
        return Response(answer.content, answer.status, headers, media_type=answer.content_type)

    @app.get("/live")
    async def live() -> dict[str, Any]:
        return {"live": True}

    @app.get("/ready")
    async def ready() -> Response:
        if endpoint.scored_within(READY_S) or (probe is not None and await scores(probe)):
            return JSONResponse({"ready": True, **readiness(scorer.facts())})
        return JSONResponse({"ready": False, **readiness(scorer.facts())}, 503, {"retry-after": "1"})

    async def scores(probe: ScoreRequest) -> bool:
        work = asyncio.get_running_loop().run_in_executor(lanes.small.pool, scorer.score_many, [probe])
        with contextlib.suppress(Exception):
            (reply,) = await asyncio.wait_for(asyncio.shield(work), _PROBE_S)
            return isinstance(reply, ScoreReply)
        return False

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return dict(scorer.facts())

    if schema:

        @app.get("/schema")
        async def schema_of_requests() -> Response:
            described = schema_now()
            return (
                JSONResponse(described, 200) if described else JSONResponse(None, 503, {"retry-after": "1"})
            )

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(endpoint.measures().page(workers_folder), media_type=CONTENT_TYPE_LATEST)

    return app


def server_config(app: Any, **options: Any) -> uvicorn.Config:
    """uvicorn's settings around an app, or around what makes one."""
    return uvicorn.Config(
        app,
        http=GuardedConnection,
        ws="none",
        timeout_keep_alive=int(IDLE_S),
        log_level="warning",
        access_log=False,
        lifespan="on",
        log_config=None,
        server_header=False,
        **options,
    )


def serve(
    open_scorer: Callable[[], Scorer],
    *,
    host: str,
    port: int,
    workers: int = 1,
    example: bytes | None = None,
    schema: bool = False,
    state: Path | None = None,
    traces: TraceSettings | None = None,
) -> None:
    """Serve until interrupted, in `workers` processes that share one socket; one that dies is replaced.

    Args:
        open_scorer: called in each process; picklable, such as `functools.partial(Predictor.load, package)`.
        example, schema, traces: as for `create_app`.
        state: folder for logs (`logs/server.jsonl`, rotated, beside standard error) and the process id
            (`server.pid`); nothing is written without it.

    A worker that cannot open its scorer answers 503 and tries again, for ever; while no worker listens, this
    process answers 503 in their place.
    """
    with (
        tempfile.TemporaryDirectory(prefix="dashclip-measures-") as folder,
        socket.create_server((host, port), backlog=2048) as listening,
        only_allowed(),
        _logs_and_pid(state),
    ):
        log_as_json()
        # For the workers: prometheus_client reads it as they import it, and then counts in files there.
        os.environ.update(PROMETHEUS_MULTIPROC_DIR=folder)
        make = partial(
            _app_of_worker,
            open_scorer,
            Path(folder),
            example=example,
            schema=schema,
            state=state,
            traces=traces,
        )
        config = server_config(make, factory=True, workers=workers, timeout_worker_healthcheck=_IMPORT_S)
        supervisor = _Supervisor(config, [listening], Path(folder))
        standby = Standby(listening, lambda: supervisor.nobody_serves)
        standby.start()
        try:
            supervisor.run()
        finally:
            standby.stop()


@contextmanager
def _logs_and_pid(state: Path | None) -> Iterator[None]:
    """Have what this process and its workers print go to a rotated file, too, and leave the process id."""
    if state is None:
        yield
        return
    begin_counts(state / DRIFT_FOLDER)
    atomic_write_bytes(state / PID_NAME, f"{os.getpid()}\n".encode())
    terminal = os.dup(2)
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    source = os.fdopen(reading, "rb")
    lines = LogStream(source, lambda line: _write_all(terminal, line), path=state / "logs" / "server.jsonl")
    lines.start()
    try:
        yield
    finally:
        os.dup2(terminal, 2)  # the last end of the pipe but for workers, which have ended
        lines.join(10)
        os.close(terminal)
        (state / PID_NAME).unlink(missing_ok=True)


def _write_all(descriptor: int, line: str) -> None:
    os.write(descriptor, line.encode())


def _request_id(given: str | None) -> str:
    """What the caller or its proxy calls a request, if that can stand in a log; else a new name."""
    if given and len(given) <= _LONGEST_ID and given.isascii() and given.isprintable():
        return given
    return uuid.uuid4().hex


class _Supervisor(Multiprocess):
    """uvicorn's, but a worker that dies young is replaced after a pause, and one is replaced for ever."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket], workers_folder: Path) -> None:
        super().__init__(config, sockets)
        self._workers_folder = workers_folder
        self._again: dict[int, Backoff] = {}
        self._started: dict[int, float] = {}

    def keep_subprocess_alive(self) -> None:
        """Replace workers that have died, each once that is due."""
        for place, worker in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            pause = Backoff(first_s=_FIRST_PAUSE_S, longest_s=_LONGEST_PAUSE_S, clock=lambda: _clock())
            again = self._again.setdefault(place, pause)
            started = self._started.setdefault(place, _clock())
            if started < float("inf"):
                if worker.is_alive(timeout=_IMPORT_S):
                    continue
                worker.kill()  # it may hang
                worker.join()
                if _clock() - started > _LONGEST_PAUSE_S:
                    again.succeeded()
                self._forget(worker, again.failed())
                self._started[place] = float("inf")
            if again.due:
                self._started[place] = _clock()
                self.processes[place] = Process(self.config, self.sockets)
                self.processes[place].start()

    def _forget(self, worker: Process, pause_s: float) -> None:
        said = "worker %s ended with code %s; the next one starts in %.1f s"
        _log.error(said, worker.pid, worker.exitcode, pause_s)
        mark_process_dead(worker.pid, str(self._workers_folder))
        _serving_mark(self._workers_folder, worker.pid).unlink(missing_ok=True)

    @property
    def nobody_serves(self) -> bool:
        """Whether no worker listens now."""
        return not any(
            one.exitcode is None and _serving_mark(self._workers_folder, one.pid).exists()
            for one in tuple(self.processes)
        )


def _serving_mark(workers_folder: Path, pid: int | None) -> Path:
    """A file that is there while this worker takes requests."""
    return workers_folder / f"{pid}.serving"


def _app_of_worker(
    open_scorer: Callable[[], Scorer],
    workers_folder: Path,
    *,
    example: bytes | None,
    schema: bool,
    state: Path | None,
    traces: TraceSettings | None,
) -> FastAPI:
    log_as_json()
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    scorer = HealingScorer(open_scorer)
    counts = None if state is None else state / DRIFT_FOLDER
    app = create_app(
        scorer,
        example=example,
        schema=schema,
        workers_folder=workers_folder,
        counts_folder=counts,
        log=None if state is None else FeatureLogSettings.of_server(state),
        traces=traces,
    )
    scorer.open()
    return app


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # however it ended: a worker without it would keep the port
        os.kill(os.getpid(), signal.SIGTERM)
