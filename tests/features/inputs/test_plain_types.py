"""Whatever type a file gives a column, DuckDB and Arrow read the same plain values."""

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.inputs.plain_types import common_type, plain_sql, plain_type, plain_values

NOON_NS = 1_714_564_800_123_456_789
NOON = datetime(2024, 5, 1, 12, 0, 0, 123_456, tzinfo=UTC)
US = pa.timestamp("us", tz="UTC")


def read_both_ways(path: Path, values: pa.Array) -> tuple[list[Any], list[Any]]:
    """What DuckDB and Arrow read of a file with these values, in plain types."""
    pq.write_table(pa.table({"x": values}), path)
    stored = pq.read_table(path).column("x").combine_chunks()
    plain = plain_type(stored.type)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'America/New_York'")
        sql = plain_sql("x", stored.type, plain)
        if pa.types.is_timestamp(plain):
            sql = f"epoch_us({sql})"
        by_duckdb = [row[0] for row in connection.execute(f"SELECT {sql} FROM '{path}'").fetchall()]
    by_arrow = plain_values(stored, plain)
    assert by_arrow.type == plain
    if pa.types.is_timestamp(plain):
        by_arrow = by_arrow.cast(pa.int64())
    return by_duckdb, by_arrow.to_pylist()


@pytest.mark.parametrize(
    ("values", "plain", "expected"),
    [
        (pa.array([1, None], pa.int8()), pa.int64(), [1, None]),
        (pa.array([2**32 - 1], pa.uint32()), pa.int64(), [2**32 - 1]),
        (pa.array([2**63], pa.uint64()), pa.uint64(), [2**63]),
        (pa.array([7, None], pa.int32()).dictionary_encode(), pa.int64(), [7, None]),
        (pa.array([0.1], pa.float32()), pa.float64(), [float(np.float32(0.1))]),
        (pa.array(np.array([1.5], np.float16)), pa.float64(), [1.5]),
        (pa.array([Decimal("0.07"), None], pa.decimal128(20, 2)), pa.float64(), [0.07, None]),
        (pa.array([Decimal("19.99")], pa.decimal256(50, 2)), pa.float64(), [19.99]),
        (pa.array(["é", None], pa.string_view()), pa.string(), ["é", None]),
        (pa.array(["é", None], pa.large_string()), pa.string(), ["é", None]),
        (pa.array(["é", None, "é"]).dictionary_encode(), pa.string(), ["é", None, "é"]),
        (pa.array([True, None]), pa.bool_(), [True, None]),
        (pa.array([date(2024, 5, 1)]), pa.date32(), [date(2024, 5, 1)]),
        (pa.array([NOON_NS, None], pa.timestamp("ns", tz="UTC")), US, [NOON_NS // 1000, None]),
        (pa.array([NOON_NS], pa.timestamp("ns", tz="Asia/Kolkata")), US, [NOON_NS // 1000]),
        (pa.array([NOON], pa.timestamp("us", tz="Asia/Kolkata")), US, [NOON_NS // 1000]),
        (pa.array([NOON_NS // 10**6], pa.timestamp("ms", tz="UTC")), US, [NOON_NS // 10**6 * 1000]),
        (pa.array([NOON_NS // 10**9], pa.timestamp("s", tz="UTC")), US, [NOON_NS // 10**9 * 10**6]),
        (pa.array([NOON_NS], pa.timestamp("ns")), pa.timestamp("us"), [NOON_NS // 1000]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_a_stored_column_has_one_plain_type_and_its_own_values(tmp_path, values, plain, expected):
    assert plain_type(values.type) == plain
    by_duckdb, by_arrow = read_both_ways(tmp_path / "file.parquet", values)
    assert by_duckdb == expected
    assert by_arrow == expected


@settings(max_examples=30, deadline=None)
@given(cents=st.lists(st.integers(-(10**17), 10**17), min_size=1, max_size=20))
def test_a_decimal_is_the_float_nearest_to_it(tmp_path_factory, cents):
    exact = [Decimal(value).scaleb(-2) for value in cents]
    path = tmp_path_factory.mktemp("decimals") / "file.parquet"
    by_duckdb, by_arrow = read_both_ways(path, pa.array(exact, pa.decimal128(20, 2)))
    assert by_duckdb == by_arrow == [float(value) for value in exact]


def test_types_of_several_files_meet_where_nothing_is_lost():
    assert common_type(pa.int64(), pa.int64()) == pa.int64()
    assert common_type(pa.float64(), pa.int64()) == pa.float64()
    assert common_type(pa.bool_(), pa.int64()) == pa.int64()
    assert common_type(pa.null(), pa.string()) == pa.string()
    assert common_type(pa.string(), pa.null()) == pa.string()
    for one, other in [
        (pa.int64(), pa.string()),
        (pa.int64(), pa.uint64()),
        (US, pa.timestamp("us")),
        (pa.bool_(), pa.float64()),
    ]:
        assert common_type(one, other) is None
        assert common_type(other, one) is None


def test_a_column_that_a_file_lacks_is_null_of_the_plain_type():
    assert plain_sql('a"b', None, pa.int64()) == "CAST(NULL AS BIGINT)"
    assert plain_sql("a", pa.null(), pa.list_(pa.int8())) == "NULL"
    assert plain_sql('a"b', pa.int64(), pa.int64()) == '"a""b"'
