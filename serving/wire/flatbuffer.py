"""Places of a flatbuffer that nobody has verified: tables, vectors and numbers in the bytes as they came.

A flatbuffer begins with the place of its root table. A table begins with how far before it the list of its
slots is; a slot holds how far behind the table's start its value is, 0 if there is none
(https://flatbuffers.dev/internals/). A place outside the bytes is a `struct.error` or an `IndexError`.
"""

import struct
from collections.abc import Iterator

_uint16 = struct.Struct("<H").unpack_from
_int32 = struct.Struct("<i").unpack_from
_uint32 = struct.Struct("<I").unpack_from
_int64 = struct.Struct("<q").unpack_from


class Table:
    """A table that begins at a place of a buffer."""

    def __init__(self, buffer: memoryview, at: int) -> None:
        self.buffer, self.at = buffer, at
        self._slots = at - _int32(buffer, at)[0]
        if not 0 <= self._slots < len(buffer):
            raise struct.error("a table without slots")
        self._slots_bytes = _uint16(buffer, self._slots)[0]

    def place(self, slot: int) -> int:
        """Where the value of a slot is, 0 if it has none."""
        offset = 4 + 2 * slot
        if offset >= self._slots_bytes:
            return 0
        distance = int(_uint16(self.buffer, self._slots + offset)[0])
        return self.at + distance if distance else 0

    def byte(self, slot: int) -> int:
        """A number of one byte; 0 if there is none."""
        place = self.place(slot)
        return self.buffer[place] if place else 0

    def number(self, slot: int) -> int:
        """A number of eight bytes; 0 if there is none."""
        place = self.place(slot)
        return int(_int64(self.buffer, place)[0]) if place else 0

    def table(self, slot: int) -> "Table":
        """A table, which must be there."""
        place = self.place(slot)
        if not place:
            raise struct.error("a table is missing")
        return Table(self.buffer, _target(self.buffer, place))

    def vector(self, slot: int) -> tuple[int, int]:
        """Where the first element of a vector is, and how many there are; 0 of them if there is no vector."""
        place = self.place(slot)
        if not place:
            return 0, 0
        start = _target(self.buffer, place)
        return start + 4, int(_uint32(self.buffer, start)[0])

    def tables(self, slot: int) -> Iterator["Table"]:
        """The tables of a vector."""
        first, count = self.vector(slot)
        for position in range(first, first + 4 * count, 4):
            yield Table(self.buffer, _target(self.buffer, position))


def root(buffer: memoryview) -> Table:
    """The table that a flatbuffer begins with."""
    return Table(buffer, _target(buffer, 0))


def _target(buffer: memoryview, place: int) -> int:
    return place + int(_uint32(buffer, place)[0])
