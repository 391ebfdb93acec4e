"""An Arrow body never makes more than it weighs: what announces more is refused before Arrow acts on it."""

import struct
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.serving_checks.hostile_arrow import buffers_of, stream, views_of_one_text, with_buffers
from features.online.request import MAX_CANDIDATES, MAX_ID_CHARACTERS, RequestError, ScoreRequest
from serving.wire import arrow_codec
from serving.wire.arrow_limits import SCHEMA, message_at

ROWS = 1_000
IDS = pa.array(range(ROWS))
LONG = "x" * 20_000


def a_run() -> pa.Array:
    return pa.RunEndEncodedArray.from_arrays(pa.array([ROWS], pa.int32()), pa.array([LONG]))


def a_union() -> pa.Array:
    types_N, texts = pa.array(np.zeros(ROWS, np.int8)), pa.array(["a"] * ROWS)
    return pa.UnionArray.from_sparse(types_N, [texts, texts])


def a_dictionary() -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(ROWS, np.int8)), pa.array([LONG]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: views_of_one_text(LONG, ROWS), "string_view"),
        (lambda: views_of_one_text(LONG, ROWS).cast(pa.binary_view()), "binary_view"),
        (a_run, "run_end_encoded"),
        (a_union, "union"),
        (a_dictionary, "dictionary"),
        (lambda: pa.array([["a"]] * ROWS), "list"),
        (lambda: pa.array([[1]] * ROWS, pa.list_view(pa.int8())), "list_view"),
        (lambda: pa.array([b"a"] * ROWS), "binary"),
        (lambda: pa.array([b"0123456789abcdef"] * ROWS, pa.uuid()), "fixed_size_binary"),
        (lambda: pa.array(np.zeros(ROWS, np.int8)).cast(pa.bool8()), "extension"),
        (lambda: pa.array([1] * ROWS, pa.decimal128(5)), "decimal"),
        (lambda: pa.array([1] * ROWS, pa.timestamp("us")), "timestamp"),
        (lambda: pa.array([{}] * ROWS, pa.struct([])), "struct"),
    ],
)
@pytest.mark.parametrize("name", ["product_id", "note"])
def test_a_column_that_may_make_more_than_it_weighs_is_refused_by_its_type(
    make: Callable[[], pa.Array], words: str, name: str
) -> None:
    columns = {"product_id": IDS, name: make()}
    with pytest.raises(RequestError, match=words) as refusal:
        arrow_codec.decode_request(stream(columns))
    assert refusal.value.field == {"note": "candidate_columns.note"}.get(name, name)


@pytest.mark.parametrize(
    "kind", [pa.null(), pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.large_string()]
)
def test_a_plain_column_passes(kind: pa.DataType) -> None:
    column = pa.array([None, None] if kind == pa.null() else ["1", None]).cast(kind)
    request = arrow_codec.decode_request(stream({"product_id": pa.array([1, 2]), "note": column}))
    assert request.candidate_columns["note"] == column.to_pylist()


def test_columns_that_share_one_buffer_are_refused() -> None:
    narrow = {f"c{number}": pa.array(["z"] * ROWS) for number in range(40)}
    body = stream({"product_id": IDS, "long": pa.array(["y" * 500] * ROWS), **narrow})
    long_at = max(buffers_of(body), key=lambda one: one[1])
    offsets_at = (buffers_of(body)[4][0], 4 * (ROWS + 1))

    def share(place: int, length: int) -> tuple[int, int]:
        return long_at if length == ROWS else offsets_at if length == 4 * (ROWS + 1) else (place, length)

    shared = with_buffers(body, share)
    assert len(shared) == len(body) < 1_000_000
    with pytest.raises(RequestError, match=r"buffers of 2\d,\d+,\d+ bytes in a body of") as refusal:
        arrow_codec.decode_request(shared)
    assert (refusal.value.field, refusal.value.status) == ("body", 400)


@pytest.mark.parametrize("length", [-1, -(2**63), 2**62])
def test_a_buffer_of_an_impossible_length_is_refused(length: int) -> None:
    body = with_buffers(stream({"product_id": IDS}), lambda place, _: (place, length))
    with pytest.raises(RequestError, match="buffers of"):
        arrow_codec.decode_request(body)


def test_keys_of_metadata_that_share_one_text_are_refused() -> None:
    pairs = {f"k{number}".encode(): b"v" for number in range(8)} | {b"long": b"w" * 5_000}
    body = bytearray(stream({"product_id": IDS}, pairs))
    schema = message_at(memoryview(body), 0, expected=SCHEMA)
    first, count = schema.header.vector(2)
    long = max(schema.header.tables(2), key=lambda pair: pair.vector(1)[1]).at
    for number in range(count):
        place = first + 4 * number
        struct.pack_into("<I", body, schema.metadata_start + place, long - place)
    with pytest.raises(RequestError, match="share their bytes"):
        arrow_codec.decode_request(bytes(body))


def test_metadata_of_a_message_is_refused_before_arrow_reads_it() -> None:
    sink = pa.BufferOutputStream()
    batch = pa.record_batch({"product_id": IDS})
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch, custom_metadata={"k": "v" * 100})
    with pytest.raises(RequestError, match="metadata of a single message"):
        arrow_codec.decode_request(sink.getvalue().to_pybytes())


def test_too_many_keys_rows_or_characters_are_refused_by_their_count() -> None:
    many = {f"k{number}".encode(): b"v" for number in range(17)}
    too_long = "é" * (MAX_ID_CHARACTERS + 1)
    rows = pa.array(range(MAX_CANDIDATES + 1))
    for columns, metadata, field, words in (
        ({"product_id": IDS}, many, "body", "17 keys"),
        ({"product_id": IDS, "n" * 2_049: IDS}, None, "body", "a name of 2,049 bytes"),
        ({"product_id": IDS, too_long: IDS}, None, "candidate_columns", "513 characters"),
        ({"product_id": rows}, None, "candidates", "10,001 ids"),
        ({"product_id": pa.array([too_long])}, None, "candidates", "513 characters"),
        ({"product_id": pa.array([1]), "c": pa.array([too_long])}, None, "candidate_columns.c", "513"),
    ):
        with pytest.raises(RequestError, match=words) as refusal:
            arrow_codec.decode_request(stream(columns, metadata))
        assert refusal.value.field == field
        assert refusal.value.status == (413 if columns["product_id"] is rows else 400)


def test_json_refuses_a_text_that_is_too_long_as_arrow_does() -> None:
    with pytest.raises(RequestError, match=r"candidate_columns\.c: a text of 513 characters"):
        ScoreRequest(user_id=1, query="q", candidates=[1], candidate_columns={"c": ["x" * 513]})


PLACES = st.sampled_from([-8, 0, 8, 64, 128, 2**31, 2**62])


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_its_buffers_announce_a_body_makes_no_more_than_it_weighs(data: st.DataObject) -> None:
    texts = pa.array(["some text"] * 20)
    body = stream({"product_id": pa.array(range(20)), "a": texts, "b": texts, "c": pa.array([0.5] * 20)})
    own = buffers_of(body)

    def change(place: int, length: int) -> tuple[int, int]:
        kind = data.draw(st.sampled_from(["own", "another", "odd"]))
        if kind == "another":
            return data.draw(st.sampled_from(own))
        return (place, length) if kind == "own" else (data.draw(PLACES), data.draw(PLACES))

    changed = with_buffers(body, change)
    try:
        batch, _ = arrow_codec._read_batch(changed)
    except RequestError:
        return
    assert batch.nbytes <= len(changed)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_metadata_ends_in_a_refusal_or_is_read_as_arrow_reads_it(data: st.DataObject) -> None:
    body = bytearray(stream({"product_id": pa.array([1, 2]), "c": pa.array(["a", "b"])}))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(body) - 4))
        number = data.draw(st.sampled_from([0, 1, 4, 255, 2**31 - 1, 2**32 - 1]) | st.integers(0, 2**16))
        struct.pack_into("<I", body, place, number)
    try:
        batch, _ = arrow_codec._read_batch(body)
    except RequestError:
        return
    assert len(batch) <= MAX_CANDIDATES
    assert batch.nbytes <= len(body)
