"""JSON and Arrow say the same, and bytes from strangers end in a request or a refusal, never otherwise."""

import contextlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments.serving_checks.hostile_arrow import stream
from features.online.request import MAX_COLUMNS, RequestError, ScoreRequest
from serving.wire import arrow_codec, json_codec
from serving.wire.reply import ScoreReply, best_first

CODECS = pytest.mark.parametrize("codec", [json_codec, arrow_codec], ids=["json", "arrow"])

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
NAMES = TEXT.filter(lambda text: bool(text.strip()))  # a blank id is none
IDS = st.one_of(st.lists(INT64, min_size=1, max_size=8), st.lists(NAMES, min_size=1, max_size=8))
SCALAR = st.one_of(st.none(), st.booleans(), INT64, TEXT, st.floats(allow_nan=False, allow_infinity=False))


@st.composite
def requests(draw: st.DrawFn) -> ScoreRequest:
    candidates = draw(IDS)
    columns: dict[str, Any] = {}
    for name in draw(st.lists(TEXT.filter(lambda name: name != "product_id"), max_size=3, unique=True)):
        value = draw(st.sampled_from([st.floats(-1e9, 1e9), st.integers(-(2**40), 2**40), TEXT]))
        values = draw(st.lists(st.none() | value, min_size=len(candidates), max_size=len(candidates)))
        columns[name] = values if None in values or isinstance(values[0], str) else np.array(values)
    return ScoreRequest(
        user_id=draw(st.none() | INT64 | TEXT),
        query=draw(st.none() | TEXT),
        candidates=candidates,
        timestamp_us=draw(st.none() | st.integers(0, 2**52)),
        context=draw(st.dictionaries(TEXT, SCALAR, max_size=3)),
        candidate_columns=columns,
        history=draw(st.none() | IDS),
    )


def fields_of(request: ScoreRequest) -> dict[str, Any]:
    columns = {name: list(values) for name, values in request.candidate_columns.items()}
    return {
        "user_id": request.user_id,
        "query": request.query,
        "candidates": request.candidates.to_pylist(),
        "timestamp_us": request.timestamp_us,
        "context": dict(request.context),
        "candidate_columns": columns,
        "history": None if request.history is None else request.history.to_pylist(),
    }


@CODECS
@given(request=requests())
@settings(max_examples=80, deadline=None)
def test_a_request_comes_out_as_it_went_in(codec: ModuleType, request: ScoreRequest) -> None:
    assert fields_of(codec.decode_request(codec.encode_request(request))) == fields_of(request)


TENTH = float(np.float32(0.1))


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([0.1, 2], np.float32), [TENTH, 2]),
        (np.array([0.5, 2], np.float16), [0.5, 2]),
        (np.array([0.1, 2], np.longdouble), [0.1, 2]),
        (np.array([0.1, 2], ">f8"), [0.1, 2]),
        (np.array([3, 4], np.uint8), [3, 4]),
        (np.array([True, False]), [True, False]),
        (np.array([0.1, None], object), [0.1, None]),
        (np.array(["a", "b"]), ["a", "b"]),
        ([np.float32(0.1), None], [TENTH, None]),
        ([np.int64(3), 0.5], [3, 0.5]),
        ([None, None], [None, None]),
        ([np.str_("a"), None], ["a", None]),
    ],
)
def test_json_and_arrow_bring_the_same_column(values: Any, wanted: list[Any]) -> None:
    request = ScoreRequest(user_id=1, query="q", candidates=[1, 2], candidate_columns={"a": values})
    for codec in (json_codec, arrow_codec):
        column = codec.decode_request(codec.encode_request(request)).candidate_columns["a"]
        assert [value.item() if isinstance(value, np.generic) else value for value in column] == wanted


@pytest.mark.parametrize("values", [[1, "a"], [True, 1], [2**70, 1], ["\ud800", "a"], [[1], 2]])
def test_json_and_arrow_refuse_a_column_of_several_types_alike(values: list[Any]) -> None:
    request = ScoreRequest(user_id=1, query="q", candidates=[1, 2], candidate_columns={"a": values})
    sentences = []
    for codec in (json_codec, arrow_codec):
        with pytest.raises(RequestError, match=r"candidate_columns\.a: a list that is not of") as refusal:
            codec.encode_request(request)
        sentences.append(str(refusal.value))
    assert sentences[0] == sentences[1]


@CODECS
@given(scores=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20), unknown=st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_a_reply_comes_out_with_the_same_bits(codec: ModuleType, scores: list[float], unknown: int) -> None:
    reply = ScoreReply(
        scores_N=np.array(scores, np.float32),
        order_N=np.arange(len(scores)),
        model_version="v",
        generation="000001",
        as_of="2026-01-01T00:00:00+00:00",
        unknown={"users": unknown},
        history_length=3,
        rows=object(),  # type: ignore[arg-type]
    )
    read = codec.decode_reply(codec.encode_reply(reply))
    assert read.scores_N.tobytes() == reply.scores_N.tobytes()
    assert read.order_N.tolist() == reply.order_N.tolist()
    assert json_codec.facts_of_reply(read) == json_codec.facts_of_reply(reply)
    assert read.rows is None


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 15, 16, 17, 100, 10_000])
def test_a_reply_is_the_stream_that_arrow_writes_to_the_byte(rows: int) -> None:
    scores_N = np.random.default_rng(rows).random(rows, np.float32)
    reply = ScoreReply(scores_N, best_first(scores_N), "v", "000001", "2026", {"users": 1}, rows)
    columns = [pa.array(reply.scores_N, pa.float32()), pa.array(reply.order_N, pa.int64())]
    facts = orjson.dumps(json_codec.facts_of_reply(reply))
    assert arrow_codec.encode_reply(reply) == arrow_codec._stream(columns, ["score", "order"], facts)


@CODECS
def test_what_is_not_a_reply_is_said(codec: ModuleType) -> None:
    for body in (b"", b"{}", b"[1]", b"\xff\xff\xff\xff", b"<html>"):
        with pytest.raises(ValueError, match="not a reply"):
            codec.decode_reply(body)


GOOD: dict[str, Any] = {"user_id": 1, "query": "q", "candidates": [1, 2]}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"nonsense", "body"),
        (b"\xff\xfe", "body"),
        (b"[]", "body"),
        (b"null", "body"),
        (b"[" * 5000 + b"]" * 5000, "body"),
        (b'{"user_id": 1, "query": "q", "candidates": [NaN]}', "body"),
        (b'{"user_id": 1, "query": "q"}', "candidates"),
        (b'{"user_id": 1, "candidates": [1]}', "query"),
        (orjson.dumps({**GOOD, "candidates": None}), "candidates"),
        (orjson.dumps({**GOOD, "candidates": 5}), "candidates"),
        (b'{"user_id": 1, "query": "q", "candidates": [18446744073709551616]}', "candidates[0]"),
        (b'{"user_id": 1e400, "query": "q", "candidates": [1]}', "body"),
        (orjson.dumps({**GOOD, "history": {"a": 1}}), "history"),
        (orjson.dumps({**GOOD, "context": [1]}), "context"),
        (orjson.dumps({**GOOD, "candidate_columns": {"price": [1]}}), "candidate_columns.price"),
        (orjson.dumps({**GOOD, "querry": "q"}), "querry"),
    ],
)
def test_a_faulty_json_body_is_refused_by_its_field(body: bytes, field: str) -> None:
    with pytest.raises(RequestError) as refusal:
        json_codec.decode_request(body)
    assert (refusal.value.field, refusal.value.status) == (field, 400)


def test_a_misspelt_field_is_answered_with_the_one_that_was_meant() -> None:
    with pytest.raises(RequestError, match="did you mean candidates"):
        json_codec.decode_request(b'{"user_id": 1, "query": "q", "candidate": [1]}')


@CODECS
def test_a_request_without_a_user_is_one_whose_user_is_null(codec: ModuleType) -> None:
    if codec is json_codec:
        found = codec.decode_request(b'{"query": "q", "candidates": [1]}')
    else:
        found = codec.decode_request(stream(IDS_COLUMN, {b"dashclip": b'{"query": "q"}'}))
    assert found.user_id is None
    with pytest.raises(RequestError, match="did you mean user_id"):
        json_codec.decode_request(b'{"user": 1, "query": "q", "candidates": [1]}')


def test_a_null_where_nothing_is_allowed_is_as_good_as_nothing() -> None:
    fields = {**GOOD, "context": None, "candidate_columns": None, "history": None, "timestamp_us": None}
    assert json_codec.decode_request(orjson.dumps(fields)).context == {}


IDS_COLUMN = {"product_id": pa.array([1, 2])}


def two_batches() -> bytes:
    sink = pa.BufferOutputStream()
    schema = pa.schema([("product_id", pa.int64())], metadata={b"dashclip": b'{"user_id": 1, "query": "q"}'})
    with pa.ipc.new_stream(sink, schema) as writer:
        for _ in range(2):
            writer.write_batch(pa.record_batch([pa.array([1])], schema=schema))
    return sink.getvalue().to_pybytes()


def no_batch() -> bytes:
    sink = pa.BufferOutputStream()
    pa.ipc.new_stream(sink, pa.schema([("product_id", pa.int64())])).close()
    return sink.getvalue().to_pybytes()


def broken_offsets() -> bytes:
    body = bytearray(stream({"product_id": pa.array(["aaaa", "bbbb"])}))
    position = body.index(np.array([0, 4, 8], np.int32).tobytes())
    body[position : position + 12] = np.array([0, 4, 2**30], np.int32).tobytes()
    return bytes(body)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "Infinity", "nan"])
def test_a_number_that_json_does_not_have_is_named(number: str) -> None:
    body = f'{{"query": "é", "candidates": [1], "candidate_columns": {{"price": [{number}]}}}}'.encode()
    with pytest.raises(RequestError, match="send null where a number is missing"):
        json_codec.decode_request(body)


@pytest.mark.parametrize(
    ("make", "field", "words"),
    [
        (lambda: b"\xff\xff\xff\xff", "body", "malformed|without"),
        (lambda: stream(IDS_COLUMN)[:-40], "body", "malformed|without"),
        (no_batch, "body", "without a record batch"),
        (two_batches, "body", "more than one"),
        (broken_offsets, "body", "malformed"),
        (lambda: stream(IDS_COLUMN, compression="zstd"), "body", "compressed"),
        (lambda: stream(IDS_COLUMN, compression="lz4"), "body", "compressed"),
        (
            lambda: stream({"product_id": pa.array(["a", "b"]).dictionary_encode()}),
            "product_id",
            "dictionary",
        ),
        (lambda: stream({"other": pa.array([1])}), "product_id", "0 columns"),
        (lambda: stream(IDS_COLUMN, {}), "metadata.dashclip", "nothing"),
        (lambda: stream(IDS_COLUMN, {b"dashclip": b"{"}), "metadata.dashclip", "malformed"),
        (lambda: stream(IDS_COLUMN, {b"dashclip": b'{"user_id": 1}'}), "query", "nothing"),
        (
            lambda: stream(IDS_COLUMN, {b"dashclip": b'{"user_id": 1, "query": "q", "history": 3}'}),
            "history",
            "no list",
        ),
        (
            lambda: stream(IDS_COLUMN, {b"dashclip": b'{"user_id": 1, "query": "q", "candidates": [1]}'}),
            "candidates",
            "unknown field",
        ),
        (lambda: stream({"product_id": pa.array([], pa.int64())}), "candidates", "empty"),
        (lambda: stream({"product_id": pa.array([1, None])}), "candidates", "null"),
        (lambda: stream({"product_id": pa.array([1.5])}), "candidates", "double"),
        (
            lambda: stream({**IDS_COLUMN, "price": pa.array([1.0, float("nan")])}),
            "candidate_columns.price",
            "NaN",
        ),
        (
            lambda: stream({**IDS_COLUMN, **{f"c{i}": pa.array([1, 2]) for i in range(MAX_COLUMNS)}}),
            "body",
            "columns",
        ),
        (
            lambda: stream({**IDS_COLUMN, "moment": pa.array([1, 2], pa.timestamp("us"))}),
            "candidate_columns.moment",
            "timestamp",
        ),
    ],
)
def test_a_faulty_arrow_body_is_refused_by_its_field(
    make: Callable[[], bytes], field: str, words: str
) -> None:
    with pytest.raises(RequestError, match=words) as refusal:
        arrow_codec.decode_request(make())
    assert refusal.value.field == field


@CODECS
@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_damaged_bytes_end_in_a_request_or_a_refusal(codec: ModuleType, data: st.DataObject) -> None:
    body = bytearray(codec.encode_request(data.draw(requests())))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(body) - 1))
        body[position] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(0, len(body)))] if data.draw(st.booleans()) else body
    with contextlib.suppress(RequestError):
        assert isinstance(codec.decode_request(bytes(body)), ScoreRequest)


def test_a_column_name_that_is_not_utf_8_is_refused() -> None:
    body = stream({**IDS_COLUMN, "price": pa.array([1.0, 2.0])}).replace(b"price", b"pri\x80e")
    with pytest.raises(RequestError, match="malformed Arrow"):
        arrow_codec.decode_request(body)
