"""A schema that is known is not read again, and tells nothing but what it told when it was checked."""

import struct
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.online.request import RequestError
from serving.wire import arrow_schemas
from serving.wire.arrow_limits import SCHEMA, Message, check_stream, message_at
from serving.wire.arrow_schemas import KnownSchemas

COLUMNS = [("product_id", pa.int64()), ("price", pa.float64())]
KEY = b"dashclip"


def message_of(value: bytes, columns: Any = COLUMNS, **metadata: bytes) -> bytes:
    pairs = {KEY: value} | {name.encode(): text for name, text in metadata.items()}
    return pa.schema(columns, metadata=pairs).serialize().to_pybytes()


def read(known: KnownSchemas, message: bytes) -> tuple[pa.Schema, bytes]:
    header = message_at(memoryview(message), 0, expected=SCHEMA).header
    return known.read(header, pa.py_buffer(message))


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows with each schema that is checked."""
    seen: list[object] = []
    check = arrow_schemas.check_schema
    monkeypatch.setattr(arrow_schemas, "check_schema", lambda header: (seen.append(header), check(header)))
    return seen


@given(values=st.lists(st.binary(max_size=60), min_size=1, max_size=12))
@settings(deadline=None, max_examples=60)
def test_each_message_gets_its_own_value_and_the_same_columns(values: list[bytes]) -> None:
    known = KnownSchemas(KEY)
    for value in values:
        schema, found = read(known, message_of(value))
        assert found == value
        assert [(field.name, field.type) for field in schema] == COLUMNS


def test_messages_that_differ_in_the_value_alone_are_checked_once(checks: list[object]) -> None:
    known = KnownSchemas(KEY)
    for value in (b"abcd", b"abcz", b"ab12"):
        assert read(known, message_of(value))[1] == value
    assert len(checks) == len(known) == 1


@pytest.mark.parametrize(
    "other",
    [
        message_of(b"abcd", [("product_id", pa.int64()), ("price", pa.float32())]),
        message_of(b"abcd", [("product_id", pa.int64()), ("prize", pa.float64())]),
        message_of(b"abcd", [("product_id", pa.int64())]),
        message_of(b"abcd", pandas=b"{}"),
    ],
)
def test_a_message_with_other_columns_or_keys_is_another(checks: list[object], other: bytes) -> None:
    known = KnownSchemas(KEY)
    read(known, message_of(b"abcd"))
    schema, value = read(known, other)
    assert schema == pa.ipc.read_schema(pa.py_buffer(other))
    assert value == b"abcd"
    assert len(checks) == 2


def test_without_the_key_there_is_no_value_and_nothing_is_kept() -> None:
    known = KnownSchemas(KEY)
    schema, value = read(known, pa.schema(COLUMNS).serialize().to_pybytes())
    assert (schema.names, value, len(known)) == (["product_id", "price"], b"", 0)


def test_what_is_refused_once_is_refused_again() -> None:
    known, nested = KnownSchemas(KEY), message_of(b"x", [("product_id", pa.list_(pa.int64()))])
    for _ in range(2):
        with pytest.raises(RequestError, match="a column of list"):
            read(known, nested)
    assert len(known) == 0


def test_schemas_are_kept_up_to_a_number_and_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_schemas, "_MOST", 3)
    known = KnownSchemas(KEY)
    for number in range(10):
        read(known, message_of(b"v", [(f"column_{number}", pa.int64())]))
        assert len(known) <= 3
    before = len(known)
    read(known, message_of(b"v", more=b"x" * arrow_schemas._MOST_BYTES))
    assert len(known) == before


def test_a_value_that_reaches_beyond_the_message_is_refused() -> None:
    message = bytearray(message_of(b"abcd" * 4))
    struct.pack_into("<I", message, message.index(b"abcd") - 4, 2**30)
    with pytest.raises(struct.error, match="cut off"):
        read(KnownSchemas(KEY), bytes(message))


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_a_damaged_message_says_a_known_schema_stays_what_was_checked(data: st.DataObject) -> None:
    known, sound = KnownSchemas(KEY), message_of(b"some value")
    schema, _ = read(known, sound)
    damaged = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(8, len(damaged) - 4))
        struct.pack_into("<I", damaged, place, data.draw(st.sampled_from([0, 1, 4, 255, 2**31, 2**32 - 1])))

    def reading(one: Message) -> tuple[pa.Schema, bytes]:
        return known.read(one.header, pa.py_buffer(damaged))

    try:
        (found, value), _ = check_stream(memoryview(damaged), reading)
    except (RequestError, pa.ArrowException, OSError, UnicodeDecodeError):
        return
    assert found == schema or found == pa.ipc.read_schema(pa.py_buffer(bytes(damaged)))
    assert len(value) <= len(damaged)
