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
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from features.online.request import MAX_BODY_BYTES, RequestError, ScoreRequest
from serving.drift.count_files import DRIFT_FOLDER, begin_counts
from serving.drift.live_counts import LiveCounts
from serving.feature_log.feature_log import FeatureLogSettings
from serving.observers.assembly import build_endpoint
from serving.scoring.predictor import Predictor
from serving.scoring.routed_scorer import RoutedScorer
from serving.servers.background import Background
from serving.servers.endpoint import Body, readiness
from serving.servers.environment import only_allowed
from serving.servers.fastapi.guarded_connection import IDLE_S, GuardedConnection
from serving.servers.fastapi.lanes import Lanes
from serving.servers.fastapi.running import written_down
from serving.servers.fastapi.standby import Standby
from serving.servers.fastapi.supervisor import IMPORT_S, Gate, Supervisor, serving_mark
from serving.servers.healing import HealingScorer
from serving.servers.json_lines import log_as_json
from serving.servers.log_stream import LogStream
from serving.servers.recorded import check_recorded
from serving.servers.torchserve.archive import Archive
from serving.servers.trace_settings import TraceSettings
from serving.wire.json_codec import decode_reply, decode_request, encode_reply
from serving.wire.reply import CHAMPION, Scorer, ScoreReply
from serving.wire.request_schema import request_schema

#: Header of a request and its answer: what the logs call it.
REQUEST_ID = "x-request-id"
_LONGEST_ID = 128

_log = logging.getLogger(__name__)
#: A worker that scored this short a time ago is ready; otherwise it is asked to score its example.
READY_S = 30.0
#: For that example.
_PROBE_S = 5.0
#: Between two looks whether a new worker may serve.
_GATE_S = 0.05


def create_app(
    scorer: Scorer,
    *,
    example: bytes | None = None,
    schema: bool = False,
    workers_folder: Path | None = None,
    counts_folder: Path | None = None,
    log: FeatureLogSettings | None = None,
    gate: Gate | None = None,
    traces: TraceSettings | None = None,
    batch_size: int = 1,
) -> FastAPI:
    """An app that answers by one predictor, in two lanes with threads of their own: probes never wait.

    Args:
        example: body of a JSON request that /ready has scored if nothing else was of late.
        schema: offer /openapi.json, and /schema: what a request may hold.
        counts_folder: for the counts of `dashclip drift`, if the scorer is a package's.
        workers_folder: where prometheus_client counts if there are several workers; /metrics is then of all.
        log: what goes to the feature log.
        gate: where it waits before it takes a connection.
        traces: where spans are sent.
        batch_size: requests that are scored at once, if so many wait; none waits for others.
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
    lanes = Lanes(endpoint.answer, endpoint.shed, batch_size=batch_size)
    probe = None if example is None else decode_request(example)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        while gate is not None and not gate.is_open:
            await asyncio.sleep(_GATE_S)
        background.start()
        if workers_folder is not None:
            serving_mark(workers_folder, os.getpid()).touch()
        yield
        if workers_folder is not None:
            serving_mark(workers_folder, os.getpid()).unlink(missing_ok=True)
        background.stop()
        lanes.shutdown()
        endpoint.close()

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

    app = FastAPI(
        title="DashCLIP Ranker",
        # Starlette's kind of route: FastAPI's looks for parameters, at each request.
        routes=[Route("/score", score, methods=["POST"])],
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if schema else None,
    )

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
        app.post("/score")(score)  # for /openapi.json

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
    archive: Path | None = None,
    open_archive: Callable[[Path], Scorer] | None = None,
    traces: TraceSettings | None = None,
    batch_size: int = 1,
) -> None:
    """Serve until interrupted, in `workers` processes that share one socket; one that dies is replaced.

    Args:
        open_scorer: called in each process; picklable, such as `functools.partial(Predictor.load, package)`.
        example, schema, traces, batch_size: as for `create_app`.
        state: folder for logs (`logs/server.jsonl`, rotated, beside standard error) and the process id
            (`server.pid`); nothing is written without it.
        archive: what `open_scorer` opens, if that is an archive of a model store.
        open_archive: opens another one; with it, and a state folder, `dashclip deploy` puts another package
            in the place of this one while it serves.

    A worker that cannot open its scorer answers 503 and tries again, for ever; while no worker listens, this
    process answers 503 in their place.
    """
    with (
        tempfile.TemporaryDirectory(prefix="dashclip-measures-") as folder,
        socket.create_server((host, port), backlog=2048) as listening,
        only_allowed(),
        _found_by(state, url=f"http://{host}:{port}/score", workers=workers, archive=archive),
        _logs(state),
    ):
        log_as_json()
        # For the workers: prometheus_client reads it as they import it, and then counts in files there.
        os.environ.update(PROMETHEUS_MULTIPROC_DIR=folder)

        def config(
            open_scorer: Callable[[], Scorer], example: bytes | None, gate: Gate | None, package: Path | None
        ) -> uvicorn.Config:
            make = partial(
                _app_of_worker,
                open_scorer,
                Path(folder),
                example=example,
                schema=schema,
                state=state,
                gate=gate,
                package=package,
                traces=traces,
                batch_size=batch_size,
            )
            return server_config(make, factory=True, workers=workers, timeout_worker_healthcheck=IMPORT_S)

        def config_of(path: Path, gate: Gate | None) -> uvicorn.Config:
            assert open_archive is not None
            other = Archive(path, path.name, "")
            return config(partial(open_archive, path), other.example(), gate, Path(other.package))

        supervisor = Supervisor(
            config(open_scorer, example, None, None),
            [listening],
            Path(folder),
            state=state,
            config_of=config_of if open_archive is not None else None,
        )
        standby = Standby(listening, lambda: supervisor.nobody_serves)
        standby.start()
        try:
            supervisor.run()
        finally:
            standby.stop()


def _found_by(
    state: Path | None, *, url: str, workers: int, archive: Path | None
) -> AbstractContextManager[None]:
    if state is None:
        return nullcontext()
    return written_down(state, url=url, workers=workers, archive=archive.name if archive else None)


@contextmanager
def _logs(state: Path | None) -> Iterator[None]:
    """Have what this process and its workers print go to a rotated file, too."""
    if state is None:
        yield
        return
    begin_counts(state / DRIFT_FOLDER)
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


def _write_all(descriptor: int, line: str) -> None:
    os.write(descriptor, line.encode())


def _request_id(given: str | None) -> str:
    """What the caller or its proxy calls a request, if that can stand in a log; else a new name."""
    if given and len(given) <= _LONGEST_ID and given.isascii() and given.isprintable():
        return given
    return uuid.uuid4().hex


def _app_of_worker(
    open_scorer: Callable[[], Scorer],
    workers_folder: Path,
    *,
    example: bytes | None,
    schema: bool,
    state: Path | None,
    gate: Gate | None,
    package: Path | None,
    traces: TraceSettings | None,
    batch_size: int,
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
        gate=gate,
        traces=traces,
        batch_size=batch_size,
    )
    if gate is None or package is None:
        scorer.open()
        return app
    try:
        scorer.open(raises=True)
        gate.passed(check_recorded(package, partial(_through_codec, scorer)))
    except Exception as error:
        gate.failed(str(error))
        raise
    return app


def _through_codec(scorer: Scorer, request: ScoreRequest) -> ScoreReply:
    """What a client reads of the reply.

    Raises:
        RequestError: the request is refused.
    """
    (reply,) = scorer.score_many([request])
    if isinstance(reply, RequestError):
        raise reply
    return decode_reply(encode_reply(reply))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # however it ended: a worker without it would keep the port
        os.kill(os.getpid(), signal.SIGTERM)
