"""Arrow streams that announce more than they hold: views of one text, shared buffers, types that repeat.

Arrow would make of a few kilobytes what they announce, gigabytes; a server must refuse them unmade.
"""

import random
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from features.online.request import MAX_CANDIDATES, MAX_COLUMNS
from serving.wire.arrow_limits import BATCH, SCHEMA, message_at

_BESIDE = {b"dashclip": b'{"user_id": 1, "query": "q"}'}
_LONG = "x" * 20_000
#: Of the text that all views are of, and of the text that all buffers become.
_LONG_ROWS = 400


def stream(
    columns: Mapping[str, pa.Array], metadata: Mapping[bytes, bytes] | None = None, **options: Any
) -> bytes:
    """One batch of these columns, with the least that a request needs beside them."""
    fields = [pa.field(name, array.type) for name, array in columns.items()]
    schema = pa.schema(fields, metadata=_BESIDE if metadata is None else metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(pa.record_batch(list(columns.values()), schema=schema))
    return bytes(sink.getvalue().to_pybytes())


def views_of_one_text(text: str, rows: int) -> pa.Array:
    """A string_view column of that many rows, all of them the same bytes: little to send, much to make."""
    kind = np.dtype([("length", "<i4"), ("prefix", "S4"), ("buffer", "<i4"), ("offset", "<i4")])
    view_N = np.zeros(rows, kind)
    view_N["length"], view_N["prefix"] = len(text), text[:4]
    buffers = [None, pa.py_buffer(view_N.tobytes()), pa.py_buffer(text.encode())]
    return pa.Array.from_buffers(pa.string_view(), rows, buffers)


def with_buffers(body: bytes, change: Callable[[int, int], tuple[int, int]]) -> bytes:
    """The stream with (place, length) of every buffer of its batch changed."""
    changed = bytearray(body)
    view = memoryview(body)
    batch = message_at(view, message_at(view, 0, expected=SCHEMA).end, expected=BATCH)
    first, count = batch.header.vector(2)
    start = batch.metadata_start + first
    for place in range(start, start + 16 * count, 16):
        struct.pack_into("<qq", changed, place, *change(*struct.unpack_from("<qq", body, place)))
    return bytes(changed)


def buffers_of(body: bytes) -> list[tuple[int, int]]:
    """(place, length) of every buffer of a stream's batch, in order."""
    seen: list[tuple[int, int]] = []

    def see(place: int, length: int) -> tuple[int, int]:
        seen.append((place, length))
        return place, length

    with_buffers(body, see)
    return seen


def hostile_stream(chance: random.Random) -> bytes:
    """One stream that announces more than it holds, by one of the ways there are."""
    rows = chance.choice((2, 300, MAX_CANDIDATES))
    way = chance.choice((_of_one_column, _of_shared_buffers, _of_sliced_buffers, _of_many_columns))
    return way(rows, chance)


def _ids(rows: int) -> pa.Array:
    return pa.array(range(1_000, 1_000 + rows))


def _of_one_column(rows: int, chance: random.Random) -> bytes:
    zero_N, one = np.zeros(rows, np.int8), pa.array([_LONG])
    columns: dict[str, Callable[[], pa.Array]] = {
        "views": lambda: views_of_one_text(_LONG, rows),
        "bytes": lambda: views_of_one_text(_LONG, rows).cast(pa.binary_view()),
        "run": lambda: pa.RunEndEncodedArray.from_arrays(pa.array([rows], pa.int32()), one),
        "dictionary": lambda: pa.DictionaryArray.from_arrays(pa.array(zero_N), one),
        "union": lambda: pa.UnionArray.from_sparse(pa.array(zero_N), [pa.nulls(rows)]),
        "list": lambda: pa.array([[0]] * rows, pa.list_view(pa.int8())),
        "extension": lambda: pa.array(zero_N).cast(pa.bool8()),
    }
    name = chance.choice(list(columns))
    as_ids = chance.random() < 0.3
    column = columns[name]()
    return stream({"product_id": column} if as_ids else {"product_id": _ids(rows), name: column})


def _texts(rows: int) -> bytes:
    """Many narrow columns of text and a wide one."""
    narrow = {f"c{number}": pa.array(["z"] * rows) for number in range(20)}
    wide = pa.array(["y" * _LONG_ROWS] * min(rows, 1_000) + ["y"] * max(0, rows - 1_000))
    return stream({"product_id": _ids(rows), "wide": wide, **narrow})


def _of_shared_buffers(rows: int, _: random.Random) -> bytes:
    """Every column of text is the wide one."""
    body = _texts(rows)
    buffers = buffers_of(body)
    offsets, widest = (buffers[place] for place in (3, 4))

    def share(place: int, length: int) -> tuple[int, int]:
        return offsets if length == offsets[1] else widest if length == rows else (place, length)

    return with_buffers(body, share)


def _of_sliced_buffers(rows: int, chance: random.Random) -> bytes:
    """Each buffer is any stretch of the body, often longer than all of it."""
    body = _texts(rows)
    end = sum(buffers_of(body)[-1])

    def stretch(place: int, length: int) -> tuple[int, int]:
        if chance.random() < 0.5:
            return place, length
        return 8 * chance.randrange(end // 8), chance.choice((length, end, 8 * end, 2**40, -8))

    return with_buffers(body, stretch)


def _of_many_columns(rows: int, chance: random.Random) -> bytes:
    """Columns without a byte of their own, long names, many keys."""
    columns = chance.choice((MAX_COLUMNS - 1, MAX_COLUMNS, 3_000))
    width = chance.choice((1, 500, 3_000))
    names = [f"{number:0{width}d}" for number in range(columns if width == 1 else min(columns, 300))]
    keys = {f"k{number}".encode(): b"v" * width for number in range(chance.choice((1, 16, 2_000)))}
    return stream({"product_id": _ids(rows), **dict.fromkeys(names, pa.nulls(rows))}, {**_BESIDE, **keys})
