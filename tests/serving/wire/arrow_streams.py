"""Arrow streams as a client might send them."""

from typing import Any

import numpy as np
import pyarrow as pa

BESIDE = {b"dashclip": b'{"user_id": 1, "query": "q"}'}


def stream(columns: dict[str, pa.Array], metadata: dict[bytes, bytes] | None = None, **options: Any) -> bytes:
    """One batch of these columns, with the least that a request needs beside them."""
    fields = [pa.field(name, array.type) for name, array in columns.items()]
    schema = pa.schema(fields, metadata=BESIDE if metadata is None else metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(pa.record_batch(list(columns.values()), schema=schema))
    return sink.getvalue().to_pybytes()


def views_of_one_text(text: str, rows: int) -> pa.Array:
    """A string_view column of that many rows, all of them the same bytes: little to send, much to make."""
    kind = np.dtype([("length", "<i4"), ("prefix", "S4"), ("buffer", "<i4"), ("offset", "<i4")])
    view_N = np.zeros(rows, kind)
    view_N["length"], view_N["prefix"] = len(text), text[:4]
    buffers = [None, pa.py_buffer(view_N.tobytes()), pa.py_buffer(text.encode())]
    return pa.Array.from_buffers(pa.string_view(), rows, buffers)
