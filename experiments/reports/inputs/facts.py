"""What the page of a data folder shows beyond the survey: what is frequent, distributions, some pictures.

Each is one query of DuckDB, so that the log may be larger than memory.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from features.inputs.image_paths import path_in_folder
from features.inputs.tables import InputTables

#: Rows of a table of the most frequent.
TOP = 10
#: Lower ends of the groups of users by their purchases.
PURCHASE_STEPS = (1, 2, 4, 8, 16, 32, 64)
#: Products whose pictures are shown.
PICTURES = 24


class Frequent(NamedTuple):
    """A query or a product of the log. `name` is what was typed, or the title."""

    name: str
    impressions: int
    clicks: int


@dataclass(frozen=True)
class Frequency:
    """How the impressions of a log spread over its queries or products.

    Attributes:
        top: those with most impressions.
        distinct: how many there are.
        head: the fewest of them that have half of all impressions.
        without: impressions that have none, as those without a query.
    """

    top: tuple[Frequent, ...]
    distinct: int
    head: int
    without: int


class ShownProduct(NamedTuple):
    """A product whose picture is shown; `image` is its file, None if its path leads out of the folder."""

    title: str
    aisle: str
    price: float | None
    image: Path | None


class Facts(NamedTuple):
    """All of them; None or empty where the folder has no such table."""

    queries: Frequency | None
    products: Frequency | None
    #: Users of purchases by how many they have: one entry for each of PURCHASE_STEPS.
    purchase_groups: tuple[int, ...]
    #: Of the users who saw impressions, how many bought something; both counts.
    shown_buyers: int
    shown_users: int
    #: Pairs by source and grade.
    grades: dict[tuple[str, int], int]
    pictured: tuple[ShownProduct, ...]
    #: Bytes of the files of each table.
    sizes: dict[str, int]


def gather_facts(tables: InputTables) -> Facts:
    """Ask the tables."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        log = tables.has("impressions")
        groups, (buyers, users) = _purchases(connection, tables)
        return Facts(
            queries=_frequency(connection, tables, "query") if log and tables.has_queries else None,
            products=_frequency(connection, tables, "product_id") if log else None,
            purchase_groups=groups,
            shown_buyers=buyers,
            shown_users=users,
            grades=_grades(connection, tables),
            pictured=_pictured(connection, tables),
            sizes={name: sum(file.stat().st_size for file in tables.files(name)) for name in tables.tables},
        )


def _frequency(connection: duckdb.DuckDBPyConnection, tables: InputTables, column: str) -> Frequency:
    grouped = (
        f"SELECT {column} AS name, count(*) AS shown, "
        "count(*) FILTER (WHERE CAST(clicked AS BIGINT) = 1) AS clicks "
        f"FROM {tables.scan_sql('impressions')} WHERE {column} IS NOT NULL GROUP BY {column}"
    )
    [(distinct, head, total)] = _rows(
        connection,
        f"SELECT count(*), count_if(before < total / 2), coalesce(any_value(total), 0) FROM ("
        f"SELECT sum(shown) OVER () AS total, sum(shown) OVER (ORDER BY shown DESC, name) - shown AS before "
        f"FROM ({grouped}))",
    )
    title = "CAST(name AS VARCHAR)"
    source = f"({grouped} ORDER BY shown DESC, name LIMIT {TOP})"
    if column == "product_id":
        title = "coalesce(title, CAST(name AS VARCHAR))"
        source += (
            f" LEFT JOIN (SELECT product_id, any_value(title) AS title FROM {tables.scan_sql('products')} "
            "GROUP BY product_id) ON name = product_id"
        )
    top = _rows(connection, f"SELECT {title}, shown, clicks FROM {source} ORDER BY shown DESC, name")
    return Frequency(
        top=tuple(Frequent(name, int(shown), int(clicks)) for name, shown, clicks in top),
        distinct=int(distinct),
        head=int(head),
        without=tables.rows("impressions") - int(total),
    )


def _purchases(
    connection: duckdb.DuckDBPyConnection, tables: InputTables
) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Users by their purchases; users of impressions who bought something, and all users of impressions."""
    if not tables.has_purchases:
        return (), (0, 0)
    bought = f"SELECT user_id, count(*) AS many FROM {tables.scan_sql('purchases')} GROUP BY user_id"
    ends = (*PURCHASE_STEPS[1:], 2**62)
    counts = ", ".join(
        f"count_if(many >= {low} AND many < {high})" for low, high in zip(PURCHASE_STEPS, ends, strict=True)
    )
    [groups] = _rows(connection, f"SELECT {counts} FROM ({bought})")
    if not tables.has("impressions"):
        return groups, (0, 0)
    [shown] = _rows(
        connection,
        f"SELECT count(buyer), count(*) FROM (SELECT DISTINCT user_id FROM {tables.scan_sql('impressions')} "
        f"WHERE user_id IS NOT NULL) AS shown LEFT JOIN (SELECT DISTINCT user_id AS buyer FROM "
        f"{tables.scan_sql('purchases')}) AS bought ON shown.user_id = buyer",
    )
    return groups, (int(shown[0]), int(shown[1]))


def _grades(connection: duckdb.DuckDBPyConnection, tables: InputTables) -> dict[tuple[str, int], int]:
    if not tables.has("relevance"):
        return {}
    found = _rows(
        connection,
        f"SELECT source, grade, count(*) FROM {tables.scan_sql('relevance')} GROUP BY 1, 2 ORDER BY 1, 2",
    )
    return {(str(source), int(grade)): int(pairs) for source, grade, pairs in found if grade is not None}


def _pictured(connection: duckdb.DuckDBPyConnection, tables: InputTables) -> tuple[ShownProduct, ...]:
    """Products with an image, evenly spread over the table."""
    columns = tables.columns("products")
    if "image" not in columns:
        return ()
    price = "price" if "price" in columns else "NULL"
    named = (
        f"SELECT row_number() OVER () - 1 AS place, title, aisle, {price} AS price, image "
        f"FROM {tables.scan_sql('products')} WHERE image IS NOT NULL AND trim(image) <> ''"
    )
    found = _rows(
        connection,
        f"WITH named AS ({named}) SELECT title, aisle, price, image FROM named "
        f"WHERE place % greatest(1, (SELECT count(*) FROM named) // {PICTURES}) = 0 "
        f"ORDER BY place LIMIT {PICTURES}",
    )
    return tuple(
        ShownProduct(
            title or "",
            aisle or "",
            None if price is None else float(price),
            tables.root / inside if (inside := path_in_folder(image)) else None,
        )
        for title, aisle, price, image in found
    )


def _rows(connection: duckdb.DuckDBPyConnection, sql: str) -> list[tuple[Any, ...]]:
    return connection.execute(sql).fetchall()
