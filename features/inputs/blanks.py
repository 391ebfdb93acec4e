"""Which strings say nothing: the empty one and those of white space alone, U+3000 among it. They are missing.

One definition in three forms, Python's `str.isspace`, for single values, Arrow columns and SQL: offline and
online must agree on which id is missing.
"""

from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from features.inputs.table_specs import is_text

Value = TypeVar("Value")
Column = TypeVar("Column", pa.Array, pa.ChunkedArray)

#: The characters of which `str.isspace` is true, as a class of regular expressions.
_WHITE_SPACE = (
    r"[\t-\r\x{1c}-\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]"
)


def without_blank(value: Value) -> Value | None:
    """One value, None for a blank string: "", " " and "\\u3000" are blank, "0" and 0 are not."""
    return None if isinstance(value, str) and (not value or value.isspace()) else value


def without_blanks(values: Column) -> Column:
    """A column with nulls for blank strings: `["a", " "]` gives `["a", null]`. Other types stay."""
    if not is_text(values.type):
        return values
    if pa.types.is_string_view(values.type):  # Arrow has no functions for it
        values = values.cast(pa.string())
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(values)), 0)
    if not pc.any(blank).as_py():
        return values
    return pc.if_else(blank, pa.scalar(None, values.type), values)


def is_missing_sql(value: str) -> str:
    """A DuckDB condition: a value of any type is null or a blank string."""
    # The engine knows the type when it plans: of an integer column the null check alone remains. A regular
    # expression takes a fiftieth of the time of `trim` with these characters.
    text = f"typeof({value}) = 'VARCHAR' AND regexp_full_match({value}::VARCHAR, '{_WHITE_SPACE}*')"
    return f"({value} IS NULL OR ({text}))"


def without_blanks_sql(value: str) -> str:
    """A DuckDB expression: the value, or null for a blank string."""
    return f"CASE WHEN {is_missing_sql(value)} THEN NULL ELSE {value} END"
