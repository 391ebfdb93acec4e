"""The lightest client there is: bytes that lie ready go out on open sockets, each as soon as its answer came.

A closed loop, for comparing servers that are asked one after the other; `dashclip loadtest` has open-loop
arrivals.
"""

import selectors
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from experiments.serving_checks.loadtest import HEAD_END, parsed_head

_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Target:
    """Where and what is asked: whole HTTP requests, taken in turn."""

    host: str
    port: int
    requests: Sequence[bytes]


@dataclass
class Answers:
    """What came back. `seconds` is how long it took in all."""

    latency_ms: NDArray[np.float64]
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0


def ask(target: Target, *, connections: int, seconds: float) -> Answers:
    """Ask for `seconds` on `connections` sockets; what is under way then is waited for, and counts.

    Raises:
        ConnectionError: a connection was closed, or an answer has no content-length.
        TimeoutError: no answer came for half a minute.
    """
    latencies: list[float] = []
    statuses: Counter[int] = Counter()
    sent_at: dict[socket.socket, float] = {}
    received: dict[socket.socket, bytearray] = {}
    bodies = cycle(target.requests)

    def send(connection: socket.socket) -> None:
        sent_at[connection] = time.perf_counter()
        connection.sendall(next(bodies))

    with selectors.DefaultSelector() as selector:
        try:
            for _ in range(connections):
                connection = socket.create_connection((target.host, target.port), timeout=_TIMEOUT_S)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(connection, selectors.EVENT_READ)
                received[connection] = bytearray()
            started = time.perf_counter()
            for connection in received:
                send(connection)
            while sent_at:
                events = selector.select(_TIMEOUT_S)
                if not events:
                    raise TimeoutError(f"port {target.port}: no answer within {_TIMEOUT_S:g} s")
                for key, _ in events:
                    connection = key.fileobj  # type: ignore[assignment]
                    chunk = connection.recv(1 << 18)
                    if not chunk:
                        raise ConnectionError(f"port {target.port}: the server closed a connection")
                    received[connection] += chunk
                    status = _status_if_whole(received[connection])
                    if status is None:
                        continue
                    now = time.perf_counter()
                    latencies.append(1e3 * (now - sent_at.pop(connection)))
                    statuses[status] += 1
                    received[connection].clear()
                    if now - started < seconds:
                        send(connection)
            return Answers(np.array(latencies), statuses, time.perf_counter() - started)
        finally:
            for connection in received:
                connection.close()


def _status_if_whole(answer: bytearray) -> int | None:
    """The status of an answer that is complete; None if more is to come."""
    end = answer.find(HEAD_END)
    if end < 0:
        return None
    status, length, _ = parsed_head(answer[:end])
    return status if len(answer) >= end + len(HEAD_END) + length else None
