"""The second server: the same endpoint behind FastAPI and uvicorn. Needs the extra `fastapi`.

POST /score takes and gives what TorchServe's endpoint does, GET /health says what is served, GET /metrics
speaks Prometheus. There is no authorization: put a reverse proxy in front of anything but loopback.
"""

import multiprocessing
import os
import signal
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from uvicorn.supervisors import Multiprocess

from features.online.request import MAX_BODY_BYTES
from serving.servers.background import Background
from serving.servers.endpoint import Body, Endpoint
from serving.wire.reply import Scorer

#: A worker that says nothing for so long is replaced; it says nothing while it imports torch.
_IMPORT_S = 60


def create_app(scorer: Scorer, *, workers_folder: Path | None = None) -> FastAPI:
    """An app that answers by one predictor. Scoring takes the event loop: one request at a time a process.

    Args:
        workers_folder: where prometheus_client counts if there are several workers; /metrics is then of all.
    """
    endpoint = Endpoint(scorer)
    background = Background(endpoint)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        background.start()
        yield
        background.stop()

    app = FastAPI(title="DashCLIP Ranker", lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.post("/score")
    async def score(request: Request) -> Response:
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > MAX_BODY_BYTES:
                break
        (answer,) = endpoint.answer([Body(content, request.headers.get("content-type"))])
        return Response(answer.content, answer.status, media_type=answer.content_type)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return dict(scorer.facts())

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(endpoint.measures().page(workers_folder), media_type=CONTENT_TYPE_LATEST)

    return app


def serve(open_scorer: Callable[[], Scorer], *, host: str, port: int, workers: int = 1) -> None:
    """Serve until interrupted, in `workers` processes that share one socket; one that dies is replaced.

    Args:
        open_scorer: called in each process; picklable, such as `functools.partial(Predictor.load, package)`.
    """
    with (
        tempfile.TemporaryDirectory(prefix="dashclip-measures-") as folder,
        socket.create_server((host, port), backlog=2048) as listening,
    ):
        # asyncio sets TCP_NODELAY only on sockets that name their protocol, which create_server's do not: a
        # reply would wait some 40 ms for the acknowledgement of its head. Accepted connections inherit it.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # For the workers: prometheus_client reads it as they import it, and then counts in files there.
        os.environ.update(PROMETHEUS_MULTIPROC_DIR=folder)
        config = uvicorn.Config(
            partial(_app_of_worker, open_scorer, Path(folder)),
            factory=True,
            workers=workers,
            log_level="warning",
            access_log=False,
            lifespan="on",
            timeout_worker_healthcheck=_IMPORT_S,
        )
        Multiprocess(config, [listening]).run()


def _app_of_worker(open_scorer: Callable[[], Scorer], workers_folder: Path) -> FastAPI:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return create_app(open_scorer(), workers_folder=workers_folder)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # however it ended: a worker without it would keep the port
        os.kill(os.getpid(), signal.SIGTERM)
