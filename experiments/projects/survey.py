"""What is in a data folder, as far as a first project depends on it. Reads every table once, by DuckDB."""

from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from features.columns.clock import DAY_US
from features.inputs.blanks import is_missing_sql, without_blanks_sql
from features.inputs.images import decode_image
from features.inputs.plain_types import sql_name
from features.inputs.table_specs import TABLES, TableName, is_text
from features.inputs.tables import InputError, InputTables

#: Distinct values are counted in tables of so many rows, and estimated in larger ones.
EXACT_ROWS = 5_000_000
#: Images that are opened to see whether there are any.
IMAGES_TRIED = 50


@dataclass(frozen=True)
class ColumnFacts:
    """One column of a table.

    Attributes:
        kind: "id" for text, whole numbers and flags, "number" for others, "other" for what no feature reads.
        arrow: its plain Arrow type.
        distinct: an estimate within a few percent in tables beyond EXACT_ROWS; 0 for lists and the like.
        low, high: least and greatest value of a number or a moment, as text; None of others.
    """

    table: TableName
    name: str
    kind: str
    arrow: str
    distinct: int
    filled: int
    rows: int
    low: str | None = None
    high: str | None = None


@dataclass(frozen=True)
class Survey:
    """Counts of one data folder; zero where there is nothing of a kind.

    Attributes:
        images: products whose image is named; `readable_images` of `images_tried` could be opened.
        click_days: impressions and clicks of each UTC day, first to last, days without impressions too.
        anonymous: impressions without a user.
        graded_queries: distinct queries of the relevance table.
        sources: pairs by whose grade it is.
        truth: whether the folder has a simulated truth beside its tables.
    """

    data: Path
    columns: tuple[ColumnFacts, ...]
    products: int
    aisles: int
    images: int
    images_tried: int
    readable_images: int
    impressions: int
    users: int
    anonymous: int
    queries: int
    click_days: tuple[tuple[int, int], ...]
    first_day: str
    last_day: str
    purchases: int
    buyers: int
    graded_pairs: int
    graded_queries: int
    sources: dict[str, int]
    truth: bool

    @property
    def has_images(self) -> bool:
        """Whether encoders can be trained on images: at least half of those tried can be read."""
        return self.images_tried > 0 and 2 * self.readable_images >= self.images_tried

    @property
    def clicks(self) -> int:
        """Clicked impressions."""
        return sum(clicks for _, clicks in self.click_days)

    @property
    def days(self) -> int:
        """UTC days from the first impression to the last, both included."""
        return len(self.click_days)

    def column(self, table: TableName, name: str) -> ColumnFacts | None:
        """That column, if it is there."""
        return next((c for c in self.columns if (c.table, c.name) == (table, name)), None)


def survey(data: Path) -> Survey:
    """Count what `data` holds.

    Raises:
        InputError: the tables cannot be used; see `InputTables.open`.
    """
    tables = InputTables.open(data)
    with duckdb.connect() as connection:
        return _survey(tables, connection)


def _survey(tables: InputTables, connection: duckdb.DuckDBPyConnection) -> Survey:
    def one(sql: str) -> tuple[int, ...]:
        row = connection.execute(sql).fetchone()
        assert row is not None
        return row

    def scan(name: TableName) -> str:
        return tables.scan_sql(name)

    columns = [found for name in TABLES if tables.has(name) for found in _columns(tables, name, connection)]
    (aisles,) = one(f"SELECT count(DISTINCT aisle) FROM {scan('products')}")
    named, tried, readable = _images(tables, connection)
    shown, users, anonymous, queries = 0, 0, 0, 0
    click_days: tuple[tuple[int, int], ...] = ()
    first_day = last_day = ""
    if tables.has("impressions"):
        shown = tables.rows("impressions")
        query = "count(DISTINCT query)" if tables.has_queries else "0"
        users, anonymous, queries = one(
            f"SELECT count(DISTINCT {without_blanks_sql('user_id')}), "
            f"count(*) FILTER (WHERE {is_missing_sql('user_id')}), {query} FROM {scan('impressions')}"
        )
        found = connection.execute(
            f"SELECT epoch_us(timestamp) // {DAY_US} AS day, count(*), "
            f"count(*) FILTER (WHERE CAST(clicked AS BIGINT) = 1) FROM {scan('impressions')} "
            "WHERE timestamp IS NOT NULL GROUP BY day ORDER BY day"
        ).fetchall()
        of_day = {int(day): (int(count), int(clicks)) for day, count, clicks in found}
        if not of_day:
            raise InputError(f"no impression of {tables.root} has a timestamp; fill that column")
        first, last = min(of_day), max(of_day)
        click_days = tuple(of_day.get(day, (0, 0)) for day in range(first, last + 1))
        first_day, last_day = (str(np.datetime64(day, "D")) for day in (first, last))
    purchases, buyers = 0, 0
    if tables.has_purchases:
        purchases = tables.rows("purchases")
        (buyers,) = one(f"SELECT count(DISTINCT user_id) FROM {scan('purchases')}")
    pairs, graded_queries, sources = 0, 0, {}
    if tables.has("relevance"):
        pairs, graded_queries = one(f"SELECT count(*), count(DISTINCT query) FROM {scan('relevance')}")
        sources = dict(
            connection.execute(
                f"SELECT source, count(*) FROM {scan('relevance')} GROUP BY 1 ORDER BY 1"
            ).fetchall()
        )
    return Survey(
        data=tables.root,
        columns=tuple(columns),
        products=tables.rows("products"),
        aisles=aisles,
        images=named,
        images_tried=tried,
        readable_images=readable,
        impressions=shown,
        users=users,
        anonymous=anonymous,
        queries=queries,
        click_days=click_days,
        first_day=first_day,
        last_day=last_day,
        purchases=purchases,
        buyers=buyers,
        graded_pairs=pairs,
        graded_queries=graded_queries,
        sources=sources,
        truth=(tables.root / "truth").is_dir(),
    )


def _columns(
    tables: InputTables, name: TableName, connection: duckdb.DuckDBPyConnection
) -> list[ColumnFacts]:
    fields = list(tables.schema(name))
    exact = tables.rows(name) <= EXACT_ROWS
    wanted = [part for field in fields for part in _measures(field, exact=exact)]
    row = connection.execute(f"SELECT {', '.join(wanted)} FROM {tables.scan_sql(name)}").fetchone()
    assert row is not None
    found = []
    for place, field in enumerate(fields):
        filled, distinct, low, high = row[4 * place : 4 * place + 4]
        found.append(
            ColumnFacts(
                table=name,
                name=field.name,
                kind=_kind(field.type),
                arrow=str(field.type),
                distinct=int(distinct),
                filled=int(filled),
                rows=tables.rows(name),
                low=low,
                high=high,
            )
        )
    return found


def _measures(field: pa.Field, *, exact: bool) -> tuple[str, str, str, str]:
    """SQL of filled rows, distinct values, least and greatest value of a column."""
    name = sql_name(field.name)
    if pa.types.is_nested(field.type):
        return f"count({name})", "0", "NULL", "NULL"
    ends = "NULL", "NULL"
    if pa.types.is_timestamp(field.type):
        ends = _ends(name, "strftime(make_timestamp(epoch_us({})), '%Y-%m-%d %H:%M')")
    elif _is_number(field.type):
        ends = _ends(name, "CAST({} AS VARCHAR)")
    distinct = f"count(DISTINCT {name})" if exact else f"approx_count_distinct({name})"
    return f"count({name})", distinct, *ends


def _ends(name: str, shown: str) -> tuple[str, str]:
    return shown.format(f"min({name})"), shown.format(f"max({name})")


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _kind(kind: pa.DataType) -> str:
    if is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return "id"
    return "number" if pa.types.is_floating(kind) or pa.types.is_decimal(kind) else "other"


def _images(tables: InputTables, connection: duckdb.DuckDBPyConnection) -> tuple[int, int, int]:
    """Products with an image, how many of them were tried, and how many of these can be read."""
    if "image" not in tables.columns("products"):
        return 0, 0, 0
    named = connection.execute(
        f"SELECT image FROM {tables.scan_sql('products')} WHERE image IS NOT NULL AND trim(image) <> ''"
    ).fetchall()
    step = max(1, len(named) // IMAGES_TRIED)
    tried = [str(image) for (image,) in named[::step][:IMAGES_TRIED]]
    return len(named), len(tried), sum(_is_readable(tables.root / image) for image in tried)


def _is_readable(path: Path) -> bool:
    try:
        decode_image(path, side=96)
    except (ValueError, OSError):
        return False
    return True
