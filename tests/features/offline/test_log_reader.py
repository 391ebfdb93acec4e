"""Impressions come in the order of (timestamp, impression_id), sorted only where the files are not."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.inputs.tables import InputTables
from features.offline.log_reader import LogReader
from features.schema import FeatureConfig
from tests.features.small_logs import START_US, UTC_US, random_tables, write_tables


def read(folder, *, threads=1):
    with LogReader(
        InputTables.open(folder),
        FeatureConfig(sparse=()),
        threads=threads,
        memory_limit="200MB",
        spill=folder / "spill",
    ) as reader:
        batches = list(reader.impressions())
        return reader.facts, pa.Table.from_batches(batches)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_log_in_order_keeps_it_though_other_tables_are_larger(tmp_path, threads):
    """Whatever table an engine would rather run through its joins."""
    tables = random_tables(3, impressions=90)
    order = [("timestamp", "ascending"), ("impression_id", "ascending")]
    shown = tables.pop("impressions").sort_by(order)
    buyers = np.arange(20_000)
    tables["purchases"] = pa.table(
        {
            "purchase_id": buyers,
            "timestamp": pa.array(START_US + buyers, UTC_US),
            "user_id": buyers,
            "product_id": np.zeros(len(buyers), np.int64),
        }
    )
    write_tables(tmp_path, tables)
    (tmp_path / "impressions").mkdir()
    for part in range(3):
        pq.write_table(shown.slice(30 * part, 30), tmp_path / "impressions" / f"{part}.parquet")
    facts, read_back = read(tmp_path, threads=threads)
    assert facts.in_order
    assert read_back.column("impression_id").to_pylist() == shown.column("impression_id").to_pylist()


@pytest.mark.parametrize("spoilt", ["timestamp", "impression_id"])
def test_a_log_out_of_order_is_sorted(tmp_path, spoilt):
    tables = random_tables(3)
    order = [("timestamp", "ascending"), ("impression_id", "ascending")]
    shown = tables["impressions"].sort_by(order)
    time_us_N = shown.column("timestamp").cast(pa.int64()).to_numpy()
    same = int(np.flatnonzero(np.diff(time_us_N) == 0)[0])
    first = same if spoilt == "impression_id" else int(np.flatnonzero(np.diff(time_us_N) > 0)[0])
    rows = np.arange(len(shown))
    rows[[first, first + 1]] = rows[[first + 1, first]]
    facts, read_back = read(write_tables(tmp_path, {**tables, "impressions": shown.take(rows)}))
    assert not facts.in_order
    assert read_back.column("impression_id").to_pylist() == shown.column("impression_id").to_pylist()
