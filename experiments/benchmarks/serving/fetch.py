"""Feature fetching from Redis on loopback, the usual alternative to tables inside of the model.

Keys `p:<product>` and `q:<query>` hold float16 vectors, `h:<user>` the products a user bought. The model is
the same program with the same scores; its vectors come with each request instead of from a mapped file.
"""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from experiments.benchmarks.serving.interleaved import SkippedError, Way, in_turn
from experiments.benchmarks.serving.ways import InProcess, Prepared
from experiments.runtime.ports import free_ports

_CHUNK = 10_000


@contextmanager
def redis_server() -> Iterator[Any]:
    """A Redis of one's own on a free port of loopback, without persistence; yields a connected client.

    Raises:
        SkippedError: the server or the client library is not installed, or it does not start.
    """
    try:
        import redis
    except ModuleNotFoundError:
        raise SkippedError("redis-py is not installed (pip install 'dashclip-ranker[peers]')") from None
    program = shutil.which("redis-server")
    if program is None:
        raise SkippedError("redis-server is not installed (Debian: apt-get install redis-server)")
    port = free_ports(1)
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
                        raise SkippedError(f"redis-server does not answer: {error}") from None
                    time.sleep(0.05)
            yield client
        finally:
            process.terminate()
            process.wait(timeout=10)


def fill(client: Any, opened: InProcess) -> None:
    """Write every product's and query's vector."""
    for prefix, vectors in (("p", opened.products), ("q", opened.queries)):
        assert vectors is not None
        ids = vectors.ids.ids()
        rows_MD = vectors.table.values_MD.numpy()
        for start in range(0, len(ids), _CHUNK):
            chunk = ids.slice(start, _CHUNK).to_pylist()
            client.mset({f"{prefix}:{one}": rows_MD[start + 1 + i].tobytes() for i, one in enumerate(chunk)})


def fill_purchases(client: Any, prepared: Sequence[Prepared]) -> None:
    """Write what these requests' users bought."""
    for one in prepared:
        bought = np.array(one.vector_ids[len(one.batch.request_of_N) :], np.int64)
        client.set(f"h:{one.request.user_id}", bought.tobytes())


def fetch_ways(client: Any, opened: InProcess, prepared: Sequence[Prepared]) -> dict[str, Way]:
    """One MGET and the scores; the purchases' ids first; one key at a time; the MGET without the scores.

    Raises:
        ValueError: their scores differ from the fused ones.
    """
    assert opened.queries is not None
    dim = opened.queries.dim

    def keys(one: Prepared, ids: Sequence[int | None]) -> list[str]:
        return [*(f"p:{product}" for product in ids), f"q:{one.request.query}"]

    def scored(one: Prepared, found: list[bytes]) -> Any:
        vectors = np.frombuffer(b"".join(found), np.float16).reshape(-1, dim)
        return opened.score_fetched(one, vectors[:-1], vectors[-1])

    def one_mget(one: Prepared) -> Any:
        return scored(one, client.mget(keys(one, one.vector_ids)))

    def two_steps(one: Prepared) -> Any:
        candidates = one.vector_ids[: len(one.batch.request_of_N)]
        bought = np.frombuffer(client.get(f"h:{one.request.user_id}"), np.int64).tolist()
        return scored(one, client.mget(keys(one, [*candidates, *bought])))

    def one_by_one(one: Prepared) -> Any:
        return scored(one, [client.get(key) for key in keys(one, one.vector_ids)])

    def fetch_only(one: Prepared) -> Any:
        return np.frombuffer(b"".join(client.mget(keys(one, one.vector_ids))), np.float16)

    patterns = {"mget": one_mget, "two_steps": two_steps, "gets": one_by_one}
    for name, score in patterns.items():
        difference = np.abs(score(prepared[0]) - opened.score_fused(prepared[0])).max()
        if not difference < 1e-5:
            raise ValueError(f"scores of fetched vectors ({name}) differ by {difference:.2g}")
    ways = {"fetch_only": fetch_only, **patterns}
    return {name: in_turn(work, prepared) for name, work in ways.items()}
