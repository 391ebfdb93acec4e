"""DuckDB reads the logs: ids become consecutive numbers, impressions come in time order, in batches.

Ids are numbered in sorted order, so numbers depend on the set of ids only, never on the order of the files.
Shapes: K distinct ids, N impressions, P products.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.columns.kernels import NO_CLICK
from features.columns.transforms import LARGEST
from features.inputs.blanks import is_missing_sql, without_blanks, without_blanks_sql
from features.inputs.plain_types import sql_name
from features.inputs.table_specs import TableName, is_text
from features.inputs.tables import InputTables
from features.schema import DenseFeature, FeatureConfig, SparseFeature

#: Rows of an encoded batch, and of a row group of the feature set.
BATCH_ROWS = 65_536

#: Of a row without that id. An impression without a user is nobody's: strangers share no counters, no history
#: and no order in time, only the row 0 of a sparse feature.
NO_ID = -1

#: Sparse features on these columns share the numbering that counters and histories use.
KEY_OF_COLUMN = {"user_id": "user", "product_id": "product", "query": "query"}

#: Microseconds since 1970 of a moment that never comes.
AFTER_ALL = int(np.iinfo(np.int64).max)


class LogError(ValueError):
    """Rows that no feature can be made of; says how many, the first one, and what to do."""


@dataclass(frozen=True)
class IdIndex:
    """Distinct ids in sorted order; an id's number is its position."""

    ids: pa.Array
    impressions_K: npt.NDArray[np.int64]
    purchases_K: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class LogFacts:
    """What one pass over the impressions says."""

    impressions: int
    #: Impressions and purchases without a user.
    anonymous_impressions: int
    anonymous_purchases: int
    first_us: int
    last_us: int
    has_click_times: bool
    clicks_without_time: int


class LogReader:
    """The input tables behind one DuckDB connection, with ids numbered.

    Use as a context manager. `indexes` holds "user", "product", "query" and `id:<column>` for each further
    impression column that a sparse feature reads.
    """

    def __init__(
        self, tables: InputTables, config: FeatureConfig, *, threads: int, memory_limit: str, spill: Path
    ) -> None:
        self.config = config
        self._connection = duckdb.connect(
            ":memory:",
            config={
                "threads": threads,
                "memory_limit": memory_limit,
                "temp_directory": str(spill),
                "preserve_insertion_order": True,
            },
        )
        self.tables = tables = self._without_blank_queries(tables)
        _check_columns(tables, config)
        self._check_sizes()
        self.facts = self._facts()
        self._check_products()
        self.indexes = {"user": self._index_users(), "product": self._index_products()}
        self.indexes["query"] = self._index_column("query") if tables.has_queries else _no_ids()
        for feature in self.own_sparse:
            self.indexes[f"id:{feature.column}"] = self._index_column(feature.column)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    @property
    def own_sparse(self) -> tuple[SparseFeature, ...]:
        """Sparse features on impression columns that are not keys, one for each column."""
        features = {
            feature.column: feature
            for feature in self.config.sparse
            if feature.source == "impressions" and feature.column not in KEY_OF_COLUMN
        }
        return tuple(features.values())

    @property
    def own_dense(self) -> tuple[DenseFeature, ...]:
        """Dense features on impression columns."""
        return tuple(feature for feature in self.config.dense if feature.source == "impressions")

    def impressions(self) -> Iterator[pa.RecordBatch]:
        """Batches of BATCH_ROWS impressions (the last one shorter), by (timestamp, impression_id).

        Columns: impression_id, time_us int64, clicked int8 as logged, click_us int64 (see `_click_us`),
        user, product, query int32 (-1: none), then `dense:<name>` float64 (null or NaN: missing) and
        `id:<column>` int32 (-1: missing).
        """
        columns = [
            "i.impression_id",
            "epoch_us(i.timestamp) AS time_us",
            "CAST(i.clicked AS TINYINT) AS clicked",
            f"{self._click_us()} AS click_us",
            f"coalesce(u.code, {NO_ID}) AS user",
            "p.code AS product",
        ]
        joins = [
            "LEFT JOIN user_index u ON i.user_id = u.id",
            "JOIN product_index p ON i.product_id = p.id",
        ]
        if self.tables.has_queries:
            columns.append(f"coalesce(q.code, {NO_ID}) AS query")
            joins.append(f"LEFT JOIN {_index_table('query')} q ON i.query = q.id")
        else:
            columns.append(f"CAST({NO_ID} AS INTEGER) AS query")
        for feature in self.own_dense:
            columns.append(
                f"CAST(i.{sql_name(feature.column)} AS DOUBLE) AS {sql_name('dense:' + feature.name)}"
            )
        for number, sparse in enumerate(self.own_sparse):
            columns.append(f"coalesce(s{number}.code, {NO_ID}) AS {sql_name('id:' + sparse.column)}")
            joins.append(
                f"LEFT JOIN {_index_table(sparse.column)} s{number} "
                f"ON i.{sql_name(sparse.column)} = s{number}.id"
            )
        yield from self._batches(
            f"SELECT {', '.join(columns)} FROM {self._scan('impressions')} i {' '.join(joins)} "
            "ORDER BY time_us, i.impression_id"
        )

    def impression_times(self, rank_U: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """When each user saw impression number `rank_U` [U], from 0 by time and id; AFTER_ALL without one."""
        time_us_U = np.full(len(rank_U), AFTER_ALL, dtype=np.int64)
        self._connection.register(
            "wanted", pa.table({"code": np.arange(len(rank_U), dtype=np.int32), "rank": rank_U})
        )
        ranked = (
            f"SELECT i.user_id, epoch_us(i.timestamp) AS time_us, row_number() OVER "
            f"(PARTITION BY i.user_id ORDER BY epoch_us(i.timestamp), i.impression_id) - 1 AS rank "
            f"FROM {self._scan('impressions')} i"
        )
        found = self._arrow(
            f"SELECT w.code, r.time_us FROM ({ranked}) r JOIN user_index u ON r.user_id = u.id "
            "JOIN wanted w ON w.code = u.code AND w.rank = r.rank"
        )
        self._connection.unregister("wanted")
        time_us_U[found.column("code").to_numpy()] = found.column("time_us").to_numpy()
        return time_us_U

    def purchases(self) -> Iterator[pa.RecordBatch]:
        """Batches of user, product int32 and time_us int64, by (user, time, purchase_id or file order)."""
        if not self.tables.has_purchases:
            return
        has_ids = "purchase_id" in self.tables.columns("purchases")
        tie = without_blanks_sql("b.purchase_id") if has_ids else "b.__file, b.file_row_number"
        yield from self._batches(
            f"SELECT u.code AS user, p.code AS product, epoch_us(b.timestamp) AS time_us "
            f"FROM {self._scan('purchases', positions=True)} b "
            "JOIN user_index u ON b.user_id = u.id JOIN product_index p ON b.product_id = p.id "
            f"ORDER BY user, time_us, {tie}, product"
        )

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

    def _without_blank_queries(self, tables: InputTables) -> InputTables:
        """The tables, as ones without queries if every query is blank; footers cannot say so."""
        if not tables.has_queries:
            return tables
        rows = f"FROM {tables.scan_sql('impressions')} WHERE NOT {is_missing_sql('query')}"
        found = self._connection.execute(f"SELECT 1 {rows} LIMIT 1").fetchone()
        return replace(tables, has_queries=found is not None)

    def _check_sizes(self) -> None:
        """Every number that a dense feature reads is one that its transform can take; NaN is missing."""
        for feature in self.config.dense:
            if feature.source == "timestamp":
                continue
            value = f"CAST({sql_name(feature.column)} AS DOUBLE)"
            found = self._connection.execute(
                f"SELECT {value}, __file, file_row_number FROM "
                f"{self.tables.scan_sql(feature.source, positions=True)} "
                f"WHERE abs({value}) > {LARGEST[feature.transform]!r} AND NOT isnan({value}) LIMIT 1"
            ).fetchone()
            if found is None:
                continue
            number, file, row = found
            infinite = math.isinf(number)
            raise LogError(
                f"{file} row {row}, dense feature {feature.name!r}: column {feature.column!r} of "
                f"{feature.source} holds "
                + (
                    f"an infinite value ({number:g}); "
                    if infinite
                    else f"{number:g}, too large for transform = 'standard' (at most "
                    f"{LARGEST[feature.transform]:.1e}); "
                )
                + f"correct it or write null{'' if infinite else ', or use the transform log'}"
            )

    def _scan(self, table: TableName, *, positions: bool = False) -> str:
        """What every query reads a table from."""
        return self.tables.scan_sql(table, positions=positions)

    def _click_us(self) -> str:
        """SQL of when impression `i` was clicked; NO_CLICK without a click in its attribution window."""
        shown = clicked = "epoch_us(i.timestamp)"
        if self.facts.has_click_times:
            clicked = "epoch_us(coalesce(i.click_timestamp, i.timestamp))"
        counts = f"{clicked} - {shown} < {self.config.labels.attribution_us}"
        return f"if(CAST(i.clicked AS TINYINT) = 1 AND {counts}, {clicked}, {NO_CLICK})"

    def _facts(self) -> LogFacts:
        columns = self.tables.columns("impressions")
        has_time = "click_timestamp" in columns
        late = "click_timestamp IS NULL" if has_time else "true"
        required = ("impression_id", "timestamp", "product_id")
        nulls = ", ".join(f"count(*) FILTER (WHERE {is_missing_sql(name)})" for name in required)
        row = self._one(
            f"SELECT count(*), epoch_us(min(timestamp)), epoch_us(max(timestamp)), "
            "count(*) FILTER (WHERE clicked IS NULL OR CAST(clicked AS BIGINT) NOT IN (0, 1)), "
            f"count(*) FILTER (WHERE CAST(clicked AS BIGINT) = 1 AND {late}), "
            f"count(*) FILTER (WHERE {is_missing_sql('user_id')}), {nulls} "
            f"FROM {self._scan('impressions')}"
        )
        count, first_us, last_us, not_a_label, clicks_without_time, anonymous, *missing = row
        for name, lost in zip(required, missing, strict=True):
            if lost:
                raise self._bad_rows("impressions", f"{lost:,} rows have no {name}")
        if not_a_label:
            raise self._bad_rows("impressions", f"{not_a_label:,} rows have `clicked` other than 0 and 1")
        if count >= 2**31:
            raise LogError(
                f"{count:,} impressions exceed the {2**31 - 1:,} that row numbers hold; cut the log"
            )
        bought = 0
        if self.tables.has_purchases:
            (bought,) = self._one(
                f"SELECT count(*) FROM {self._scan('purchases')} WHERE {is_missing_sql('user_id')}"
            )
        return LogFacts(
            count,
            anonymous_impressions=anonymous,
            anonymous_purchases=bought,
            first_us=first_us,
            last_us=last_us,
            has_click_times=has_time,
            clicks_without_time=clicks_without_time,
        )

    def _check_products(self) -> None:
        """Every product of the logs is in the catalogue, once; no purchase lacks a column."""
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
            raise self._bad_rows(
                "products", f"{repeated:,} rows repeat a product_id and {missing:,} have none"
            )
        logs: list[TableName] = ["impressions"]
        if self.tables.has_purchases:
            logs.append("purchases")
            lost = self._one(
                f"SELECT count(*) FILTER (WHERE {is_missing_sql('product_id')} OR timestamp IS NULL) "
                f"FROM {self._scan('purchases')}"
            )[0]
            if lost:
                raise self._bad_rows("purchases", f"{lost:,} rows lack a product_id or timestamp")
        for table in logs:
            unknown = self._one(
                f"SELECT sum(n), min(id) FROM (SELECT product_id AS id, count(*) AS n "
                f"FROM {self._scan(table)} GROUP BY 1) ANTI JOIN product_index USING (id)"
            )
            if unknown[0]:
                raise self._bad_rows(
                    table, f"{unknown[0]:,} rows name a product that products lacks, such as {unknown[1]!r}"
                )

    def _bad_rows(self, table: TableName, problem: str) -> LogError:
        return LogError(
            f"{self.tables.path_glob(table)}: {problem}; "
            f"run `dashclip validate {self.tables.root} --out CHECKED --write-clean` and build from "
            "CHECKED/clean"
        )

    def _index_users(self) -> IdIndex:
        known = f"WHERE NOT {is_missing_sql('user_id')}"
        parts = [f"SELECT user_id AS id, 1 AS shown FROM {self._scan('impressions')} {known}"]
        if self.tables.has_purchases:
            parts.append(f"SELECT user_id AS id, 0 AS shown FROM {self._scan('purchases')} {known}")
        return self._index("user_index", " UNION ALL ".join(parts))

    def _index_products(self) -> IdIndex:
        ids = self._arrow("SELECT id FROM product_index ORDER BY code").column("id").combine_chunks()
        shown = self._arrow(
            f"SELECT count(i.product_id) AS n FROM product_index p LEFT JOIN "
            f"{self._scan('impressions')} i ON i.product_id = p.id GROUP BY p.code ORDER BY p.code"
        )
        return IdIndex(ids, shown.column("n").to_numpy(), np.zeros(len(ids), dtype=np.int64))

    def _index_column(self, column: str) -> IdIndex:
        kind = self.tables.schema("impressions").field(column).type
        value = sql_name(column) if is_text(kind) else f"CAST({sql_name(column)} AS BIGINT)"
        return self._index(
            _index_table(column),
            f"SELECT {value} AS id, 1 AS shown FROM {self._scan('impressions')} "
            f"WHERE NOT {is_missing_sql(sql_name(column))}",
        )

    def _index(self, name: str, rows_sql: str) -> IdIndex:
        self._connection.execute(
            f"CREATE TABLE {name} AS SELECT "
            "CAST(row_number() OVER (ORDER BY id) - 1 AS INTEGER) AS code, id, shown, purchased "
            "FROM (SELECT id, sum(shown)::BIGINT AS shown, "
            f"(count(*) - sum(shown))::BIGINT AS purchased FROM ({rows_sql}) GROUP BY id)"
        )
        table = self._arrow(f"SELECT id, shown, purchased FROM {name} ORDER BY code")
        return IdIndex(
            table.column("id").combine_chunks(),
            table.column("shown").to_numpy(),
            table.column("purchased").to_numpy(),
        )

    def _batches(self, sql: str) -> Iterator[pa.RecordBatch]:
        """The result in batches of exactly BATCH_ROWS, whatever the engine hands out."""
        waiting: list[pa.RecordBatch] = []
        rows = 0
        for batch in self._connection.sql(sql).to_arrow_reader(BATCH_ROWS):
            waiting.append(batch)
            rows += len(batch)
            while rows >= BATCH_ROWS:
                whole = pa.Table.from_batches(waiting).combine_chunks().to_batches()[0]
                yield whole.slice(0, BATCH_ROWS)
                waiting = [whole.slice(BATCH_ROWS)]
                rows -= BATCH_ROWS
        if rows:
            yield pa.Table.from_batches(waiting).combine_chunks().to_batches()[0]

    def _arrow(self, sql: str) -> pa.Table:
        return self._connection.sql(sql).to_arrow_table()

    def _one(self, sql: str) -> tuple[Any, ...]:
        row = self._connection.execute(sql).fetchone()
        assert row is not None
        return row


def encode_ids(values: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int32]]:
    """Distinct values in sorted order and each value's position among them, -1 for null and blank strings.

    `["b", null, "a", " "]` gives `["a", "b"]` and `[1, -1, 0, -1]`.
    """
    values = without_blanks(values)
    ids = values.drop_null().unique()
    ids = ids.take(pa.compute.sort_indices(ids))
    position = pa.compute.index_in(values, value_set=ids)
    return ids, position.fill_null(NO_ID).to_numpy(zero_copy_only=False).astype(np.int32)


def _check_columns(tables: InputTables, config: FeatureConfig) -> None:
    """Columns that features read exist and can be read as asked; counters have their keys."""
    for feature in config.features:
        if feature.source == "timestamp":
            continue
        table: TableName = feature.source
        dense = isinstance(feature, DenseFeature)
        wanted_by = f"{'dense' if dense else 'sparse'} feature {feature.name!r}"
        tables.require_columns(table, (feature.column,), wanted_by=wanted_by)
        kind = tables.schema(table).field(feature.column).type
        number = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
        if dense and not (number or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
            raise LogError(
                f"{wanted_by} needs numbers, but column {feature.column!r} of {table} is {kind}; "
                "make it a sparse feature or cast the column"
            )
        if not dense and not (number or is_text(kind)):
            raise LogError(
                f"{wanted_by} needs integer or string ids, but column {feature.column!r} of {table} is "
                f"{kind}; make it a dense feature or cast the column"
            )
    keys = config.counters.keys if config.counters else ()
    asks = [key for key in keys if key.startswith("query")]
    if asks and not tables.has_queries:
        left = [key for key in keys if key not in asks]
        raise LogError(
            f"counters.keys asks for {asks}, but the impressions have no queries; set counters.keys = {left}"
        )


def _no_ids() -> IdIndex:
    nothing = np.zeros(0, dtype=np.int64)
    return IdIndex(pa.array([], pa.string()), nothing, nothing)


def _index_table(column: str) -> str:
    """The table that numbers the ids of an impression column; no column can be named like the keys' own."""
    return sql_name(f"index of {column}")
