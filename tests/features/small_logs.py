"""Random logs full of edge instants, and every feature of them computed by loops from its definition."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from features.columns.clock import DAY_US
from features.schema import (
    CounterConfig,
    DenseFeature,
    FeatureConfig,
    HistoryConfig,
    SparseFeature,
    SplitConfig,
)

HOUR_US = DAY_US // 24
UTC_US = pa.timestamp("us", tz="UTC")
START_US = 19_700 * DAY_US
#: Distances at which a purchase or click meets a window's edge: at it, one microsecond either side.
EDGES_US = [edge + side for edge in (0, DAY_US, 2 * DAY_US, 3 * DAY_US) for side in (-1, 0, 1)]

CONFIG = FeatureConfig(
    dense=(
        DenseFeature(name="price", column="price", transform="log"),
        DenseFeature(name="weight", source="products", column="weight"),
        DenseFeature(name="hour", source="timestamp", column="hour_of_day"),
    ),
    sparse=(
        SparseFeature(name="user", column="user_id", min_count=8, oov_rows=3),
        SparseFeature(name="product", column="product_id", min_count=2, oov_rows=2),
        SparseFeature(name="query", column="query", min_count=20, oov_rows=2),
        SparseFeature(name="store", column="store_id", min_count=10, oov_rows=1),
        SparseFeature(name="brand", source="products", column="brand", min_count=1, oov_rows=1),
        SparseFeature(name="day_of_week", source="timestamp", column="day_of_week", min_count=1),
    ),
    counters=CounterConfig(windows_days=(1, 2), granularity="exact", prior_impressions=5.0),
    history=HistoryConfig(window_days=3, cap=4),
    split=SplitConfig(validation_days=1, test_days=2, burn_in_days=1),
)

WITHOUT_QUERIES = CONFIG.model_copy(
    update={
        "sparse": tuple(feature for feature in CONFIG.sparse if feature.name != "query"),
        "counters": CounterConfig(keys=("product", "user"), windows_days=(1, 2), granularity="exact"),
    }
)


def random_tables(
    seed: int, *, impressions: int = 400, days: int = 8, text_ids: bool = False, nobody: float = 0.0
) -> dict[str, pa.Table]:
    """products, impressions and purchases; slates share a moment, purchases and clicks sit on edges.

    `nobody` is the share of slates, and of purchases, without a user.
    """
    rng = np.random.default_rng(seed)
    users, products, queries = 9, 7, 4
    slate_us = START_US + rng.integers(0, days * DAY_US, impressions // 3 + 1)
    slate_us[::5] = START_US + rng.integers(0, days * 24, len(slate_us[::5])) * HOUR_US  # full hours
    slate_us[0], slate_us[1] = START_US, START_US + days * DAY_US - 1
    slate_N = np.arange(impressions) % len(slate_us)
    time_us_N = slate_us[slate_N]
    user_N = rng.integers(0, users, len(slate_us))[slate_N] * 10 + 1
    clicked_N = (rng.random(impressions) < 0.4).astype(np.int8)
    delay_us_N = rng.choice([0, 1, *EDGES_US[3:], HOUR_US, 1_000_000], impressions)
    no_query_N = rng.random(impressions) < 0.1
    query_N = np.array([f"query {number}" for number in rng.integers(0, queries, impressions)])
    shown = {
        "impression_id": rng.permutation(impressions),
        "timestamp": pa.array(time_us_N, UTC_US),
        "user_id": user_N,
        "query": pa.array(query_N, mask=no_query_N),
        "product_id": rng.integers(0, products, impressions) * 2,
        "clicked": clicked_N,
        "click_timestamp": pa.array(time_us_N + delay_us_N, UTC_US, mask=clicked_N == 0),
        "price": pa.array(rng.lognormal(1, 1, impressions), mask=rng.random(impressions) < 0.1),
        "store_id": pa.array(rng.integers(0, 6, impressions), mask=rng.random(impressions) < 0.1),
    }
    near = rng.integers(0, impressions, 120)
    bought_us = time_us_N[near] - rng.choice(EDGES_US, len(near))
    bought = {
        "purchase_id": rng.permutation(len(near)),
        "timestamp": pa.array(bought_us, UTC_US),
        "user_id": np.where(rng.random(len(near)) < 0.8, user_N[near], 5),  # user 5 sees no impression
        "product_id": rng.integers(0, 3, len(near)) * 2,
    }
    catalogue = {
        "product_id": np.arange(products) * 2,
        "title": [f"product {number}" for number in range(products)],
        "aisle": ["dairy"] * products,
        "brand": pa.array([None if number == 3 else f"brand {number % 3}" for number in range(products)]),
        "weight": rng.normal(5, 2, products),
    }
    tables = {"products": catalogue, "impressions": shown, "purchases": bought}
    if text_ids:
        for table in tables.values():
            for name in ("user_id", "product_id", "impression_id", "purchase_id"):
                if name in table:
                    table[name] = [f"{name} é{number}" for number in table[name]]
    made = {name: pa.table(columns) for name, columns in tables.items()}
    if nobody:
        of_slate = rng.random(len(slate_us)) < nobody
        for name, without_N in (("impressions", of_slate[slate_N]), ("purchases", rng.random(120) < nobody)):
            ids = made[name]["user_id"].combine_chunks()
            ids = pa.compute.if_else(pa.array(without_N), pa.scalar(None, ids.type), ids)
            made[name] = made[name].set_column(made[name].schema.get_field_index("user_id"), "user_id", ids)
    return made


def write_tables(folder: Path, tables: dict[str, pa.Table]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


class Expected:
    """Features of the impressions in (timestamp, impression_id) order, each from its definition."""

    def __init__(self, tables: dict[str, pa.Table], config: FeatureConfig) -> None:
        self.config = config
        order = [("timestamp", "ascending"), ("impression_id", "ascending")]
        self.rows = tables["impressions"].sort_by(order)
        self.time_us = self.rows.column("timestamp").cast(pa.int64()).to_numpy()
        self.logged = self.rows.column("clicked").to_numpy()
        clicks = self.rows.column("click_timestamp").cast(pa.int64())
        self.click_us = np.array([-1 if value is None else value for value in clicks.to_pylist()])
        late = self.click_us - self.time_us >= config.labels.attribution_hours * HOUR_US
        self.click_us[late] = -1
        self.purchases = tables["purchases"].sort_by(
            [("timestamp", "ascending"), ("purchase_id", "ascending")]
        )
        day = self.time_us // DAY_US
        split = config.split
        self.split = np.where(day < day.min() + split.burn_in_days, "unused", "train").astype(object)
        self.split[day > day.max() - split.test_days - split.validation_days] = "validation"
        self.split[day > day.max() - split.test_days] = "test"
        test_us = (day.max() - split.test_days + 1) * DAY_US
        ends = {"train": test_us - split.validation_days * DAY_US, "validation": test_us}
        self.clicked = np.array(
            [
                int(click >= 0 and (name not in ends or click < ends[name]))
                for click, name in zip(self.click_us, self.split, strict=True)
            ]
        )

    def values(self, column: str) -> list:
        return self.rows.column(column).to_pylist()

    def key(self, key: str) -> list:
        if key == "query_product":
            pairs = zip(self.values("query"), self.values("product_id"), strict=True)
            return [None if query is None else (query, product) for query, product in pairs]
        return self.values({"query": "query", "product": "product_id", "user": "user_id"}[key])

    def counts(self, key: str, window_days: int) -> tuple[np.ndarray, np.ndarray]:
        """Impressions and clicks of each row's key in the window that ends at its floored moment."""
        assert self.config.counters is not None
        unit = {"exact": 1, "hour": HOUR_US, "day": DAY_US}[self.config.counters.granularity]
        keys = np.array([repr(value) for value in self.key(key)])
        impressions, clicks = np.zeros(len(keys), np.int64), np.zeros(len(keys), np.int64)
        for row, value in enumerate(self.key(key)):
            if value is None:
                continue
            end = self.time_us[row] // unit * unit
            start = end - window_days * DAY_US
            same = keys == keys[row]
            impressions[row] = np.sum(same & (self.time_us >= start) & (self.time_us < end))
            clicks[row] = np.sum(same & (self.click_us >= start) & (self.click_us < end))
        return impressions, clicks

    def history(self, row: int) -> list[tuple[int, object]]:
        """(time, product) of the row's purchases in the window, oldest first."""
        assert self.config.history is not None
        start = self.time_us[row] - self.config.history.window_days * DAY_US
        bought = self.purchases.select(["timestamp", "user_id", "product_id"])
        times = bought.column("timestamp").cast(pa.int64()).to_pylist()
        buyers, products = bought.column("user_id").to_pylist(), bought.column("product_id").to_pylist()
        user = self.values("user_id")[row]
        return [
            (time, product)
            for time, buyer, product in zip(times, buyers, products, strict=True)
            if user is not None and buyer == user and start <= time < self.time_us[row]
        ]
