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
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect
from uvicorn.supervisors import Multiprocess

from features.online.request import MAX_BODY_BYTES, ScoreRequest
from serving.servers.background import Background
from serving.servers.endpoint import Body, Endpoint, place_of
from serving.servers.guarded_connection import IDLE_S, GuardedConnection
from serving.servers.json_lines import log_as_json
from serving.wire.json_codec import decode_request
from serving.wire.reply import Scorer, ScoreReply

#: Header of a request and its answer: what the logs call it.
REQUEST_ID = "x-request-id"
_LONGEST_ID = 128

_log = logging.getLogger(__name__)

#: A worker that says nothing for so long is replaced; it says nothing while it imports torch.
_IMPORT_S = 60
#: A worker that scored this short a time ago is ready; otherwise it is asked to score its example.
READY_S = 30.0
#: For that example.
_PROBE_S = 5.0
#: How a worker ends that cannot open its scorer: uvicorn's own code for it.
CANNOT_START = 3
_CANNOT_START_WHY = "a worker cannot start; what it said is above"
#: Deaths of workers within a minute, for each worker, at which replacing them is no help.
_DEATHS_A_MINUTE = 5


def create_app(
    scorer: Scorer, *, example: bytes | None = None, schema: bool = False, workers_folder: Path | None = None
) -> FastAPI:
    """An app that answers by one predictor, one request at a time, in a thread of its own: probes never wait.

    Args:
        example: body of a JSON request that /ready has scored if nothing else was of late.
        schema: offer /openapi.json.
        workers_folder: where prometheus_client counts if there are several workers; /metrics is then of all.
    """
    endpoint = Endpoint(scorer)
    background = Background(endpoint)
    scoring = ThreadPoolExecutor(1, "dashclip-scoring", initializer=torch.set_num_threads, initargs=(1,))
    probe = None if example is None else decode_request(example)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        background.start()
        yield
        background.stop()
        scoring.shutdown()

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
        try:
            async for part in request.stream():
                content += part
                if len(content) > MAX_BODY_BYTES:
                    break
        except ClientDisconnect:
            return Response(status_code=400)  # which nobody reads
        request_id = _request_id(request.headers.get(REQUEST_ID))
        body = Body(content, request.headers.get("content-type"), request_id)
        (answer,) = await asyncio.get_running_loop().run_in_executor(scoring, endpoint.answer, [body])
        headers = {REQUEST_ID: request_id}
        return Response(answer.content, answer.status, headers, media_type=answer.content_type)

    @app.get("/live")
    async def live() -> dict[str, Any]:
        return {"live": True}

    @app.get("/ready")
    async def ready() -> Response:
        if endpoint.scored_within(READY_S) or (probe is not None and await scores(probe)):
            return JSONResponse({"ready": True})
        return JSONResponse({"ready": False}, 503)

    async def scores(probe: ScoreRequest) -> bool:
        work = asyncio.get_running_loop().run_in_executor(scoring, scorer.score_many, [probe])
        with contextlib.suppress(Exception):
            (reply,) = await asyncio.wait_for(asyncio.shield(work), _PROBE_S)
            return isinstance(reply, ScoreReply)
        return False

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return dict(scorer.facts())

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
) -> None:
    """Serve until interrupted, in `workers` processes that share one socket; one that dies is replaced.

    Args:
        open_scorer: called in each process; picklable, such as `functools.partial(Predictor.load, package)`.
        example, schema: as for `create_app`.

    Raises:
        ValueError: workers cannot start, or die again and again; the log says why.
    """
    with (
        tempfile.TemporaryDirectory(prefix="dashclip-measures-") as folder,
        socket.create_server((host, port), backlog=2048) as listening,
    ):
        log_as_json()
        # For the workers: prometheus_client reads it as they import it, and then counts in files there.
        os.environ.update(PROMETHEUS_MULTIPROC_DIR=folder)
        make = partial(_app_of_worker, open_scorer, Path(folder), example=example, schema=schema)
        config = server_config(make, factory=True, workers=workers, timeout_worker_healthcheck=_IMPORT_S)
        supervisor = _Supervisor(config, [listening])
        supervisor.run()
    if supervisor.why_ended:
        raise ValueError(supervisor.why_ended)


def _request_id(given: str | None) -> str:
    """What the caller or its proxy calls a request, if that can stand in a log; else a new name."""
    if given and len(given) <= _LONGEST_ID and given.isascii() and given.isprintable():
        return given
    return uuid.uuid4().hex


class _Supervisor(Multiprocess):
    """uvicorn's, but it ends where a new worker would end as the last one did."""

    why_ended = ""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._deaths: deque[float] = deque(maxlen=_DEATHS_A_MINUTE * self.config.workers)

    def keep_subprocess_alive(self) -> None:
        """Replace workers that have died, unless that is no help."""
        if self.should_exit.is_set():
            return
        codes = [one.process.exitcode for one in self.processes]
        self._deaths.extend(time.monotonic() for code in codes if code is not None)
        if CANNOT_START in codes:
            self._end(_CANNOT_START_WHY)
        elif len(self._deaths) == self._deaths.maxlen and time.monotonic() - self._deaths[0] < 60:
            self._end(f"workers died {len(self._deaths)} times within a minute, the last with code {codes}")
        else:
            super().keep_subprocess_alive()
            if self.should_exit.is_set():  # uvicorn met that code first, while it asked for a sign of life
                self._end(_CANNOT_START_WHY)

    def _end(self, why: str) -> None:
        self.why_ended = why
        self.should_exit.set()


def _app_of_worker(
    open_scorer: Callable[[], Scorer], workers_folder: Path, *, example: bytes | None, schema: bool
) -> FastAPI:
    log_as_json()
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        scorer = open_scorer()
    except Exception as error:
        _log.error("the scorer cannot be opened: %s\n%s", error, place_of(error))
        sys.exit(CANNOT_START)
    return create_app(scorer, example=example, schema=schema, workers_folder=workers_folder)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # however it ended: a worker without it would keep the port
        os.kill(os.getpid(), signal.SIGTERM)
