"""Tables that a source lacks and a mapping asks for, made of the tables that are there.

Each function makes `stage_<table>` in the session of an import, whose ids are text and whose `__row` numbers
the rows of a table in their order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from experiments.datasets.own_tables.mapping import ConstructedImpressions
from experiments.datasets.own_tables.negatives import construct_impressions
from features.inputs.table_specs import TableName
from features.inputs.tables import InputError


@dataclass(frozen=True)
class MadeTable:
    """The columns of a table that was made, and a sentence on what it stands for."""

    columns: Sequence[str]
    note: str


def products_of_logs(connection: duckdb.DuckDBPyConnection, logs: Sequence[TableName]) -> MadeTable:
    """One product for each id that the logs name."""
    union = " UNION ".join(f"SELECT DISTINCT product_id FROM stage_{name}" for name in logs)
    connection.execute(
        "CREATE TABLE stage_products AS SELECT product_id, NULL::VARCHAR AS title, NULL::VARCHAR AS aisle, "
        f"row_number() OVER (ORDER BY product_id) AS __row FROM ({union}) WHERE product_id IS NOT NULL"
    )
    return MadeTable(
        ("product_id", "title", "aisle"),
        "products are made of the ids in the logs (products.from_logs): no titles, no aisles",
    )


def purchases_of_clicks(connection: duckdb.DuckDBPyConnection, *, has_click_times: bool) -> MadeTable:
    """One purchase for each clicked impression, at the moment of its click where that is known."""
    moment = "coalesce(click_timestamp, timestamp)" if has_click_times else "timestamp"
    order = f"ORDER BY {moment}, __row"
    connection.execute(
        f"CREATE TABLE stage_purchases AS SELECT {moment} AS timestamp, user_id, product_id, "
        f"CAST(row_number() OVER ({order}) - 1 AS VARCHAR) AS purchase_id, __row "
        f"FROM stage_impressions WHERE clicked = 1 {order}"
    )
    return MadeTable(
        ("timestamp", "user_id", "product_id", "purchase_id"),
        "purchases are made of the clicked impressions (purchases.from_clicks): they stand for what a user "
        "liked",
    )


def impressions_of_purchases(
    connection: duckdb.DuckDBPyConnection, settings: ConstructedImpressions
) -> MadeTable:
    """Constructed impressions, in time order; see `construct_impressions`.

    Raises:
        InputError: not one can be made.
    """
    rows: pa.Table = connection.sql(
        "SELECT epoch_us(timestamp) AS time_us, user_id, product_id FROM stage_purchases WHERE timestamp IS "
        "NOT NULL AND user_id IS NOT NULL AND product_id IS NOT NULL ORDER BY timestamp, __row"
    ).to_arrow_table()
    [(of_nobody,)] = connection.execute(
        "SELECT count(*) FROM stage_purchases WHERE user_id IS NULL AND product_id IS NOT NULL"
    ).fetchall()
    users, products = (
        pc.dictionary_encode(rows[column].combine_chunks()) for column in ("user_id", "product_id")
    )
    made = construct_impressions(
        users.indices.to_numpy().astype(np.int64),
        products.indices.to_numpy().astype(np.int64),
        rows["time_us"].to_numpy(),
        settings,
    )
    if not len(made.purchase_M):
        raise InputError(
            f"no impression can be made of the {len(rows):,} purchases: no product was bought at two "
            "moments, so none was known before one"
        )
    of_purchase = rows.select(["time_us", "user_id"]).take(pa.array(made.purchase_M))
    impressions = of_purchase.append_column("product_id", products.dictionary.take(pa.array(made.product_M)))
    impressions = impressions.append_column("clicked", pa.array(made.clicked_M))
    connection.register("made", impressions.append_column("__row", pa.array(np.arange(len(impressions)))))
    connection.execute(
        "CREATE TABLE stage_impressions AS SELECT CAST(__row AS VARCHAR) AS impression_id, "
        "make_timestamptz(time_us) AS timestamp, user_id, product_id, clicked, "
        "CASE WHEN clicked = 1 THEN make_timestamptz(time_us) END AS click_timestamp, "
        "true AS constructed, __row FROM made ORDER BY __row"
    )
    connection.unregister("made")
    return MadeTable(
        ("impression_id", "timestamp", "user_id", "product_id", "clicked", "click_timestamp", "constructed"),
        f"impressions are CONSTRUCTED, nobody saw them: {int(made.clicked_M.sum()):,} purchases count as "
        f"clicks, beside each {settings.negatives} products drawn ({settings.draw}, seed {settings.seed}) "
        f"from those bought before; {made.missing_negatives:,} negatives are fewer than asked for; no "
        f"impression for {made.first_of_product:,} first purchases of a product, {made.repeated:,} repeated "
        f"rows and {of_nobody:,} purchases without a user. Say so wherever you report results",
    )
