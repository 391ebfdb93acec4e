"""Requests and replies as Arrow IPC streams: one record batch with a row for each candidate.

A request has the column `product_id` (integers or strings) and one column for each live feature; its other
fields are JSON under the key `dashclip` of the schema's metadata, named as in a JSON request. A reply has the
columns `score` (float32) and `order` (int64), and its facts under the same key.

A body comes from anybody: what it announces is checked before Arrow acts on it (`serving.wire.arrow_limits`),
and every buffer is validated before a value is read.
"""

import struct
from functools import lru_cache

import numpy as np
import orjson
import pyarrow as pa

from features.online.request import RequestError, ScoreRequest, one_type
from serving.wire.arrow_limits import ADVICE, BATCH, CONTINUATION, END, check_stream, message_at
from serving.wire.arrow_schemas import KnownSchemas
from serving.wire.json_codec import (
    BESIDE_CANDIDATES,
    check_fields,
    encode_beside_candidates,
    facts_of_reply,
    parse_object,
    without_nulls,
)
from serving.wire.reply import ScoreReply

CONTENT_TYPE = "application/vnd.apache.arrow.stream"
#: How every Arrow stream begins, and no JSON text.
FIRST_BYTES = CONTINUATION

_KEY = b"dashclip"
_IDS = "product_id"
_SCHEMAS = KnownSchemas(_KEY)
_REPLY = pa.schema([("score", pa.float32()), ("order", pa.int64())])
#: Schemas of replies, which differ in their facts alone, and frames of their columns, by the number of rows.
_KEPT = 512


def decode_request(body: bytes | bytearray | memoryview) -> ScoreRequest:
    """A request from its bytes. Columns stay in the body's memory where Arrow and NumPy allow it.

    Raises:
        RequestError: not such a stream, or a column or field that is missing, unknown or wrong.
    """
    batch, metadata = _read_batch(body)
    names = batch.schema.names
    if names.count(_IDS) != 1:
        raise RequestError(
            _IDS, f"{names.count(_IDS)} columns of this name", "send one, with a row for each candidate"
        )
    if len(set(names)) != len(names):
        raise RequestError("body", "two columns of one name", "send each column once")
    fields = parse_object("metadata.dashclip", metadata)
    optional = tuple(name for name in BESIDE_CANDIDATES if name != "query")
    check_fields(fields, required=("query",), optional=optional)
    history = fields.get("history")
    if history is not None and not isinstance(history, list):
        raise RequestError("history", "no list", "send a list of product ids, newest first, or null")
    columns = dict(zip(names, batch.columns, strict=True))
    return ScoreRequest(candidates=columns.pop(_IDS), candidate_columns=columns, **without_nulls(fields))


def encode_request(request: ScoreRequest) -> bytes:
    """The bytes of a request.

    Raises:
        RequestError: the values of a candidate column are not of one type.
    """
    columns = request.candidate_columns
    arrays = [one_type(f"candidate_columns.{name}", values) for name, values in columns.items()]
    arrays, names = [request.candidates, *arrays], [_IDS, *columns]
    return _stream(arrays, names, encode_beside_candidates(request))


def encode_reply(reply: ScoreReply) -> bytes:
    """The bytes of a reply."""
    scores_N = np.ascontiguousarray(reply.scores_N, np.float32)
    order_N = np.ascontiguousarray(reply.order_N, np.int64)
    facts = orjson.dumps(facts_of_reply(reply))
    head, behind_scores, behind_order = _around_reply_columns(len(scores_N))
    return b"".join(
        (_reply_schema(facts), head, scores_N.tobytes(), behind_scores, order_N.tobytes(), behind_order)
    )


def decode_reply(body: bytes) -> ScoreReply:
    """A reply from its bytes.

    Raises:
        ValueError: these are not the bytes of a reply.
    """
    try:
        batch, metadata = _read_batch(body)
        facts = orjson.loads(metadata)
        return ScoreReply(
            scores_N=batch.column("score").to_numpy(),
            order_N=batch.column("order").to_numpy(),
            **facts,
        )
    except (RequestError, orjson.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"not a reply: {bytes(body[:80])!r}") from None


@lru_cache(maxsize=_KEPT)
def _reply_schema(facts: bytes) -> bytes:
    """The message of a reply's schema."""
    return _REPLY.with_metadata({_KEY: facts}).serialize().to_pybytes()


@lru_cache(maxsize=_KEPT)
def _around_reply_columns(rows: int) -> tuple[bytes, bytes, bytes]:
    """What lies before, between and behind the two columns of so many rows, to the end of the stream."""
    columns = [pa.array(np.zeros(rows, kind.to_pandas_dtype())) for kind in _REPLY.types]
    batch = pa.record_batch(columns, schema=_REPLY).serialize().to_pybytes()
    message = message_at(memoryview(batch), 0, expected=BATCH)
    first, count = message.header.vector(2)
    buffers = struct.iter_unpack("<qq", message.header.buffer[first : first + 16 * count])
    _, (score, score_bytes), _, (order, order_bytes) = buffers
    start = message.body_start
    return (
        batch[: start + score],
        batch[start + score + score_bytes : start + order],
        batch[start + order + order_bytes :] + END,
    )


def _stream(arrays: list[pa.Array], names: list[str], metadata: bytes) -> bytes:
    schema = pa.schema(
        [pa.field(name, array.type) for name, array in zip(names, arrays, strict=True)],
        metadata={_KEY: metadata},
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    return sink.getvalue().to_pybytes()


def _read_batch(body: bytes | bytearray | memoryview) -> tuple[pa.RecordBatch, bytes]:
    """The batch of a stream, and the fields that come with it."""
    buffer = pa.py_buffer(body)
    try:
        (schema, metadata), batch_start = check_stream(
            memoryview(body), lambda message: _SCHEMAS.read(message.header, buffer)
        )
        batch = pa.ipc.read_record_batch(buffer.slice(batch_start), schema)
        batch.validate(full=True)
    except (pa.ArrowException, OSError, EOFError, OverflowError, UnicodeDecodeError) as error:
        raise RequestError("body", f"malformed Arrow ({_first_line(error)})", ADVICE) from None
    return batch, metadata


def _first_line(error: BaseException) -> str:
    return ascii(str(error).split("\n", 1)[0])[1:-1][:80]
