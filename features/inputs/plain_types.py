"""The one type in which every reader sees a column, whatever type its Parquet files carry.

Integers are int64, other numbers float64, texts string, moments microseconds in UTC; a dictionary is its
values. DuckDB (`plain_sql`) and Arrow (`plain_values`) convert to the same values: digits below the
microsecond are cut off, a decimal becomes the float nearest to it.
"""

import pyarrow as pa
import pyarrow.compute as pc

from features.inputs.table_specs import is_text

_US = "us"
_SQL_TYPES = {
    pa.int64(): "BIGINT",
    pa.uint64(): "UBIGINT",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
    pa.bool_(): "BOOLEAN",
    pa.date32(): "DATE",
    pa.timestamp(_US): "TIMESTAMP",
    pa.timestamp(_US, tz="UTC"): "TIMESTAMPTZ",
}


def plain_type(arrived: pa.DataType) -> pa.DataType:
    """The type that stands for all that carry the same values: `int32` gives `int64`, lists stay as they are.

    Only uint64 is no int64: it may hold more.
    """
    if pa.types.is_dictionary(arrived):
        return plain_type(arrived.value_type)
    if is_text(arrived):
        return pa.string()
    if pa.types.is_integer(arrived):
        return arrived if arrived == pa.uint64() else pa.int64()
    if pa.types.is_floating(arrived) or pa.types.is_decimal(arrived):
        return pa.float64()
    if pa.types.is_timestamp(arrived):
        return pa.timestamp(_US, tz="UTC" if arrived.tz is not None else None)
    return arrived


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The plain type that holds the values of two plain types, or None.

    `int64` and `float64` give `float64`; `bool` and `int64` give `int64`, since true is 1.
    """
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    for wide, narrow in ((pa.float64(), pa.int64()), (pa.int64(), pa.bool_())):
        if {one, other} == {wide, narrow}:
            return wide
    return None


def sql_name(column: str) -> str:
    """A quoted SQL identifier."""
    return '"' + column.replace('"', '""') + '"'


def plain_sql(column: str, arrived: pa.DataType | None, plain: pa.DataType) -> str:
    """The SQL expression for a column of a file as a plain type; null where the file lacks it (None)."""
    name, sql_type = sql_name(column), _SQL_TYPES.get(plain)
    if arrived is None or pa.types.is_null(arrived):
        return f"CAST(NULL AS {sql_type})" if sql_type else "NULL"
    if pa.types.is_timestamp(arrived) and arrived.unit == "ns":
        # A cast would round to the nearest microsecond, and so put an event after one that it came before.
        make = "make_timestamp" if arrived.tz is None else "make_timestamptz"
        return f"{make}(epoch_ns({name}) // 1000)"
    if arrived == plain or plain not in (pa.int64(), pa.float64()):
        return name  # the engine knows one text and one dictionary-free type, and moments in microseconds
    return f"CAST({name} AS {sql_type})"


def plain_values(values: pa.Array, plain: pa.DataType) -> pa.Array:
    """An Arrow array as a plain type."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if values.type == plain:
        return values
    if pa.types.is_decimal(values.type):
        values = values.cast(pa.string())  # Arrow's own cast to float is off in the last digit
    return pc.cast(values, options=pc.CastOptions(plain, allow_time_truncate=True))
