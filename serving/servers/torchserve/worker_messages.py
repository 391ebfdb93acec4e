"""TorchServe's messages to a worker, read as they come: one system call for each segment, not for each field.

TorchServe 0.12.0 reads every length and every field of a message by a `recv` of its own, some forty for a
request with six headers. No later version will mend that: it is maintained no more. A message of requests is

    b"I", then for each request: id, headers (name, value) ... -1, inputs (name, content type, value) ... -1
    and -1 in the end

where each part is its length, four bytes, and its bytes.
"""

import logging
import socket
import struct
import sys
from typing import Any

_log = logging.getLogger(__name__)

#: Whose messages these are; of another version nothing is changed.
_VERSION = "0.12.0"
_BUFFER_BYTES = 1 << 16
_length_at = struct.Struct("!i").unpack_from
_END = -1


class CutOffError(Exception):
    """The rest of a message has not come yet."""


class Incoming:
    """What has come over a worker's connection and has not been read yet."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._buffer = bytearray(_BUFFER_BYTES)
        self._start = self._end = 0

    def take(self, count: int) -> bytes:
        """The next bytes; waits until they are there."""
        while self._end - self._start < count:
            self._receive()
        taken = bytes(memoryview(self._buffer)[self._start : self._start + count])
        self._start += count
        return taken

    def requests(self) -> list[dict[str, Any]]:
        """The rest of a message of requests, behind its first byte, as TorchServe's worker wants them."""
        requests: list[dict[str, Any]] = []
        while True:
            with memoryview(self._buffer)[self._start : self._end] as view:
                try:
                    request, read = _request(view)
                except CutOffError:
                    request, read = None, 0
            if not read:
                self._receive()
                continue
            self._start += read
            if request is None:
                return requests
            requests.append(request)

    def _receive(self) -> None:
        """Wait for more. Ends the process if the frontend has left, as TorchServe does."""
        if self._start == self._end:
            self._start = self._end = 0
            if len(self._buffer) > _BUFFER_BYTES:  # a large body is through
                self._buffer = bytearray(_BUFFER_BYTES)
        elif self._end == len(self._buffer):
            kept = self._buffer[self._start : self._end]
            room = max(_BUFFER_BYTES, 2 * len(kept))
            self._buffer = kept + bytes(room - len(kept))
            self._start, self._end = 0, len(kept)
        with memoryview(self._buffer)[self._end :] as free:
            count = self.connection.recv_into(free)
        if count == 0:
            logging.info("Frontend disconnected.")
            sys.exit(0)
        self._end += count


def _request(view: memoryview) -> tuple[dict[str, Any] | None, int]:
    """The request at the beginning, None if there is the end of the message, and how many bytes it has.

    Raises:
        CutOffError: not all of it is there.
    """
    name, at = _part(view, 0)
    if name is None:
        return None, at
    headers, inputs = [], []
    key, at = _part(view, at)
    while key is not None:
        value, at = _part(view, at)
        headers.append({"name": key, "value": value})
        key, at = _part(view, at)
    key, at = _part(view, at)
    while key is not None:
        kind, at = _part(view, at)
        value, at = _part(view, at)
        assert kind is not None
        inputs.append({"name": key.decode(), "contentType": kind.decode(), "value": value})
        key, at = _part(view, at)
    return {"requestId": name, "headers": headers, "parameters": inputs}, at


def _part(view: memoryview, at: int) -> tuple[bytes | None, int]:
    """A part, None if its length says that there is none, and where the next one begins."""
    start = at + 4
    if start > len(view):
        raise CutOffError
    (length,) = _length_at(view, at)
    if length == _END:
        return None, start
    end = start + length
    if end > len(view):
        raise CutOffError
    return bytes(view[start:end]), end


def read_by_segments() -> bool:
    """Have TorchServe's worker in this process read its messages so; False if this is another version."""
    import ts
    from ts.protocol import otf_message_handler

    if ts.__version__ != _VERSION:
        _log.warning("TorchServe is %s and not %s: it reads field by field", ts.__version__, _VERSION)
        return False
    incoming: Incoming | None = None

    def of(connection: socket.socket) -> Incoming:
        nonlocal incoming
        if incoming is None or incoming.connection is not connection:
            incoming = Incoming(connection)
        return incoming

    otf_message_handler._retrieve_buffer = lambda connection, count: of(connection).take(count)
    otf_message_handler._retrieve_inference_msg = lambda connection: of(connection).requests()
    return True
