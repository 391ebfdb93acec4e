"""Requests and replies as Arrow IPC streams: one record batch with a row for each candidate.

A request has the column `product_id` (integers or strings) and one column for each live feature; its other
fields are JSON under the key `dashclip` of the schema's metadata, named as in a JSON request. A reply has the
columns `score` (float32) and `order` (int64), and its facts under the same key.

A body comes from anybody: what it announces is checked before Arrow acts on it (`serving.wire.arrow_limits`),
and every buffer is validated before a value is read.
"""

import orjson
import pyarrow as pa

from features.online.request import RequestError, ScoreRequest, one_type
from serving.wire.arrow_limits import ADVICE, CONTINUATION, check_stream
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


def decode_request(body: bytes | bytearray | memoryview) -> ScoreRequest:
    """A request from its bytes. Columns stay in the body's memory where Arrow and NumPy allow it.

    Raises:
        RequestError: not such a stream, or a column or field that is missing, unknown or wrong.
    """
    batch = _read_batch(body)
    schema = batch.schema
    names = schema.names
    if names.count(_IDS) != 1:
        raise RequestError(
            _IDS, f"{names.count(_IDS)} columns of this name", "send one, with a row for each candidate"
        )
    if len(set(names)) != len(names):
        raise RequestError("body", "two columns of one name", "send each column once")
    fields = parse_object("metadata.dashclip", (schema.metadata or {}).get(_KEY, b""))
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
    arrays = [pa.array(reply.scores_N, pa.float32()), pa.array(reply.order_N, pa.int64())]
    return _stream(arrays, ["score", "order"], orjson.dumps(facts_of_reply(reply)))


def decode_reply(body: bytes) -> ScoreReply:
    """A reply from its bytes.

    Raises:
        ValueError: these are not the bytes of a reply.
    """
    try:
        batch = _read_batch(body)
        facts = orjson.loads(batch.schema.metadata[_KEY])
        return ScoreReply(
            scores_N=batch.column("score").to_numpy(),
            order_N=batch.column("order").to_numpy(),
            **facts,
        )
    except (RequestError, orjson.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"not a reply: {bytes(body[:80])!r}") from None


def _stream(arrays: list[pa.Array], names: list[str], metadata: bytes) -> bytes:
    schema = pa.schema(
        [pa.field(name, array.type) for name, array in zip(names, arrays, strict=True)],
        metadata={_KEY: metadata},
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    return sink.getvalue().to_pybytes()


def _read_batch(body: bytes | bytearray | memoryview) -> pa.RecordBatch:
    check_stream(memoryview(body))
    try:
        reader = pa.ipc.MessageReader.open_stream(pa.py_buffer(body))
        schema = pa.ipc.read_schema(reader.read_next_message())
        batch = pa.ipc.read_record_batch(reader.read_next_message(), schema)
        batch.validate(full=True)
        _ = schema.names  # fails if one is not UTF-8, which nothing above has checked
    except (pa.ArrowException, OSError, EOFError, OverflowError, UnicodeDecodeError) as error:
        raise RequestError("body", f"malformed Arrow ({_first_line(error)})", ADVICE) from None
    return batch


def _first_line(error: BaseException) -> str:
    return ascii(str(error).split("\n", 1)[0])[1:-1][:80]
