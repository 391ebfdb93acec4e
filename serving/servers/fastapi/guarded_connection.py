"""uvicorn's HTTP connection with limits: nobody holds one for nothing, and no answer waits for the network.

uvicorn has a limit for idle connections, but none for a request that never ends: a few hundred clients that
send a byte now and then would take all connections. h11 is what uvicorn always has.
"""

import asyncio
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

#: From its first byte, or from the connection, to its last: 4 MiB in ten seconds are 3.4 Mbit/s.
REQUEST_S = 10.0
#: Between two requests; above what proxies keep a connection (60 s), so that they close first.
IDLE_S = 75.0
#: Open in one worker; a process may have 1,024 files, and each answer is made in turn anyway.
MAX_CONNECTIONS = 512

#: Of a server that ends: whoever asks within this gets an answer, and is told that it is the last.
LAST_S = 2.0

_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
)
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class GuardedConnection(H11Protocol):
    """A connection that is closed with 408 if a request does not arrive, with 503 if there are too many."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._deadline: asyncio.TimerHandle | None = None
        self._ends = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or refuse it."""
        super().connection_made(transport)
        # asyncio sets it only on sockets that name their protocol; those of `socket.create_server` do not. As
        # uvicorn sends head and body apart, the body would wait some 40 ms until the head is acknowledged.
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(_BUSY)
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._ends:
            self._answer_last()
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not self.transport.is_closing():
            self._watch()
        else:
            self._unwatch()

    def connection_lost(self, error: Exception | None) -> None:
        """The client left, or was refused."""
        self._unwatch()
        super().connection_lost(error)

    def shutdown(self) -> None:
        """The server ends: answer what comes, and close.

        uvicorn closes a connection without a request at once; one that is on its way then would be reset.
        """
        self._ends = True
        self._answer_last()
        self.loop.call_later(LAST_S, self._close_if_idle)

    def _answer_last(self) -> None:
        if not self._is_idle:
            self.cycle.keep_alive = False
            scope = self.cycle.scope
            scope["headers"] = [*scope["headers"], (b"connection", b"close")]  # has the answer say so

    def _close_if_idle(self) -> None:
        if self._is_idle and not self.transport.is_closing():
            super().shutdown()

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_S, self._refuse, _TOO_SLOW)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, answer: bytes) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # no answer has begun
                self.transport.write(answer)
            self.transport.close()
