"""The second server: the same endpoint behind FastAPI and uvicorn. Needs the extra `fastapi`.

POST /score takes and gives what TorchServe's endpoint does, GET /health says what is served, GET /metrics
speaks Prometheus. There is no authorization: put a reverse proxy in front of anything but loopback.
"""

import multiprocessing
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request, Response

from features.online.request import MAX_BODY_BYTES
from serving.servers.background import Background
from serving.servers.drift import LiveCounts
from serving.servers.endpoint import Body, Endpoint
from serving.servers.measures import prometheus_text
from serving.wire.reply import Scorer

Opened = tuple[Scorer, LiveCounts | None]


def create_app(scorer: Scorer, live: LiveCounts | None = None, counts_folder: Path | None = None) -> FastAPI:
    """An app that answers by one predictor. Scoring takes the event loop: one request at a time a process."""
    endpoint = Endpoint(scorer, live=live)
    background = Background(endpoint, live=live, counts_folder=counts_folder)

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
        return Response(prometheus_text(endpoint.series()), media_type="text/plain; version=0.0.4")

    return app


def serve(open_scorer: Callable[[], Opened], *, host: str, port: int, workers: int = 1) -> None:
    """Serve until interrupted, in `workers` processes that share one socket; one that dies is replaced.

    Args:
        open_scorer: called in each process; picklable, such as `functools.partial(open_package, package)`.
    """
    spawn = multiprocessing.get_context("spawn")
    with socket.create_server((host, port), backlog=2048) as listening:
        started = [spawn.Process(target=_work, args=(open_scorer, listening)) for _ in range(workers)]
        for process in started:
            process.start()
        while True:
            time.sleep(0.5)
            for position, process in enumerate(started):
                if not process.is_alive():
                    started[position] = spawn.Process(target=_work, args=(open_scorer, listening))
                    started[position].start()


def _work(open_scorer: Callable[[], Opened], listening: socket.socket) -> None:
    torch.set_num_threads(1)
    scorer, _ = open_scorer()
    config = uvicorn.Config(create_app(scorer), log_level="warning", access_log=False, lifespan="on")
    server = uvicorn.Server(config)
    threading.Thread(target=_end_with_parent, args=(server,), daemon=True).start()
    server.run(sockets=[listening])


def _end_with_parent(server: uvicorn.Server) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # however it ended: a worker without it would keep the port
        server.should_exit = True
