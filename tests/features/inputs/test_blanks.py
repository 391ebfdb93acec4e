"""The three forms of "blank" agree on every character."""

import duckdb
import pyarrow as pa
import pytest

from features.inputs.blanks import is_missing_sql, without_blank, without_blanks, without_blanks_sql

#: Every character that a string can hold.
CHARACTERS = [chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000]
TEXTS = ["", " ", "\u3000", "\t\r\n", " \u3000\xa0", "0", " a ", "\u200b", None]


def in_sql(expression: str, values: pa.Array) -> list:
    column = pa.table({"value": values})
    with duckdb.connect() as connection:
        connection.register("given", column)
        return [row[0] for row in connection.execute(f"SELECT {expression} FROM given").fetchall()]


def test_sql_and_arrow_call_those_characters_blank_that_python_does():
    expected = [without_blank(character) is None for character in CHARACTERS]
    assert sum(expected) == 29
    values = pa.array(CHARACTERS)
    assert without_blanks(values).is_null().to_pylist() == expected
    assert in_sql(is_missing_sql("value"), values) == expected


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_blank_texts_become_null_and_others_stay_as_they_are(kind):
    expected = [None] * 5 + ["0", " a ", "\u200b", None]
    values = pa.array(TEXTS, kind)
    assert without_blanks(values).to_pylist() == expected
    assert without_blanks(pa.chunked_array([values, values])).to_pylist() == expected * 2
    assert in_sql(without_blanks_sql("value"), values.cast(pa.string())) == expected
    assert [without_blank(text) for text in TEXTS] == expected


def test_numbers_are_no_blanks():
    assert [without_blank(value) for value in (0, 0.0, False)] == [0, 0.0, False]


@pytest.mark.parametrize("values", [pa.array([0, None]), pa.array([0.0, None]), pa.nulls(2)])
def test_of_other_types_only_nulls_are_missing(values):
    assert without_blanks(values) is values
    expected = [value is None for value in values.to_pylist()]
    assert in_sql(is_missing_sql("value"), values) == expected
    assert in_sql(without_blanks_sql("value"), values) == values.to_pylist()
