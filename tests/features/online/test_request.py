"""A request is either one shape after construction, or a refusal that says what to do."""

from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from annotated_types import Le

from features.online.request import (
    MAX_CANDIDATES,
    MAX_COLUMNS,
    MAX_HISTORY,
    MAX_QUERY_CHARACTERS,
    RequestError,
    ScoreRequest,
    what_came,
)
from features.schema import HistoryConfig


class Device(StrEnum):
    PHONE = "phone"


class Brand(str, Enum):  # noqa: UP042 - what people had before StrEnum
    OURS = "our brand"


class Store(IntEnum):
    CORNER = 3


def request(**fields: Any) -> ScoreRequest:
    return ScoreRequest(**{"user_id": 1, "query": "milk", "candidates": [1, 2], **fields})


@pytest.mark.parametrize(
    "candidates",
    [
        [5, 6],
        (5, 6),
        np.array([5, 6], np.int32),
        np.array([5, 6], np.uint8),
        pa.array([5, 6], pa.int16()),
        pa.chunked_array([[5], [6]]),
        pa.array([5, 6]).dictionary_encode(),
    ],
)
def test_integer_ids_become_one_array_of_int64_whatever_they_came_as(candidates: Any) -> None:
    assert request(candidates=candidates).candidates.equals(pa.array([5, 6], pa.int64()))


@pytest.mark.parametrize(
    "candidates",
    [["a", "b"], np.array(["a", "b"]), pa.array(["a", "b"], pa.large_string()), pa.array(["a", "b"])],
)
def test_text_ids_become_one_array_of_strings(candidates: Any) -> None:
    assert request(candidates=candidates).candidates.equals(pa.array(["a", "b"], pa.string()))


@pytest.mark.parametrize(
    ("fields", "field", "status"),
    [
        ({"candidates": []}, "candidates", 400),
        ({"candidates": [1, "a"]}, "candidates[1]", 400),
        ({"candidates": [1, None]}, "candidates[1]", 400),
        ({"candidates": [True]}, "candidates[0]", 400),
        ({"candidates": [1.0]}, "candidates[0]", 400),
        ({"candidates": [[1]]}, "candidates[0]", 400),
        ({"candidates": [2**63]}, "candidates", 400),
        ({"candidates": ["\ud800"]}, "candidates", 400),
        ({"candidates": ["a", "\u3000"]}, "candidates", 400),
        ({"candidates": pa.array(["", "a"])}, "candidates", 400),
        ({"history": ["a", " "]}, "history", 400),
        ({"candidates": ["x" * 513]}, "candidates", 400),
        ({"candidates": "abc"}, "candidates", 400),
        ({"candidates": {"a": 1}}, "candidates", 400),
        ({"candidates": np.zeros((2, 2), np.int64)}, "candidates", 400),
        ({"candidates": pa.array([1.5])}, "candidates", 400),
        ({"candidates": pa.array([1, None])}, "candidates", 400),
        ({"candidates": pa.array([2**63], pa.uint64())}, "candidates", 400),
        ({"candidates": list(range(MAX_CANDIDATES + 1))}, "candidates", 413),
        ({"user_id": 1.5}, "user_id", 400),
        ({"user_id": True}, "user_id", 400),
        ({"user_id": 2**63}, "user_id", 400),
        ({"user_id": "x" * 513}, "user_id", 400),
        ({"query": 3}, "query", 400),
        ({"query": "x" * (MAX_QUERY_CHARACTERS + 1)}, "query", 400),
        ({"query": "\udc00"}, "query", 400),
        ({"timestamp_us": -1}, "timestamp_us", 400),
        ({"timestamp_us": 1.5}, "timestamp_us", 400),
        ({"timestamp_us": 2**62}, "timestamp_us", 400),
        ({"history": list(range(MAX_HISTORY + 1))}, "history", 400),
        ({"history": [1.5]}, "history[0]", 400),
        ({"context": [1]}, "context", 400),
        ({"context": {"a": [1]}}, "context.a", 400),
        ({"context": {"a": float("nan")}}, "context.a", 400),
        ({"context": {"a": 2**64}}, "context.a", 400),
        ({"context": {str(i): 1 for i in range(MAX_COLUMNS + 1)}}, "context", 400),
        ({"candidate_columns": {"a": [1]}}, "candidate_columns.a", 400),
        ({"candidate_columns": {"a": 1}}, "candidate_columns.a", 400),
        ({"candidate_columns": {"a": "xy"}}, "candidate_columns.a", 400),
        ({"candidate_columns": {"a": np.array([1, np.inf])}}, "candidate_columns.a", 400),
        ({"candidate_columns": {"a": np.zeros((2, 1))}}, "candidate_columns.a", 400),
        ({"candidate_columns": {"a": pa.array([[1], [2]])}}, "candidate_columns.a", 400),
    ],
)
def test_what_cannot_be_scored_is_refused_by_its_field(
    fields: dict[str, Any], field: str, status: int
) -> None:
    with pytest.raises(RequestError) as refusal:
        request(**fields)
    assert (refusal.value.field, refusal.value.status) == (field, status)
    assert refusal.value.advice


def test_a_column_with_missing_values_is_a_list_and_one_without_an_array() -> None:
    columns = {
        "price": pa.array([1.5, None]),
        "position": pa.array([1, 2], pa.int16()),
        "brand": pa.array(["a", None]).dictionary_encode(),
        "shelf": (3, 4),
    }
    read = request(candidate_columns=columns).candidate_columns
    assert read["price"] == [1.5, None]
    assert read["brand"] == ["a", None]
    assert read["shelf"] == [3, 4]
    assert isinstance(read["position"], np.ndarray)
    assert read["position"].tolist() == [1, 2]


@pytest.mark.parametrize("as_array", [list, pa.array, lambda values: np.array(values, object)])
def test_decimals_are_the_floats_nearest_to_them_as_in_tables(as_array: Any) -> None:
    price = Decimal("1234567890123.4567")
    made = request(candidate_columns={"price": as_array([price, None])}, context={"budget": price})
    assert made.candidate_columns["price"] == [1234567890123.4567, None]
    assert made.context["budget"] == 1234567890123.4567
    whole = request(candidate_columns={"price": as_array([price, price])}).candidate_columns["price"]
    assert list(whole) == [1234567890123.4567] * 2
    with pytest.raises(RequestError, match=r"context.budget: nan came"):
        request(context={"budget": Decimal("sNaN")})


def test_scalars_of_numpy_and_members_of_enums_become_pythons_own() -> None:
    read = ScoreRequest(
        user_id=np.int32(7),
        query=Brand.OURS,
        candidates=[np.int64(5), 6],
        timestamp_us=np.int64(10**15),
        context={
            Device.PHONE: np.float32(0.5),
            "store": Store.CORNER,
            "b": np.bool_(True),
            "t": np.str_("x"),
        },
        candidate_columns={
            Brand.OURS: [np.float32(0.5), None],
            "device": (Device.PHONE, Brand.OURS),
            "store": np.array([Store.CORNER, None], object),
        },
        history=[np.uint8(4)],
    )
    assert (read.user_id, read.query, read.timestamp_us) == (7, "our brand", 10**15)
    assert read.candidates.equals(pa.array([5, 6]))
    assert read.history.equals(pa.array([4]))
    assert read.context == {"phone": 0.5, "store": 3, "b": True, "t": "x"}
    assert read.candidate_columns["our brand"] == [0.5, None]
    assert read.candidate_columns["device"] == ["phone", "our brand"]
    assert read.candidate_columns["store"] == [3, None]
    values = [read.user_id, read.query, read.timestamp_us, *read.context.values(), *read.context]
    values += [value for column in read.candidate_columns.values() for value in column]
    assert {type(value) for value in values} <= {int, str, float, bool, type(None)}
    assert request(candidates=[Device.PHONE, Brand.OURS]).candidates.equals(pa.array(["phone", "our brand"]))
    assert request(user_id=Brand.OURS).user_id == "our brand"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"user_id": np.float64(1.5)}, "user_id: number 1.5 came"),
        ({"user_id": np.bool_(True)}, "user_id: boolean True came"),
        ({"query": Store.CORNER}, "query: integer 3 came"),
        (
            {"timestamp_us": np.datetime64("2026-01-01", "ns")},
            "timestamp_us: a value of type datetime64 came",
        ),
        ({"candidates": [np.bool_(True)]}, r"candidates\[0\]: boolean True came"),
        ({"context": {"a": np.float32("nan")}}, "context.a: nan came"),
    ],
)
def test_what_numpy_holds_is_refused_as_pythons_own_would_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        request(**fields)


@pytest.mark.parametrize(
    "values",
    [
        [1.0, float("nan")],
        [None, np.float32("nan")],
        ["a", float("nan")],
        np.array([None, np.nan], object),
        pa.array([None, float("nan")]),
    ],
)
def test_a_nan_is_never_taken_for_a_missing_value(values: Any) -> None:
    """JSON would make a null of it, Arrow would not."""
    with pytest.raises(RequestError, match=r"candidate_columns\.a: nan for candidate 1 came; .*null where"):
        request(candidate_columns={"a": values})


def test_an_empty_history_is_not_the_snapshots() -> None:
    assert request().history is None
    assert len(request(history=[]).history) == 0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (1, "integer 1"),
        (True, "boolean True"),
        ("a", "string 'a'"),
        ("a" * 100, "a long string"),
        ([1, 2], "a list of 2"),
        ({}, "an object"),
    ],
)
def test_what_came_is_said_in_words(value: object, words: str) -> None:
    assert what_came(value) == words


def test_a_request_may_bring_as_many_purchases_as_any_model_reads():
    largest = next(kind.le for kind in HistoryConfig.model_fields["cap"].metadata if isinstance(kind, Le))
    sent = ScoreRequest(user_id=1, query=None, candidates=[1], history=list(range(largest)))
    assert len(sent.history) == HistoryConfig(cap=largest).cap
