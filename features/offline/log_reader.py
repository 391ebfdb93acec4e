"""DuckDB reads the logs: ids become consecutive numbers, impressions come in time order, in batches.

Ids are numbered in sorted order, so numbers depend on the set of ids only, never on the order of the files.
Shapes: K distinct ids, N impressions, P products.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.columns.kernels import NO_CLICK
from features.inputs.blanks import is_missing_sql, without_blanks, without_blanks_sql
from features.inputs.plain_types import sql_name
from features.inputs.table_specs import TableName, is_text
from features.inputs.tables import InputTables
from features.offline.catalog_reader import CatalogReader
from features.offline.log_checks import (
    REQUIRED_OF_IMPRESSIONS,
    LogError,
    check_columns,
    check_impressions,
    check_products_are_known,
    check_purchases,
)
from features.schema import DenseFeature, FeatureConfig, SparseFeature

#: Rows of an encoded batch, and of a row group of the feature set.
BATCH_ROWS = 65_536

_MAX_IDS = 2**31 - 1

#: Of a row without that id. An impression without a user is nobody's: strangers share no counters, no history
#: and no order in time, only the row 0 of a sparse feature.
NO_ID = -1

#: Sparse features on these columns share the numbering that counters and histories use.
KEY_OF_COLUMN = {"user_id": "user", "product_id": "product", "query": "query"}

#: Microseconds since 1970 of a moment that never comes.
AFTER_ALL = int(np.iinfo(np.int64).max)


@dataclass(frozen=True)
class IdIndex:
    """Distinct ids in sorted order; an id's number is its position."""

    ids: pa.Array
    impressions_K: npt.NDArray[np.int64]
    purchases_K: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if len(self.ids) > _MAX_IDS:
            example = self.ids[0].as_py()
            raise LogError(
                f"{len(self.ids):,} distinct ids of one kind, such as {example!r}, exceed the {_MAX_IDS:,} "
                "that numbers of 32 bits hold; merge rare ones, or leave the column out"
            )

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
    #: Whether the files hold the impressions by (timestamp, impression_id) already.
    in_order: bool = False


def own_sparse(config: FeatureConfig) -> tuple[SparseFeature, ...]:
    """Sparse features on impression columns that are not keys, one for each column."""
    features = {
        feature.column: feature
        for feature in config.sparse
        if feature.source == "impressions" and feature.column not in KEY_OF_COLUMN
    }
    return tuple(features.values())


def own_dense(config: FeatureConfig) -> tuple[DenseFeature, ...]:
    """Dense features on impression columns."""
    return tuple(feature for feature in config.dense if feature.source == "impressions")


class LogReader(CatalogReader):
    """The input tables behind one DuckDB connection, with ids numbered.

    Use as a context manager. `indexes` holds "user", "product", "query" and `id:<column>` for each further
    impression column that a sparse feature reads.
    """

    def __init__(
        self, tables: InputTables, config: FeatureConfig, *, threads: int, memory_limit: str, spill: Path
    ) -> None:
        super().__init__(tables, threads=threads, memory_limit=memory_limit, spill=spill)
        self.config = config
        self.tables = tables = self._without_blank_queries(tables)
        check_columns(tables, config)
        for dense in config.dense:
            self.check_sizes(dense)
        self.facts = self._facts()
        self.number_products()
        self._check_products_are_known()
        self.indexes = {"user": self._index_users(), "product": self._index_products()}
        self.indexes["query"] = self._index_column("query") if tables.has_queries else no_ids()
        for feature in own_sparse(config):
            self.indexes[f"id:{feature.column}"] = self._index_column(feature.column)

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
        for feature in own_dense(self.config):
            columns.append(
                f"CAST(i.{sql_name(feature.column)} AS DOUBLE) AS {sql_name('dense:' + feature.name)}"
            )
        for number, sparse in enumerate(own_sparse(self.config)):
            columns.append(f"coalesce(s{number}.code, {NO_ID}) AS {sql_name('id:' + sparse.column)}")
            joins.append(
                f"LEFT JOIN {_index_table(sparse.column)} s{number} "
                f"ON i.{sql_name(sparse.column)} = s{number}.id"
            )
        rows = f"SELECT {', '.join(columns)} FROM {self._scan('impressions')} i {' '.join(joins)}"
        if self.facts.in_order:
            yield from self._batches(rows, as_written=True)
        else:
            yield from self._batches(f"{rows} ORDER BY time_us, i.impression_id")

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

    def _without_blank_queries(self, tables: InputTables) -> InputTables:
        """The tables, as ones without queries if every query is blank; footers cannot say so."""
        if not tables.has_queries:
            return tables
        rows = f"FROM {tables.scan_sql('impressions')} WHERE NOT {is_missing_sql('query')}"
        found = self._connection.execute(f"SELECT 1 {rows} LIMIT 1").fetchone()
        return replace(tables, has_queries=found is not None)

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
        early = "epoch_us(click_timestamp) < epoch_us(timestamp)" if has_time else "false"
        nulls = ", ".join(
            f"count(*) FILTER (WHERE {is_missing_sql(name)})" for name in REQUIRED_OF_IMPRESSIONS
        )
        before = "lag(epoch_us(timestamp)) OVER () AS time_before, lag(impression_id) OVER () AS id_before"
        row = self._one(
            f"SELECT count(*), epoch_us(min(timestamp)), epoch_us(max(timestamp)), "
            "count(*) FILTER (WHERE clicked IS NULL OR CAST(clicked AS BIGINT) NOT IN (0, 1)), "
            f"count(*) FILTER (WHERE {early}), "
            f"count(*) FILTER (WHERE CAST(clicked AS BIGINT) = 1 AND {late}), "
            f"count(*) FILTER (WHERE {is_missing_sql('user_id')}), "
            "count(*) FILTER (WHERE epoch_us(timestamp) < time_before "
            f"OR (epoch_us(timestamp) = time_before AND impression_id < id_before)), {nulls} "
            f"FROM (SELECT *, {before} FROM {self._scan('impressions')})"
        )
        (
            count,
            first_us,
            last_us,
            not_a_label,
            early_clicks,
            clicks_without_time,
            anonymous,
            disorder,
            *missing,
        ) = row
        check_impressions(
            self.tables,
            missing=dict(zip(REQUIRED_OF_IMPRESSIONS, missing, strict=True)),
            not_a_label=not_a_label,
            clicked_before_shown=early_clicks,
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
            in_order=not disorder,
        )

    def _check_products_are_known(self) -> None:
        """Every product of the logs is in the catalogue; no purchase lacks a column."""
        logs: list[TableName] = ["impressions"]
        if self.tables.has_purchases:
            logs.append("purchases")
            (lost,) = self._one(
                f"SELECT count(*) FILTER (WHERE {is_missing_sql('product_id')} OR timestamp IS NULL) "
                f"FROM {self._scan('purchases')}"
            )
            check_purchases(self.tables, lost=lost)
        for table in logs:
            self._connection.execute(
                f"CREATE TABLE {_products_of(table)} AS "
                f"SELECT product_id AS id, count(*) AS n FROM {self._scan(table)} GROUP BY 1"
            )
            rows, example = self._one(
                f"SELECT sum(n), min(id) FROM {_products_of(table)} ANTI JOIN product_index USING (id)"
            )
            check_products_are_known(self.tables, table, rows=rows or 0, example=example)

    def _index_users(self) -> IdIndex:
        parts = [f"SELECT user_id AS id, 1 AS shown FROM {self._scan('impressions')}"]
        if self.tables.has_purchases:
            parts.append(f"SELECT user_id AS id, 0 AS shown FROM {self._scan('purchases')}")
        return self._index("user_index", " UNION ALL ".join(parts))

    def _index_products(self) -> IdIndex:
        ids = self.product_ids()
        shown = self._arrow(
            f"SELECT coalesce(s.n, 0) AS n FROM product_index p LEFT JOIN {_products_of('impressions')} s "
            "ON s.id = p.id ORDER BY p.code"
        )
        return IdIndex(ids, shown.column("n").to_numpy(), np.zeros(len(ids), dtype=np.int64))

    def _index_column(self, column: str) -> IdIndex:
        kind = self.tables.schema("impressions").field(column).type
        value = sql_name(column) if is_text(kind) else f"CAST({sql_name(column)} AS BIGINT)"
        return self._index(
            _index_table(column), f"SELECT {value} AS id, 1 AS shown FROM {self._scan('impressions')}"
        )

    def _index(self, name: str, rows_sql: str) -> IdIndex:
        # Blanks are left out after the grouping: then each id is looked at once, not each row.
        self._connection.execute(
            f"CREATE TABLE {name} AS SELECT "
            "CAST(row_number() OVER (ORDER BY id) - 1 AS INTEGER) AS code, id, shown, purchased "
            "FROM (SELECT id, sum(shown)::BIGINT AS shown, "
            f"(count(*) - sum(shown))::BIGINT AS purchased FROM ({rows_sql}) GROUP BY id) "
            f"WHERE NOT {is_missing_sql('id')}"
        )
        table = self._arrow(f"SELECT id, shown, purchased FROM {name} ORDER BY code")
        return IdIndex(
            table.column("id").combine_chunks(),
            table.column("shown").to_numpy(),
            table.column("purchased").to_numpy(),
        )

    def _batches(self, sql: str, *, as_written: bool = False) -> Iterator[pa.RecordBatch]:
        """The result in batches of exactly BATCH_ROWS, whatever the engine hands out.

        Args:
            as_written: the first table runs through the joins, however small it is, on one thread: both keep
                its order, and two threads do not.
        """
        waiting: list[pa.RecordBatch] = []
        rows = 0
        left_out = "join_order,build_side_probe_side" if as_written else ""
        self._connection.execute(f"SET disabled_optimizers = '{left_out}'")
        self._connection.execute(f"SET threads = {1 if as_written else self._threads}")
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


def encode_ids(values: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int32]]:
    """Distinct values in sorted order and each value's position among them, -1 for null and blank strings.

    `["b", null, "a", " "]` gives `["a", "b"]` and `[1, -1, 0, -1]`.
    """
    values = without_blanks(values)
    ids = values.drop_null().unique()
    ids = ids.take(pa.compute.sort_indices(ids))
    position = pa.compute.index_in(values, value_set=ids)
    return ids, position.fill_null(NO_ID).to_numpy(zero_copy_only=False).astype(np.int32)


def no_ids() -> IdIndex:
    """The index of a log without queries."""
    nothing = np.zeros(0, dtype=np.int64)
    return IdIndex(pa.array([], pa.string()), nothing, nothing)


def _products_of(table: TableName) -> str:
    """The table that counts the rows of each product in a log."""
    return sql_name(f"products of {table}")


def _index_table(column: str) -> str:
    """The table that numbers the ids of an impression column; no column can be named like the keys' own."""
    return sql_name(f"index of {column}")
