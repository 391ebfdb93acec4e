"""A distributed build writes what one machine writes, byte for byte, whatever its buckets and hot keys."""

import random
import tempfile
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from features.distributed.build import build_distributed
from features.feature_set import Manifest
from features.offline.build import build
from features.offline.log_checks import LogError
from features.offline.log_reader import BATCH_ROWS
from features.schema import CounterConfig, HistoryConfig, SplitConfig
from tests.features.distributed.in_process_engine import InProcessEngine
from tests.features.small_logs import CONFIG, WITHOUT_QUERIES, random_tables, write_tables
from tests.features.stored_types import plain_tables, write_as_others_would

PER_USER = CONFIG.model_copy(
    update={"split": SplitConfig(method="per_user", validation_share=0.2, test_share=0.2)}
)


def without_time(manifest: Manifest) -> dict:
    return manifest.model_dump(mode="json", exclude={"created"})


def both(folder, tables, config=CONFIG, **settings):
    """Manifests of one machine and of an engine; checksums of all files are among them."""
    data = write_tables(folder / "data", tables)
    engine = InProcessEngine()
    one = build(data, folder / "one", config)
    many = build_distributed(data, folder / "many", config, engine, **settings)
    assert sorted(path.name for path in folder.iterdir()) == ["data", "many", "one"]
    return without_time(one), without_time(many), engine


@pytest.mark.parametrize("text_ids", [False, True])
@pytest.mark.parametrize("nobody", [0.0, 0.2])
def test_every_file_is_the_same(tmp_path, text_ids, nobody):
    one, many, _ = both(tmp_path, random_tables(1, text_ids=text_ids, nobody=nobody))
    assert one == many


@pytest.mark.parametrize("granularity", ["exact", "hour", "day"])
@pytest.mark.parametrize("buckets", [1, 3, 40])
def test_buckets_change_no_byte(tmp_path, granularity, buckets):
    counters = CounterConfig(windows_days=(1, 2), granularity=granularity, prior_impressions=5.0)
    config = CONFIG.model_copy(update={"counters": counters})
    one, many, _ = both(tmp_path, random_tables(2), config, buckets=buckets)
    assert one == many


@pytest.mark.parametrize("granularity", ["exact", "hour", "day"])
@pytest.mark.parametrize("hot_rows", [0, 60])
def test_hot_keys_cut_in_slices_of_time_change_no_byte(tmp_path, granularity, hot_rows):
    counters = CounterConfig(windows_days=(1, 2), granularity=granularity, prior_impressions=5.0)
    config = CONFIG.model_copy(update={"counters": counters})
    tables = random_tables(3, impressions=900)
    one, many, engine = both(tmp_path, tables, config, buckets=2, hot_rows=hot_rows)
    assert one == many
    _, _, whole = both(tmp_path / "whole", tables, config, buckets=2)
    # Two days of eight and a halo of two more: the bucket of the hottest key is less than its rows.
    assert max(engine.largest["counting"][:3]) < max(whole.largest["counting"][:3])


@pytest.mark.parametrize("hot_rows", [0, 10**6])
def test_users_cut_by_their_own_time_are_the_same(tmp_path, hot_rows):
    one, many, _ = both(tmp_path, random_tables(4, nobody=0.1), PER_USER, hot_rows=hot_rows)
    assert one == many


@pytest.mark.parametrize(
    "change",
    [
        {"counters": None},
        {"history": None},
        {"counters": None, "history": None},
        {"dense": ()},
        {"history": HistoryConfig(window_days=1, cap=2)},
        {"counters": CounterConfig(keys=("product",), windows_days=(2,))},
    ],
)
def test_features_left_out_are_left_out_alike(tmp_path, change):
    one, many, _ = both(tmp_path, random_tables(5), CONFIG.model_copy(update=change))
    assert one == many


def test_logs_without_queries_purchases_or_click_times_are_the_same(tmp_path):
    tables = random_tables(6)
    shown = tables["impressions"]
    less = {
        "queries": {**tables, "impressions": shown.drop_columns(["query"])},
        "purchases": {name: table for name, table in tables.items() if name != "purchases"},
        "click times": {**tables, "impressions": shown.drop_columns(["click_timestamp"])},
        "purchase ids": {**tables, "purchases": tables["purchases"].drop_columns(["purchase_id"])},
    }
    for name, of in less.items():
        one, many, _ = both(tmp_path / name, of, WITHOUT_QUERIES if name == "queries" else CONFIG)
        assert one == many, name


def test_blank_queries_are_no_queries(tmp_path):
    tables = random_tables(7)
    blank = pa.array([" "] * len(tables["impressions"]))
    place = tables["impressions"].schema.get_field_index("query")
    tables["impressions"] = tables["impressions"].set_column(place, "query", blank)
    one, many, _ = both(tmp_path, tables, WITHOUT_QUERIES)
    assert one == many


def test_several_batches_files_and_pieces_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("features.distributed.passes._BATCHES", 1)
    monkeypatch.setattr("features.distributed.passes._FILE_ROWS", BATCH_ROWS)
    monkeypatch.setattr("features.offline.row_files.ROW_GROUPS_PER_FILE", 1)
    monkeypatch.setattr("features.distributed.reading._PIECE_ROWS", 40_000)
    data = write_tables(tmp_path / "data", random_tables(9, impressions=3 * BATCH_ROWS + 1_000))
    shown = pq.read_table(data / "impressions.parquet")
    pq.write_table(shown, data / "impressions.parquet", row_group_size=10_000)
    for config in (CONFIG, PER_USER):
        one = build(data, tmp_path / "one", config)
        many = build_distributed(data, tmp_path / "many", config, InProcessEngine(), buckets=5)
        assert without_time(one) == without_time(many)
        assert len(many.splits["train"].files) == 2


@pytest.mark.parametrize("draw", range(3))
def test_files_types_and_partitions_that_others_write_are_read_the_same(tmp_path, draw):
    """Types that `validate` accepts, tables in several files and folders, columns in any order."""
    data = write_as_others_would(tmp_path / "data", plain_tables(1, text_ids=draw == 1), random.Random(draw))
    one = build(data, tmp_path / "one", CONFIG)
    many = build_distributed(data, tmp_path / "many", CONFIG, InProcessEngine(), buckets=3, hot_rows=60)
    assert without_time(one) == without_time(many)


@settings(max_examples=4, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    seed=st.integers(10, 10**6),
    nobody=st.sampled_from([0.0, 0.3]),
    split=st.sampled_from([CONFIG.split, PER_USER.split]),
    granularity=st.sampled_from(["exact", "hour", "day"]),
    windows_days=st.sampled_from([(1,), (1, 3), (2, 5)]),
    buckets=st.integers(1, 9),
    hot_rows=st.sampled_from([0, 20, 80, 10**6]),
)
def test_any_log_and_setting_gives_the_same(
    seed, nobody, split, granularity, windows_days, buckets, hot_rows
):
    counters = CounterConfig(windows_days=windows_days, granularity=granularity)
    config = CONFIG.model_copy(update={"counters": counters, "split": split})
    with tempfile.TemporaryDirectory() as name:
        tables = random_tables(seed, nobody=nobody)
        one, many, _ = both(Path(name), tables, config, buckets=buckets, hot_rows=hot_rows)
    assert one == many


def test_what_one_machine_refuses_is_refused_in_the_same_words(tmp_path):
    tables = random_tables(8)
    shown = tables["impressions"]

    def changed(name: str, values: list) -> dict:
        place = shown.schema.get_field_index(name)
        return {
            **tables,
            "impressions": shown.set_column(place, name, pa.array(values, shown.schema.field(name).type)),
        }

    count = len(shown)
    bad = {
        "label": changed("clicked", [2] * count),
        "product": changed("product_id", [999] * count),
        "id": changed("impression_id", [None, *range(count - 1)]),
        "clicked before shown": changed(
            "click_timestamp",
            [
                *(time - timedelta(seconds=1) for time in shown["timestamp"].to_pylist()[:2]),
                *[None] * (count - 2),
            ],
        ),
        "infinite": changed("price", [float("inf"), *[1.0] * (count - 1)]),
        "bought": {
            **tables,
            "purchases": tables["purchases"].set_column(
                tables["purchases"].schema.get_field_index("product_id"),
                "product_id",
                pa.array([999] * len(tables["purchases"])),
            ),
        },
    }
    for name, of in bad.items():
        data = write_tables(tmp_path / name / "data", of)
        said = []
        for made in (
            lambda data, out: build(data, out, CONFIG),
            lambda data, out: build_distributed(data, out, CONFIG, InProcessEngine()),
        ):
            with pytest.raises(ValueError) as refused:
                made(data, data.parent / "out")
            said.append((type(refused.value), str(refused.value)))
        assert said[0] == said[1]
        assert said[0][0] is LogError
        assert [path.name for path in data.parent.iterdir()] == ["data"]
