"""Small, valid input tables for tests, written to a folder; each test breaks one thing of them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
NOW = datetime(2024, 6, 1, tzinfo=UTC)
UTC_US = pa.timestamp("us", tz="UTC")

SCHEMAS = {
    "products": pa.schema(
        [("product_id", pa.int64()), ("title", pa.string()), ("aisle", pa.string()), ("price", pa.float64())]
    ),
    "relevance": pa.schema(
        [("query", pa.string()), ("product_id", pa.int64()), ("grade", pa.int8()), ("source", pa.string())]
    ),
    "impressions": pa.schema(
        [
            ("impression_id", pa.int64()),
            ("timestamp", UTC_US),
            ("user_id", pa.string()),
            ("query", pa.string()),
            ("product_id", pa.int64()),
            ("clicked", pa.int8()),
            ("click_timestamp", UTC_US),
        ]
    ),
    "purchases": pa.schema(
        [
            ("timestamp", UTC_US),
            ("user_id", pa.string()),
            ("product_id", pa.int64()),
            ("purchase_id", pa.int64()),
        ]
    ),
}


def product(number: int, **other: Any) -> dict[str, Any]:
    return {
        "product_id": number,
        "title": f"product {number}",
        "aisle": "dairy",
        "price": 1.5,
        **other,
    }


def impression(number: int, **other: Any) -> dict[str, Any]:
    """Every second one is clicked, a minute after it was shown."""
    shown = NOON + timedelta(minutes=number)
    return {
        "impression_id": number,
        "timestamp": shown,
        "user_id": f"user {number % 3}",
        "query": "milk",
        "product_id": number % 4,
        "clicked": number % 2,
        "click_timestamp": shown + timedelta(minutes=1) if number % 2 else None,
        **other,
    }


def purchase(number: int, **other: Any) -> dict[str, Any]:
    return {
        "timestamp": NOON + timedelta(hours=number),
        "user_id": f"user {number % 3}",
        "product_id": number % 4,
        "purchase_id": number,
        **other,
    }


def grade(number: int, **other: Any) -> dict[str, Any]:
    return {
        "query": f"query {number}",
        "product_id": number % 4,
        "grade": number % 3,
        "source": "human",
        **other,
    }


def good_rows() -> dict[str, list[dict[str, Any]]]:
    return {
        "products": [product(i) for i in range(4)],
        "relevance": [grade(i) for i in range(6)],
        "impressions": [impression(i) for i in range(10)],
        "purchases": [purchase(i) for i in range(5)],
    }


def write_tables(folder: Path, rows: dict[str, list[dict[str, Any]]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in rows.items():
        pq.write_table(pa.Table.from_pylist(content, schema=SCHEMAS[name]), folder / f"{name}.parquet")
    return folder


def rewrite(folder: Path, table: str, column: str, values: pa.Array | None) -> Path:
    """Replace a column of a written table, or drop it (None)."""
    path = folder / f"{table}.parquet"
    content = pq.read_table(path)
    place = content.schema.get_field_index(column)
    content = content.remove_column(place)
    if values is not None:
        content = content.add_column(place, column, values)
    pq.write_table(content, path)
    return path
