"""A small market whose test impressions can be asked for as requests, beside their offline rows."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.feature_set import FeatureSet
from features.offline.build import build
from features.online.build_snapshot import build_snapshot
from features.online.request import ScoreRequest
from features.schema import DenseFeature, SparseFeature
from tests.features.small_logs import CONFIG, random_tables, write_tables

#: Columns that only the catalogue, only the log or both have, several features of one column, one without
#: values in some rows: more than a sensible schema has.
WIDE = CONFIG.model_copy(
    update={
        "dense": (
            *CONFIG.dense,
            DenseFeature(name="list_price", source="products", column="price"),
            DenseFeature(name="store_number", column="store_id"),
            DenseFeature(name="day", source="timestamp", column="day_of_week"),
        ),
        "sparse": (
            *CONFIG.sparse,
            SparseFeature(name="user_again", column="user_id", min_count=1, oov_rows=5),
            SparseFeature(name="position", column="position", min_count=1, oov_rows=2, serving_value=1),
            SparseFeature(name="size", source="products", column="size", min_count=30, oov_rows=3),
        ),
    }
)


def tables_of(seed, *, text_ids, nobody=0.0):
    tables = random_tables(seed, text_ids=text_ids, nobody=nobody)
    rng = np.random.default_rng(seed)
    shown, catalogue = tables["impressions"], tables["products"]
    tables["impressions"] = shown.append_column("position", pa.array(rng.integers(1, 9, len(shown))))
    sizes = pa.array(["s", None, "m", "l", "m", "s", "xl"])
    prices = pa.array([1.5, None, 2.0, 3.0, 4.0, 5.0, 6.0])
    tables["products"] = catalogue.append_column("size", sizes).append_column("price", prices)
    return tables


class Market:
    """A log, its feature set, and the impressions of the test split beside their offline rows."""

    def __init__(self, folder, config, *, seed=5, text_ids=False, nobody=0.0):
        self.folder = folder
        self.data = write_tables(folder / "data", tables_of(seed, text_ids=text_ids, nobody=nobody))
        build(self.data, folder / "features", config, buckets=2, threads=1)
        self.feature_set = FeatureSet.open(folder / "features")
        self.rows = pa.concat_tables(pq.read_table(path) for path in self.feature_set.split_files("test"))
        log = pq.read_table(self.data / "impressions.parquet").to_pylist()
        by_id = {row["impression_id"]: row for row in log}
        self.impressions = [by_id[id_] for id_ in self.rows["impression_id"].to_pylist()]
        self.time_us = self.rows["timestamp"].cast(pa.int64()).to_numpy()

    def snapshot(self, as_of_us, name="snapshot"):
        return build_snapshot(self.data, self.feature_set, self.folder / name, as_of_us=int(as_of_us))

    def offline(self, row, columns):
        return [self.rows[name][row].as_py() for name in columns]

    def history(self, row):
        """Ids of the products that the impression's user had purchased, newest first."""
        start, end = self.rows["history_start"][row].as_py(), self.rows["history_end"][row].as_py()
        product_E = np.asarray(self.feature_set.history_product_index())[start:end]
        return self.feature_set.catalog_ids().take(pa.array(product_E[::-1])).to_pylist()

    def request(self, rows, **changes):
        """The impressions of one slate as one request, with what the log says of each."""
        shown = [self.impressions[row] for row in rows]
        sent = {
            "user_id": shown[0]["user_id"],
            "query": shown[0].get("query"),
            "timestamp_us": int(self.time_us[rows[0]]),
            "candidates": [impression["product_id"] for impression in shown],
            "candidate_columns": {
                name: [impression[name] for impression in shown]
                for name in ("price", "store_id", "position")
                if name in wanted(self.feature_set)
            },
            "history": self.history(rows[0]),
        }
        return ScoreRequest(**(sent | changes))

    def slates(self):
        """Rows of the test split that share user, query and moment."""
        keys = {}
        for row, impression in enumerate(self.impressions):
            key = (impression["user_id"], impression.get("query"), int(self.time_us[row]))
            keys.setdefault(key, []).append(row)
        return list(keys.values())


def wanted(feature_set):
    return {feature.column for feature in feature_set.manifest.config.features}


def assert_equal_rows(found, market, rows):
    manifest = market.feature_set.manifest
    dense = np.array([market.offline(row, manifest.dense_columns) for row in rows], np.float32)
    sparse = np.array([market.offline(row, [c.name for c in manifest.sparse_columns]) for row in rows])
    np.testing.assert_array_equal(found.dense_NF.view(np.int32), dense.view(np.int32))
    np.testing.assert_array_equal(found.sparse_NS, sparse)
    ids = market.feature_set.catalog_ids().to_pylist()
    assert [ids[position] for position in found.product_N] == [
        market.impressions[row]["product_id"] for row in rows
    ]
