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

_HEAD_END = b"\r\n\r\n"
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


def http_request(path: str, body: bytes, content_type: str, *, token: str | None = None) -> bytes:
    """One HTTP/1.1 request that keeps the connection."""
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{authorization}"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


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
    end = answer.find(_HEAD_END)
    if end < 0:
        return None
    first, *lines = bytes(answer[:end]).split(b"\r\n")
    for line in lines:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            whole = len(answer) >= end + len(_HEAD_END) + int(value)
            return int(first.split()[1]) if whole else None
    raise ConnectionError("an answer without content-length")
