"""Places in one array of all purchases, also where they need 64 bits."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.lib.format import open_memmap

from features.batches.loader import BatchLoader
from features.batches.pretrained_rows import PurchaseBags, SemanticRows
from features.distributed.build import build_distributed
from features.feature_set import SPLITS, FeatureSet
from features.offline import history
from features.offline.build import build
from features.offline.history import EventWriter, offset_dtype
from tests.features.distributed.in_process_engine import InProcessEngine
from tests.features.small_logs import CONFIG, random_tables, write_tables


def test_places_have_64_bits_from_2_to_the_31_purchases_on():
    assert offset_dtype(0) == offset_dtype(2**31 - 1) == np.int32
    assert offset_dtype(2**31) == np.int64


def built(folder, out, **settings):
    build(folder / "data", folder / out, CONFIG, threads=1, **settings)
    return FeatureSet.open(folder / out)


def batches_of(feature_set):
    bags = PurchaseBags(
        feature_set.history_product_index(),
        feature_set.history_next_same_product(),
        np.append(np.arange(feature_set.manifest.num_products), 0),
        cap=3,
        deduplicate=True,
    )
    rows = SemanticRows(bags.row_P, np.zeros(feature_set.manifest.num_queries + 1, np.int64), bags)
    loader = BatchLoader(feature_set, "train", batch_size=50, semantic=rows, shuffle_seed=1)
    return [batch.semantic.values().tolist() for batch in loader]


def test_a_feature_set_whose_places_have_64_bits_says_the_same(tmp_path, monkeypatch):
    """As if some purchases were more than 32 bits can number: other types, the same values and batches."""
    write_tables(tmp_path / "data", random_tables(1))
    narrow = built(tmp_path, "narrow", buckets=3)
    monkeypatch.setattr(history, "_EVENTS_OF_INT32", 3)
    wide = built(tmp_path, "wide", buckets=3)
    many = build_distributed(tmp_path / "data", tmp_path / "many", CONFIG, InProcessEngine())
    assert many.model_dump(exclude={"created"}) == wide.manifest.model_dump(exclude={"created"})
    assert (narrow.manifest.format, wide.manifest.format) == (1, 2)
    assert wide.history_next_same_product().dtype == np.int64
    assert (wide.history_next_same_product() == narrow.history_next_same_product()).all()
    for split in SPLITS:
        for old, new in zip(narrow.split_files(split), wide.split_files(split), strict=True):
            small, large = pq.read_table(old), pq.read_table(new)
            assert large.schema.field("history_end").type == "int64"
            assert large.cast(small.schema).equals(small)
    assert batches_of(wide) == batches_of(narrow)


def test_offsets_beyond_32_bits_are_found(tmp_path):
    """The arrays of a writer, as they would be behind 2^31 purchases of an earlier user."""
    writer = EventWriter(tmp_path / "history", iter(()), purchases_U=np.zeros(2, np.int64))
    before = 2**31 + 7
    writer.user_start_U = np.array([0, before, before + 3])
    writer.events = before + 3
    writer.offset_dtype = offset_dtype(writer.events)
    files = {"_product_E": np.int32, "_time_us_E": np.int64, "_next_E": np.int64}
    for name, dtype in files.items():  # files with holes
        mapped = open_memmap(tmp_path / f"{name}.npy", mode="w+", dtype=dtype, shape=(writer.events,))
        setattr(writer, name, mapped)
    writer._product_E[before:] = [4, 5, 4]
    writer._time_us_E[before:] = [10, 20, 30]
    writer.link(1, 2)
    assert writer._next_E[before:].tolist() == [before + 2, writer.events, writer.events]
    found = writer.offsets(
        np.array([1, 1], np.int32), np.array([25, 31]), first_user=1, last_user=2, window_us=16
    )
    assert found.tolist() == [[before, before + 2], [before + 1, before + 3]]


@pytest.mark.parametrize("buckets", [1, 1_000])
def test_a_thousand_buckets_change_no_byte(tmp_path, buckets):
    write_tables(tmp_path / "data", random_tables(2))
    few, many = built(tmp_path, "few", buckets=2), built(tmp_path, "many", buckets=buckets)
    assert few.manifest.checksums == many.manifest.checksums
