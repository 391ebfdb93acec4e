"""Schemas of Arrow streams that have been checked and read: a client sends the same ones over and over.

Reading one costs more the more columns it has. Two messages of a schema that differ in the value of one key
of metadata alone (where a request has its user and query, a reply its facts) have the same columns, so what
lies around that value tells whether they are known. Arrow then reads the batch by the known schema, and
nothing of the message: nobody acts on bytes that no check has seen.
"""

import struct
import threading

import pyarrow as pa

from serving.wire.arrow_limits import MAX_METADATA_KEYS, check_schema
from serving.wire.flatbuffer import Table

#: Beyond, all are forgotten; of longer messages none is kept.
_MOST, _MOST_BYTES = 256, 1 << 14
#: Texts of a flatbuffer end in a zero, and begin at a multiple of four with their length.
_ALIGNED, _LENGTH_BYTES = 4, 4


class KnownSchemas:
    """Schemas by all bytes of their messages but the value of one key. Threads may share it."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._known: dict[tuple[bytes, bytes], pa.Schema] = {}
        self._changing = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def read(self, header: Table, message: pa.Buffer) -> tuple[pa.Schema, bytes]:
        """The schema of a message, and the value of the key in its metadata; empty if there is none.

        Args:
            header: of the message.
            message: the whole of it, for Arrow.

        Raises:
            RequestError: it is not that of a request.
            struct.error, IndexError: it points outside of itself.
            pa.ArrowException, UnicodeDecodeError: what else Arrow finds wrong with it.
        """
        around, value = self._around(header)
        schema = None if around is None else self._known.get(around)
        if schema is None:
            check_schema(header)
            schema = pa.ipc.read_schema(message)
            _ = schema.names  # fails if one is not UTF-8, which nothing above has checked
            value = (schema.metadata or {}).get(self._key, b"")
            if around is not None and sum(map(len, around)) <= _MOST_BYTES:
                with self._changing:
                    if len(self._known) >= _MOST:
                        self._known.clear()
                    self._known[around] = schema
        return schema, value

    def _around(self, header: Table) -> tuple[tuple[bytes, bytes] | None, bytes]:
        """What lies before and behind the value, and the value; None unless the key is there once."""
        buffer, found = header.buffer, []
        _, count = header.vector(2)
        if not 0 < count <= MAX_METADATA_KEYS:
            return None, b""
        for pair in header.tables(2):
            first, length = pair.vector(0)
            if bytes(buffer[first : first + length]) == self._key:
                found.append(pair.vector(1))
        if len(found) != 1:
            return None, b""
        first, length = found[0]
        end = first + length
        if end >= len(buffer):
            raise struct.error("a text that is cut off")
        behind = min(len(buffer), end + _ALIGNED - end % _ALIGNED)
        return (bytes(buffer[: first - _LENGTH_BYTES]), bytes(buffer[behind:])), bytes(buffer[first:end])
