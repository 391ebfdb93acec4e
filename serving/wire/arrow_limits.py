"""What an Arrow stream announces, checked before Arrow makes anything of it.

A few bytes can announce much: columns that share one buffer, a million columns that share one name, strings
that are all views of one text, a type that repeats its values. Arrow makes what is announced, so a body of a
megabyte could cost gigabytes. Here the messages are read as bytes, and a stream passes only if all that it
announces (names, metadata, buffers) adds up to no more than it weighs.

A message lies in a stream as FF FF FF FF, the length of its metadata, the metadata, its body; the metadata is
a flatbuffer (https://arrow.apache.org/docs/format/Columnar.html#format-ipc). Nobody has verified it yet: a
trick that leads here to other bytes than Arrow would read does not pass Arrow's own verifier.
"""

import struct
from collections.abc import Callable
from typing import Final, Literal, NamedTuple, TypeVar

from features.online.request import (
    MAX_CANDIDATES,
    MAX_COLUMNS,
    MAX_ID_CHARACTERS,
    RequestError,
)
from serving.wire.flatbuffer import Table, root
from serving.wire.json_codec import printable

#: How every message begins.
CONTINUATION = b"\xff\xff\xff\xff"
#: How a stream ends.
END = CONTINUATION + bytes(4)
ADVICE = "send an Arrow IPC stream of one record batch of plain, uncompressed columns"
#: Keys of a schema's metadata; ours is one, pandas and R add one each.
MAX_METADATA_KEYS = 16

#: Kinds of message.
SCHEMA: Final = 1
BATCH: Final = 3
_PREFIX_BYTES = 8
Schema = TypeVar("Schema")
#: Names of Arrow's `Type` union by number, for the error.
_TYPES = (
    "none", "null", "integer", "number", "binary", "string", "boolean", "decimal", "date", "time",
    "timestamp", "interval", "list", "struct", "union", "fixed_size_binary", "fixed_size_list", "map",
    "duration", "large_binary", "large_string", "large_list", "run_end_encoded", "binary_view",
    "string_view", "list_view", "large_list_view",
)  # fmt: skip
_PLAIN = frozenset(map(_TYPES.index, ("null", "integer", "number", "string", "boolean", "large_string")))
_MESSAGES = {1: "schema", 2: "dictionary", 3: "record batch", 4: "tensor", 5: "sparse tensor"}
#: Bytes of one character in UTF-8 at most.
_CHARACTER_BYTES = 4


class Message(NamedTuple):
    """One message: its header, and where its metadata, its body and the next message begin."""

    header: Table
    metadata_start: int
    body_start: int
    end: int


def check_stream(body: memoryview, read_schema: Callable[[Message], Schema]) -> tuple[Schema, int]:
    """Check a stream of a schema and one record batch.

    Args:
        read_schema: reads the message of the schema, after `check_schema` of its header.

    Returns:
        What that has read, and where the message of the batch begins.

    Raises:
        RequestError: it announces more than it holds or more than a request may have, or what no request
            needs: nested, shared, compressed or viewed columns.
    """
    try:
        message = message_at(body, 0, expected=SCHEMA)
        schema = read_schema(message)
        batch = message_at(body, message.end, expected=BATCH)
        _check_batch(batch.header, batch.end - batch.body_start)
        rest = bytes(body[batch.end : batch.end + _PREFIX_BYTES])
    except (struct.error, IndexError) as error:
        raise RequestError("body", f"malformed Arrow ({error})", ADVICE) from None
    if rest and rest != END:
        raise RequestError("body", "more than one record batch", ADVICE)
    return schema, message.end


def message_at(body: memoryview, at: int, *, expected: Literal[1, 3]) -> Message:
    """The message of a stream that begins at a place: a schema (1) or a record batch (3).

    Raises:
        RequestError: there is none, it is another one, or it is cut off.
        struct.error, IndexError: its metadata points outside of itself.
    """
    if len(body) - at < _PREFIX_BYTES or body[at + 4 : at + _PREFIX_BYTES] == bytes(4):
        raise RequestError("body", f"a stream without a {_MESSAGES[expected]}", ADVICE)
    if body[at : at + 4] != CONTINUATION:
        raise RequestError("body", "malformed Arrow (no message where one must begin)", ADVICE)
    start = at + _PREFIX_BYTES
    end = start + int.from_bytes(body[at + 4 : start], "little", signed=True)
    if not start < end <= len(body):
        raise RequestError("body", "malformed Arrow (a message that is cut off)", ADVICE)
    message = root(body[start:end])
    kind, body_bytes = message.byte(1), message.number(3)
    if kind != expected:
        came = f"a {_MESSAGES.get(kind, 'nameless')} in place of a {_MESSAGES[expected]}"
        raise RequestError("body", came, ADVICE)
    if message.vector(4)[1]:
        raise RequestError("body", "metadata of a single message", "put what you say into the schema's")
    if not 0 <= body_bytes <= len(body) - end:
        raise RequestError("body", "malformed Arrow (a message that is cut off)", ADVICE)
    return Message(message.table(2), start, end, end + body_bytes)


def check_schema(schema: Table) -> None:
    """Check the header of a schema's message.

    Raises:
        RequestError: too many columns or metadata, or a column that no request needs.
        struct.error, IndexError: it points outside of itself.
    """
    columns = schema.vector(1)[1]
    if columns > MAX_COLUMNS:
        raise RequestError("body", f"{columns:,} columns", f"send at most {MAX_COLUMNS}")
    keys = schema.vector(2)[1]
    if keys > MAX_METADATA_KEYS:
        raise RequestError("body", f"{keys:,} keys of metadata", f"send at most {MAX_METADATA_KEYS}")
    text_bytes = sum(pair.vector(slot)[1] for pair in schema.tables(2) for slot in (0, 1))
    if text_bytes > len(schema.buffer):
        raise RequestError("body", "metadata that share their bytes", ADVICE)
    for field in schema.tables(1):
        _check_field(field)


def _check_field(field: Table) -> None:
    first, name_bytes = field.vector(0)
    if name_bytes > _CHARACTER_BYTES * MAX_ID_CHARACTERS:
        came = f"a column with a name of {name_bytes:,} bytes"
        raise RequestError("body", came, f"send names of at most {MAX_ID_CHARACTERS} characters")
    kind = field.byte(2)
    if field.place(4):
        wrong = "dictionary"
    elif kind not in _PLAIN:
        wrong = _TYPES[kind] if kind < len(_TYPES) else "a type that nobody knows"
    elif field.vector(5)[1]:
        wrong = "columns"
    elif field.vector(6)[1]:
        wrong = "an extension type, or with metadata of its own"
    else:
        return
    name = printable(bytes(field.buffer[first : first + name_bytes]).decode(errors="replace"))
    place = name if name == "product_id" else f"candidate_columns.{name}"
    raise RequestError(place, f"a column of {wrong}", ADVICE)


def _check_batch(batch: Table, body_bytes: int) -> None:
    rows = batch.number(0)
    if rows > MAX_CANDIDATES:
        raise RequestError("candidates", f"{rows:,} ids", f"send at most {MAX_CANDIDATES:,}", status=413)
    if batch.place(3):
        raise RequestError("body", "a compressed record batch", ADVICE)
    first, count = batch.vector(2)
    # A buffer is its place in the body and its length, eight bytes each.
    if count and first + 16 * count > len(batch.buffer):
        raise struct.error("a list of buffers that is cut off")
    lengths = [length for _, length in struct.iter_unpack("<qq", batch.buffer[first : first + 16 * count])]
    if any(length < 0 for length in lengths) or sum(lengths) > body_bytes:
        came = f"buffers of {sum(lengths):,} bytes in a body of {body_bytes:,}"
        raise RequestError("body", came, "send each column in a buffer of its own")
