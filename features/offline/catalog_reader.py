"""DuckDB reads the catalogue: products numbered in the order of their ids, and their columns in that order.

Shapes: P products.
"""

from pathlib import Path
from typing import Any, Self

import duckdb
import pyarrow as pa

from features.columns.transforms import LARGEST
from features.inputs.blanks import is_missing_sql
from features.inputs.plain_types import sql_name
from features.inputs.table_specs import TableName, is_text
from features.inputs.tables import InputTables
from features.offline.log_checks import bad_rows, too_large
from features.schema import DenseFeature


class CatalogReader:
    """The products table behind a DuckDB connection. Use as a context manager."""

    def __init__(self, tables: InputTables, *, threads: int, memory_limit: str, spill: Path) -> None:
        self._connection = duckdb.connect(
            ":memory:",
            config={
                "threads": threads,
                "memory_limit": memory_limit,
                "temp_directory": str(spill),
                "preserve_insertion_order": True,
            },
        )
        self.tables = tables
        self._threads = threads

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def number_products(self) -> None:
        """Number the products; needed before the other methods.

        Raises:
            LogError: a product_id is missing or comes twice.
        """
        self._connection.execute(
            "CREATE TABLE product_index AS SELECT "
            "CAST(row_number() OVER (ORDER BY product_id) - 1 AS INTEGER) AS code, product_id AS id "
            f"FROM {self._scan('products')}"
        )
        repeated, missing = self._one(
            "SELECT count(id) - count(DISTINCT id), "
            f"count(*) FILTER (WHERE {is_missing_sql('id')}) FROM product_index"
        )
        if repeated or missing:
            raise bad_rows(
                self.tables,
                "products",
                f"{repeated:,} rows repeat a product_id and {missing:,} have none",
            )

    def product_ids(self) -> pa.Array:
        """Distinct ids [P] in sorted order."""
        return self._arrow("SELECT id FROM product_index ORDER BY code").column("id").combine_chunks()

    def product_column(self, column: str, *, as_number: bool) -> pa.Array:
        """One column of the catalogue in `product_index` order."""
        value = f"CAST(c.{sql_name(column)} AS DOUBLE)" if as_number else f"c.{sql_name(column)}"
        if not as_number and not is_text(self.tables.schema("products").field(column).type):
            value = f"CAST(c.{sql_name(column)} AS BIGINT)"
        return (
            self._arrow(
                f"SELECT {value} AS value FROM {self._scan('products')} c "
                "JOIN product_index p ON c.product_id = p.id ORDER BY p.code"
            )
            .column("value")
            .combine_chunks()
        )

    def check_sizes(self, feature: DenseFeature) -> None:
        """Every number that a dense feature reads is one that its transform can take; NaN is missing.

        Raises:
            LogError: one is not; names file and row.
        """
        if feature.source == "timestamp":
            return
        value = f"CAST({sql_name(feature.column)} AS DOUBLE)"
        found = self._connection.execute(
            f"SELECT {value}, __file, file_row_number FROM "
            f"{self.tables.scan_sql(feature.source, positions=True)} "
            f"WHERE abs({value}) > {LARGEST[feature.transform]!r} AND NOT isnan({value}) LIMIT 1"
        ).fetchone()
        if found is not None:
            number, file, row = found
            raise too_large(feature, number, file=file, row=row)

    def _scan(self, table: TableName, *, positions: bool = False) -> str:
        """What every query reads a table from."""
        return self.tables.scan_sql(table, positions=positions)

    def _arrow(self, sql: str) -> pa.Table:
        return self._connection.sql(sql).to_arrow_table()

    def _one(self, sql: str) -> tuple[Any, ...]:
        (row,) = self._connection.execute(sql).fetchall()
        found: tuple[Any, ...] = row
        return found
