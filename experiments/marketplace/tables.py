"""The Parquet files of a marketplace: schemas, and writers that hold about one row group.

The four input tables have the columns that any shop would log. Everything that a shop could not know goes
to `truth/`, which no feature may read.
"""

import hashlib
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.marketplace.days.purchases import PurchaseRows
from experiments.marketplace.days.searches import ImpressionRows
from experiments.marketplace.world.catalog import Catalog, IntArray, Shelf
from experiments.marketplace.world.graders import Labels
from experiments.marketplace.world.queries import KINDS, NONE, Queries, SearchTraffic
from experiments.marketplace.world.shoppers import DEVICES, Shoppers

#: `user_id` of the first user.
FIRST_USER_ID = 1
_TIME = pa.timestamp("us", tz="UTC")
_ROW_GROUP = 65_536

IMPRESSIONS = pa.schema(
    [
        ("impression_id", pa.int64()),
        ("timestamp", _TIME),
        ("user_id", pa.int64()),
        ("query", pa.string()),
        ("product_id", pa.int64()),
        ("clicked", pa.int8()),
        ("click_timestamp", _TIME),
        ("position", pa.int8()),
        ("store_id", pa.int32()),
        ("price", pa.float64()),
        ("device", pa.string()),
    ]
)
IMPRESSIONS_TRUTH = pa.schema(
    [("impression_id", pa.int64()), ("click_probability", pa.float64()), ("grade", pa.int8())]
)
PURCHASES = pa.schema(
    [
        ("timestamp", _TIME),
        ("user_id", pa.int64()),
        ("product_id", pa.int64()),
        ("purchase_id", pa.int64()),
        ("quantity", pa.int32()),
    ]
)


class RowGroupWriter:
    """A Parquet file that grows block by block; a row group is written once 65,536 rows are there."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._schema = schema
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def write(self, columns: dict[str, Any]) -> None:
        """Append rows; `columns` holds one array for each field of the schema."""
        arrays = [pa.array(columns[field.name], field.type) for field in self._schema]
        self._waiting.append(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows += len(arrays[0])
        if self._rows >= _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.concat_tables(self._waiting).combine_chunks(), row_group_size=1 << 20)
        self._waiting, self._rows = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._flush()
        self._writer.close()


class LogWriter(ExitStack):
    """Writes impressions, their truth and purchases day by day, numbering the rows."""

    def __init__(
        self,
        folder: Path,
        catalog: Shelf,
        queries: SearchTraffic,
        *,
        first_impression: int = 1,
        first_purchase: int = 1,
    ) -> None:
        super().__init__()
        self._product_ids = pa.array(catalog.product_id_P)
        (folder / "truth").mkdir(exist_ok=True)

        def file(name: str, schema: pa.Schema) -> RowGroupWriter:
            if (place := schema.get_field_index("product_id")) >= 0:  # a real catalogue may have string ids
                schema = schema.set(place, pa.field("product_id", self._product_ids.type))
            return self.enter_context(RowGroupWriter(folder / f"{name}.parquet", schema))

        self._impressions = file("impressions", IMPRESSIONS)
        self._truth = file("truth/impressions", IMPRESSIONS_TRUTH)
        self._purchases = file("purchases", PURCHASES)
        self._texts, self._devices = pa.array(queries.texts), pa.array(DEVICES)
        self._next_impression, self._next_purchase = first_impression, first_purchase

    def impressions(self, rows: ImpressionRows) -> None:
        """Append one day of impressions and what is true of them."""
        count = len(rows.user_N)
        impression_id_N = np.arange(self._next_impression, self._next_impression + count)
        self._next_impression += count
        self._impressions.write(
            {
                "impression_id": impression_id_N,
                "timestamp": rows.time_us_N,
                "user_id": rows.user_N + FIRST_USER_ID,
                "query": self._texts.take(pa.array(rows.query_N)),
                "product_id": self._product_ids.take(pa.array(rows.product_N)),
                "clicked": rows.clicked_N.astype(np.int8),
                "click_timestamp": pa.array(rows.click_time_us_N, _TIME, mask=~rows.clicked_N),
                "position": rows.position_N,
                "store_id": rows.store_N + 1,
                "price": rows.price_N,
                "device": self._devices.take(pa.array(rows.device_N)),
            }
        )
        self._truth.write(
            {
                "impression_id": impression_id_N,
                "click_probability": rows.probability_N,
                "grade": rows.grade_N,
            }
        )

    def purchases(self, rows: PurchaseRows) -> None:
        """Append one day of purchases."""
        count = len(rows.user_N)
        self._purchases.write(
            {
                "timestamp": rows.time_us_N,
                "user_id": rows.user_N + FIRST_USER_ID,
                "product_id": self._product_ids.take(pa.array(rows.product_N)),
                "purchase_id": np.arange(self._next_purchase, self._next_purchase + count),
                "quantity": rows.quantity_N,
            }
        )
        self._next_purchase += count


def write_products(folder: Path, catalog: Catalog, images: list[str | None]) -> None:
    """products.parquet, and truth/products.parquet with the facts that title and package only partly show."""
    aisles = np.array(catalog.assortment.aisles, dtype=object)
    types = np.array([kind.name for kind in catalog.assortment.types], dtype=object)
    table = pa.table(
        {
            "product_id": catalog.product_id_P,
            "title": catalog.titles,
            "aisle": pa.array(aisles[catalog.aisle_P]),
            "image": pa.array(images, pa.string()),
            "price": catalog.price_P,
            "brand": pa.array(catalog.brand_column, pa.string()),
            "description": pa.array(catalog.descriptions, pa.string()),
        }
    )
    write_table(folder / "products.parquet", table)
    truth = pa.table(
        {
            "product_id": catalog.product_id_P,
            "type": pa.array(types[catalog.type_P]),
            "brand": by_index(catalog.brands, catalog.brand_P),
            "variety": by_index(catalog.assortment.varieties, catalog.variety_P),
            "flags": catalog.flags_P,
            "title_flags": catalog.title_flags_P,
            "title_shows_brand": catalog.title_shows_brand_P,
            "title_shows_variety": catalog.title_shows_variety_P,
            "quality": catalog.quality_P,
            "available_from_day": catalog.available_from_P,
        }
    )
    write_table(folder / "truth" / "products.parquet", truth)


def write_queries(folder: Path, catalog: Catalog, queries: Queries) -> None:
    """truth/queries.parquet: what each query means."""
    types = np.array([kind.name for kind in catalog.assortment.types], dtype=object)
    wanted = [types[row == 2].tolist() for row in queries.role_QT]
    truth = pa.table(
        {
            "query": queries.texts,
            "kind": by_index(KINDS, queries.kind_Q),
            "types": pa.array(wanted, pa.list_(pa.string())),
            "brand": by_index(catalog.brands, queries.brand_Q),
            "variety": by_index(catalog.assortment.varieties, queries.variety_Q),
            "flags": queries.flags_Q,
        }
    )
    write_table(folder / "truth" / "queries.parquet", truth)


def write_relevance(folder: Path, catalog: Catalog, queries: Queries, labels: Labels) -> None:
    """relevance.parquet as graded, with the intent of each query; truth/relevance.parquet as it is, once."""
    truth = pa.table(
        {
            "query": by_index(queries.texts, labels.query_N),
            "product_id": catalog.product_id_P[labels.product_N],
            "grade": labels.true_grade_N,
        }
    )
    write_table(folder / "truth" / "relevance.parquet", truth)
    source = pa.array(["llm", "human"]).take(pa.array(labels.by_human_L.astype(np.int8)))
    graded = truth.select(["query", "product_id"]).take(pa.array(labels.pair_L))
    graded = graded.append_column("grade", pa.array(labels.grade_L)).append_column("source", source)
    intents = by_index(query_intents(queries), np.asarray(labels.query_N)[labels.pair_L])
    write_table(folder / "relevance.parquet", graded.append_column("intent", intents))


def query_intents(queries: Queries) -> list[str]:
    """An opaque name of what each query asks for, whatever its words, their order and its misspellings."""
    wanted = [np.flatnonzero(role_T == 2).tolist() for role_T in queries.role_QT]
    facets = zip(
        wanted, queries.brand_Q.tolist(), queries.variety_Q.tolist(), queries.flags_Q.tolist(), strict=True
    )
    return [hashlib.blake2b(repr(asked).encode(), digest_size=6).hexdigest() for asked in facets]


def write_users(folder: Path, shoppers: Shoppers) -> None:
    """truth/users.parquet: what no log says outright of a user."""
    truth = pa.table(
        {
            "user_id": np.arange(shoppers.num_users, dtype=np.int64) + FIRST_USER_ID,
            "click_tendency": shoppers.click_tendency_U,
            "price_sensitivity": shoppers.price_sensitivity_U,
            "diet": shoppers.diet_U,
            "purchases_at_all": shoppers.orders_U > 0,
            "first_order_day": shoppers.first_order_day_U,
        }
    )
    write_table(folder / "truth" / "users.parquet", truth)


def by_index(names: tuple[str, ...] | list[str], index_N: IntArray) -> pa.Array:
    """Names by index, null where the index is -1."""
    return pa.array(names).take(pa.array(np.maximum(index_N, 0), mask=index_N == NONE))


def write_table(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", row_group_size=_ROW_GROUP)
