"""Answers for a socket whose workers are all away: 503 at once instead of a queue that nobody reads.

The supervising process holds the listening socket anyway, for the workers that it starts. While none of them
listens, connections would wait for as long as a worker takes to import torch, or for ever.
"""

import select
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_LOOK_S = 0.05
#: For one request; whoever takes longer loses the connection.
_REQUEST_S = 2.0
_ANSWERERS = 16
_MOST_BYTES = 8 * 2**20
_ALIVE = b'{"live":true}'
_AWAY = b'{"error":{"message":"no worker is up; ask again in 1 s"}}'
_HEAD = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n%s\r\n"


class Standby:
    """Accepts and answers while `needed` says so, from `start` to `stop`."""

    def __init__(self, listening: socket.socket, needed: Callable[[], bool]) -> None:
        self._listening = listening
        self._needed = needed
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dashclip-standby", daemon=True)
        self._answerers = ThreadPoolExecutor(_ANSWERERS, "dashclip-standby")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._stopped.set()
        self._thread.join()
        self._answerers.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        asked = select.poll()  # `select` itself fails at file 1,024
        asked.register(self._listening, select.POLLIN)
        while not self._stopped.is_set():
            if not self._needed():
                self._stopped.wait(_LOOK_S)
                continue
            if asked.poll(1000 * _LOOK_S):
                try:
                    connection, _ = self._listening.accept()
                except OSError:  # a worker that has just come up was faster, or the client left
                    continue
                self._answerers.submit(_answer, connection)


def _answer(connection: socket.socket) -> None:
    """Read one request and answer it; a connection closed with bytes unread would take the answer along."""
    with connection:
        connection.settimeout(_REQUEST_S)
        try:
            received = bytearray()
            while b"\r\n\r\n" not in received and len(received) < _MOST_BYTES:
                if not (part := connection.recv(65_536)):
                    return
                received += part
            alive = received.startswith(b"GET /live ")
            status, body = (b"200 OK", _ALIVE) if alive else (b"503 Service Unavailable", _AWAY)
            connection.sendall(_HEAD % (status, len(body), b"" if alive else b"retry-after: 1\r\n") + body)
            connection.shutdown(socket.SHUT_WR)
            unread = _MOST_BYTES
            while unread > 0 and (part := connection.recv(65_536)):
                unread -= len(part)
        except OSError:
            return
