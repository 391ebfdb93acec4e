"""The columns of the four input tables: what each means and which Arrow types may carry it.

Types that lose information are refused rather than cast: an id beyond int64, a time without a zone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

TableName = Literal["products", "relevance", "impressions", "purchases"]
Kind = Literal["id", "text", "time", "whole", "flag", "number"]


@dataclass(frozen=True)
class ColumnSpec:
    """One column of an input table."""

    name: str
    kind: Kind
    meaning: str
    required: bool = True


@dataclass(frozen=True)
class TableSpec:
    """One input table; `without` says what a data set that lacks it goes without (None: it may not)."""

    name: TableName
    columns: tuple[ColumnSpec, ...]
    without: str | None = None

    def column(self, name: str) -> ColumnSpec | None:
        """The column of that name, or None for a further attribute that this page does not declare."""
        return next((column for column in self.columns if column.name == name), None)


TABLES: dict[TableName, TableSpec] = {
    "products": TableSpec(
        "products",
        (
            ColumnSpec("product_id", "id", "unique"),
            ColumnSpec("title", "text", "what a shopper reads"),
            ColumnSpec("aisle", "text", "category, coarse"),
            ColumnSpec("image", "text", "path relative to the folder, or null", required=False),
            ColumnSpec("price", "number", "finite and not negative", required=False),
            ColumnSpec("brand", "text", "maker", required=False),
            ColumnSpec("description", "text", "longer text", required=False),
        ),
    ),
    "relevance": TableSpec(
        "relevance",
        (
            ColumnSpec("query", "text", "what was searched"),
            ColumnSpec("product_id", "id", "a product of the catalogue"),
            ColumnSpec("grade", "whole", "0 irrelevant, 1 moderate, 2 high"),
            ColumnSpec("source", "text", "who graded: human, llm for any model, or a word of your own"),
            ColumnSpec(
                "intent",
                "text",
                "what the query asks for; queries of one intent are held out together",
                required=False,
            ),
            ColumnSpec("p_ir", "number", "a model's probability of irrelevant", required=False),
            ColumnSpec("p_mr", "number", "a model's probability of moderate", required=False),
            ColumnSpec("p_hr", "number", "a model's probability of high", required=False),
            ColumnSpec("grader", "text", "which model graded the pair", required=False),
            ColumnSpec("prompt_sha", "text", "SHA-256 of the prompt it was asked with", required=False),
        ),
        without="encoders cannot be aligned to queries",
    ),
    "impressions": TableSpec(
        "impressions",
        (
            ColumnSpec("impression_id", "id", "unique"),
            ColumnSpec("timestamp", "time", "when it was shown"),
            ColumnSpec("user_id", "id", "who saw it, null where that is not known"),
            ColumnSpec("query", "text", "what was searched; absent or null without search", required=False),
            ColumnSpec("product_id", "id", "a product of the catalogue"),
            ColumnSpec("clicked", "flag", "0 or 1"),
            ColumnSpec("click_timestamp", "time", "when it was clicked, null otherwise", required=False),
            ColumnSpec("price", "number", "finite and not negative", required=False),
        ),
        without="encoders can be trained, but there is nothing to train a ranker on",
    ),
    "purchases": TableSpec(
        "purchases",
        (
            ColumnSpec("timestamp", "time", "when it was bought"),
            ColumnSpec("user_id", "id", "who bought it, null where that is not known"),
            ColumnSpec("product_id", "id", "a product of the catalogue"),
            ColumnSpec("purchase_id", "id", "unique, and breaks ties in time", required=False),
            ColumnSpec("quantity", "number", "how many", required=False),
        ),
        without="every user's purchase history is empty",
    ),
}


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type is one of the string layouts."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_whole(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) and kind != pa.uint64()


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


_ACCEPTS: dict[Kind, Callable[[pa.DataType], bool]] = {
    "id": lambda kind: _is_whole(kind) or is_text(kind),
    "text": is_text,
    "time": lambda kind: pa.types.is_timestamp(kind) and kind.tz is not None,
    "whole": _is_whole,
    "flag": lambda kind: _is_whole(kind) or pa.types.is_boolean(kind),
    "number": _is_number,
}

_EXPECTS: dict[Kind, str] = {
    "id": "int64 or string",
    "text": "string",
    "time": "a timestamp with a time zone",
    "whole": "an integer, such as int8",
    "flag": "an integer (int8) or boolean",
    "number": "a number, such as float32",
}


def accepts(column: ColumnSpec, arrived: pa.DataType) -> bool:
    """Whether a column may arrive with that type. `clicked` as int8 or bool: yes; as double: no."""
    return _ACCEPTS[column.kind](arrived)


def type_advice(column: ColumnSpec, arrived: pa.DataType) -> str:
    """What is wrong with a type that `accepts` refuses, and what to write instead."""
    if column.kind == "time" and pa.types.is_timestamp(arrived):
        return (
            f"{arrived} has no time zone, so the moment is ambiguous; localise it and write it as UTC "
            f"(pandas: frame[{column.name!r}].dt.tz_localize('UTC'))"
        )
    if column.kind == "id" and (arrived == pa.uint64() or pa.types.is_decimal(arrived)):
        return f"{arrived} can hold ids beyond int64; cast it to int64 if every id fits, else to string"
    if column.kind == "id" and pa.types.is_floating(arrived):
        return f"{arrived} cannot tell large ids apart; cast it to int64 (pandas: .astype('Int64')) or string"
    return f"expected {_EXPECTS[column.kind]} but found {arrived}; cast it before writing the file"
