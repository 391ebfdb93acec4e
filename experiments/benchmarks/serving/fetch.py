"""Feature fetching from Redis on loopback, the usual alternative to tables inside of the model.

Keys `p:<product>` and `q:<query>` hold float16 vectors, `h:<user>` the products a user bought. The model is
the same program with the same scores; its vectors come with each request instead of from a mapped file.
"""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from experiments.benchmarks.serving.ways import InProcess, Prepared
from serving.package.vectors import ProductVectors, QueryVectors

_CHUNK = 10_000
#: How vectors are asked for: all at once; the purchases' ids first; one key at a time.
PATTERNS = {
    "mget": "one MGET",
    "two_steps": "GET of the purchases, then MGET",
    "gets": "one GET a key",
}


class FetchSkippedError(Exception):
    """Fetching cannot be measured here; says why."""


@contextmanager
def redis_server() -> Iterator[Any]:
    """A Redis of one's own on a free port of loopback, without persistence; yields a connected client.

    Raises:
        FetchSkippedError: the server or the client library is not installed, or it does not start.
    """
    try:
        import redis
    except ModuleNotFoundError:
        raise FetchSkippedError("redis-py is not installed (pip install 'dashclip-ranker[peers]')") from None
    program = shutil.which("redis-server")
    if program is None:
        raise FetchSkippedError("redis-server is not installed (Debian: apt-get install redis-server)")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        process = subprocess.Popen([*command, "--dir", folder], stdout=subprocess.DEVNULL)
        try:
            client = redis.Redis(port=port, socket_connect_timeout=2)
            deadline = time.monotonic() + 10
            while True:
                try:
                    client.ping()
                    break
                except redis.exceptions.RedisError as error:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise FetchSkippedError(f"redis-server does not answer: {error}") from None
                    time.sleep(0.05)
            yield client
        finally:
            process.terminate()
            process.wait(timeout=10)


def fill(client: Any, opened: InProcess) -> None:
    """Write every product's and query's vector."""
    assert opened.products is not None
    assert opened.queries is not None
    for prefix, vectors in (("p", opened.products), ("q", opened.queries)):
        _fill_vectors(client, prefix, vectors)


def fill_purchases(client: Any, prepared: Sequence[Prepared]) -> None:
    """Write what these requests' users bought."""
    for one in prepared:
        client.set(f"h:{one.request.user_id}", _encoded_ids(one.vector_ids[len(one.batch.request_of_N) :]))


def fetch_ways(
    client: Any, opened: InProcess, prepared: Sequence[Prepared]
) -> dict[str, Callable[[int], Any]]:
    """For each of PATTERNS, what scores request after request; the scores are compared with the fused ones.

    Raises:
        ValueError: they differ.
    """
    assert opened.queries is not None
    dim = opened.queries.dim

    def scored(found: list[bytes], one: Prepared) -> Any:
        vectors = np.frombuffer(b"".join(found), np.float16).reshape(-1, dim)
        return opened.score_fetched(one, vectors[:-1], vectors[-1])

    def one_mget(number: int) -> Any:
        one = prepared[number % len(prepared)]
        return scored(client.mget([*_product_keys(one.vector_ids), f"q:{one.request.query}"]), one)

    def two_steps(number: int) -> Any:
        one = prepared[number % len(prepared)]
        candidates = one.vector_ids[: len(one.batch.request_of_N)]
        bought = np.frombuffer(client.get(f"h:{one.request.user_id}"), np.int64).tolist()
        return scored(client.mget([*_product_keys([*candidates, *bought]), f"q:{one.request.query}"]), one)

    def one_by_one(number: int) -> Any:
        one = prepared[number % len(prepared)]
        return scored(
            [client.get(key) for key in [*_product_keys(one.vector_ids), f"q:{one.request.query}"]], one
        )

    ways: dict[str, Callable[[int], Any]] = {"mget": one_mget, "two_steps": two_steps, "gets": one_by_one}
    for name, way in ways.items():
        difference = np.abs(way(0) - opened.score_fused(prepared, 0)).max()
        if not difference < 1e-5:
            raise ValueError(f"scores of fetched vectors ({name}) differ by {difference:.2g}")
    return ways


def fetch_only(client: Any, prepared: Sequence[Prepared]) -> Callable[[int], Any]:
    """The MGET without the model."""

    def fetch(number: int) -> Any:
        one = prepared[number % len(prepared)]
        found = client.mget([*_product_keys(one.vector_ids), f"q:{one.request.query}"])
        return np.frombuffer(b"".join(found), np.float16)

    return fetch


def free_port() -> int:
    """A port of loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _fill_vectors(client: Any, prefix: str, vectors: ProductVectors | QueryVectors) -> None:
    ids = vectors.ids.ids()
    rows_MD = vectors.table.values_MD.numpy()
    for start in range(0, len(ids), _CHUNK):
        chunk = ids.slice(start, _CHUNK).to_pylist()
        client.mset({f"{prefix}:{one}": rows_MD[start + 1 + i].tobytes() for i, one in enumerate(chunk)})


def _product_keys(ids: Sequence[int | None]) -> list[str]:
    return [f"p:{one}" for one in ids]


def _encoded_ids(ids: Sequence[int | None]) -> bytes:
    return np.array(ids, np.int64).tobytes()
