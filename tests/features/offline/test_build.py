"""A built feature set equals the definitions, whatever the buckets, the order of the rows and the engine."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from features.columns.counters import counter_names, smoothed_ctr
from features.columns.transforms import signed_log
from features.feature_set import SPLITS, FeatureSet
from features.offline.build import build
from features.schema import CounterConfig, SparseFeature, SplitConfig
from tests.features.small_logs import (
    CONFIG,
    WITHOUT_QUERIES,
    Expected,
    random_tables,
    write_tables,
)


def built(folder, tables, config=CONFIG, *, name="features", buckets=3, threads=1):
    data = write_tables(folder / "data", tables)
    build(data, folder / name, config, buckets=buckets, threads=threads)
    return FeatureSet.open(folder / name)


def rows_of(feature_set, split):
    return pa.concat_tables([pq.read_table(path) for path in feature_set.split_files(split)])


def all_rows(feature_set):
    """Every split's rows, oldest first, which is the order of `Expected` without its unused rows."""
    return pa.concat_tables([rows_of(feature_set, split) for split in SPLITS])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    tables = random_tables(1)
    return built(tmp_path_factory.mktemp("small"), tables), Expected(tables, CONFIG)


@pytest.mark.parametrize("granularity", ["exact", "hour", "day"])
def test_counters_equal_a_loop_over_all_pairs(tmp_path, granularity):
    config = CONFIG.model_copy(
        update={
            "counters": CounterConfig(windows_days=(1, 2), granularity=granularity, prior_impressions=5.0)
        }
    )
    tables = random_tables(2, impressions=500)
    feature_set, expected = built(tmp_path, tables, config), Expected(tables, config)
    rows, used = all_rows(feature_set), expected.split != "unused"
    train = expected.split == "train"
    manifest = feature_set.manifest
    assert manifest.counter_prior_ctr == pytest.approx(expected.clicked[train].mean())
    for key in config.counters.keys:
        for window in config.counters.windows_days:
            impressions, clicks = expected.counts(key, window)
            ctr = smoothed_ctr(
                impressions, clicks, prior_impressions=5.0, prior_ctr=manifest.counter_prior_ctr
            )
            raw = (impressions, clicks, ctr)
            assert impressions.max() > 3
            assert clicks.max() > 0
            for name, value, log in zip(counter_names(key, window), raw, (True, True, False), strict=True):
                transform = manifest.transforms[name]
                np.testing.assert_array_equal(rows.column(name).to_numpy(), transform.apply(value)[used])
                scaled = np.log1p(value[train]) if log else value[train]
                assert transform.mean == pytest.approx(scaled.mean(), abs=1e-7)
                assert transform.sd == pytest.approx(scaled.std(), rel=1e-4)


def history_file(feature_set: FeatureSet, name: str) -> np.ndarray:
    """One of the arrays behind the histories that no reader of the product needs by itself."""
    return np.load(feature_set.folder / "history" / f"{name}.npy")


@pytest.mark.parametrize("text_ids", [False, True])
def test_histories_equal_a_loop_over_all_purchases(tmp_path, text_ids):
    tables = random_tables(3, text_ids=text_ids)
    feature_set, expected = built(tmp_path, tables), Expected(tables, CONFIG)
    rows = all_rows(feature_set)
    catalog = feature_set.catalog_ids()
    assert catalog.to_pylist() == sorted(catalog.to_pylist())
    product_E, time_us_E = feature_set.history_product_index(), history_file(feature_set, "timestamp_us")
    lengths = []
    for row, number in enumerate(np.flatnonzero(expected.split != "unused")):
        start, end = rows.column("history_start")[row].as_py(), rows.column("history_end")[row].as_py()
        found = [(time_us_E[j], catalog[int(product_E[j])].as_py()) for j in range(start, end)]
        assert found == expected.history(number)
        assert rows.column("slice_has_purchases")[row].as_py() == bool(found)
        lengths.append(len(found))
    assert 0 in lengths
    assert max(lengths) >= 5
    assert feature_set.manifest.events == 120


def test_next_same_product_is_the_same_users_next_purchase_of_it(small):
    feature_set, _ = small
    starts, product_E = history_file(feature_set, "user_start"), feature_set.history_product_index()
    events = len(product_E)
    next_E = feature_set.history_next_same_product()
    assert (np.asarray(next_E) < events).any()
    for user in range(len(starts) - 1):
        for j in range(starts[user], starts[user + 1]):
            later = [k for k in range(j + 1, starts[user + 1]) if product_E[k] == product_E[j]]
            assert next_E[j] == (later[0] if later else events)


def test_splits_and_raw_columns_are_those_of_the_log(small):
    feature_set, expected = small
    for split in SPLITS:
        of_split = np.flatnonzero(expected.split == split)
        rows, summary = rows_of(feature_set, split), feature_set.manifest.splits[split]
        assert rows.column("impression_id").to_pylist() == [
            expected.values("impression_id")[i] for i in of_split
        ]
        assert rows.column("timestamp").cast(pa.int64()).to_pylist() == expected.time_us[of_split].tolist()
        assert rows.column("clicked").to_pylist() == expected.clicked[of_split].tolist()
        assert (summary.rows, summary.clicked) == (len(of_split), expected.clicked[of_split].sum())
        for index, ids, column in (
            ("product_index", feature_set.catalog_ids(), "product_id"),
            ("user_index", feature_set.user_ids(), "user_id"),
        ):
            assert ids.take(rows.column(index).combine_chunks()).to_pylist() == [
                expected.values(column)[i] for i in of_split
            ]
        queries = [
            None if i < 0 else feature_set.queries()[i].as_py()
            for i in rows.column("query_index").to_pylist()
        ]
        assert queries == [expected.values("query")[i] for i in of_split]
    unused = np.sum(expected.split == "unused")
    assert feature_set.manifest.data.unused_impressions == unused > 0


def test_vocabularies_and_slices_know_the_training_window_only(small):
    feature_set, expected = small
    train = np.flatnonzero(expected.split == "train")
    for feature, column, min_count in (
        ("user", "user_id", 8),
        ("query", "query", 20),
        ("store", "store_id", 10),
    ):
        values = [expected.values(column)[i] for i in train]
        counts = {value: values.count(value) for value in set(values) if value is not None}
        kept = sorted((-count, value) for value, count in counts.items() if count >= min_count)
        table = feature_set.vocabulary(feature)
        assert table.column("id").to_pylist() == [value for _, value in kept]
        assert table.column("count").to_pylist() == [-count for count, _ in kept]
    shown_in_training = {expected.values("product_id")[i] for i in train}
    rows = all_rows(feature_set)
    products = feature_set.catalog_ids().take(rows.column("product_index").combine_chunks()).to_pylist()
    assert rows.column("slice_seen_product").to_pylist() == [p in shown_in_training for p in products]
    no_query = [value < 0 for value in rows.column("query_index").to_pylist()]
    assert [value == -1 for value in rows.column("slice_query_frequency").to_pylist()] == no_query


def test_sparse_rows_are_missing_shared_or_the_ids_own(small):
    feature_set, expected = small
    rows, used = all_rows(feature_set), np.flatnonzero(expected.split != "unused")
    sizes = {column.name: column for column in feature_set.manifest.sparse_columns}
    table = feature_set.vocabulary("store").to_pylist()
    row_of = {entry["id"]: entry["row"] for entry in table}
    for i, row in zip(used, rows.column("store").to_pylist(), strict=True):
        store = expected.values("store_id")[i]
        assert row == (0 if store is None else row_of.get(store, 1))
    for name, column in sizes.items():
        ids = rows.column(name).to_numpy()
        assert ids.min() >= 0
        assert ids.max() < column.rows
    test = rows_of(feature_set, "test")
    for name, column in sizes.items():
        ids = test.column(name).to_numpy()
        shared = (ids >= 1) & (ids <= column.oov_rows)
        assert feature_set.manifest.oov_share["test"][name] == pytest.approx(shared.mean())
        assert feature_set.manifest.missing_share["test"][name] == pytest.approx((ids == 0).mean())


def test_dense_columns_are_standardised_on_training_and_nulls_are_flagged(small):
    feature_set, expected = small
    assert feature_set.manifest.dense_columns[:4] == ("price", "price_missing", "weight", "hour")
    train = np.flatnonzero(expected.split == "train")
    price = np.array([np.nan if value is None else value for value in expected.values("price")])
    logged = signed_log(price)
    mean, sd = np.nanmean(logged[train]), np.nanstd(logged[train])
    used = expected.split != "unused"
    rows = all_rows(feature_set)
    np.testing.assert_allclose(
        rows.column("price").to_numpy(), np.nan_to_num((logged[used] - mean) / sd), atol=1e-6
    )
    assert rows.column("price_missing").to_numpy().tolist() == np.isnan(price[used]).tolist()
    assert rows_of(feature_set, "train").column("weight").to_numpy().mean() == pytest.approx(0, abs=1e-6)
    assert rows_of(feature_set, "train").column("weight").to_numpy().std() == pytest.approx(1, abs=1e-5)


def test_buckets_threads_and_the_order_of_the_rows_change_no_byte(tmp_path, small):
    tables = random_tables(1)
    reference = small[0].manifest
    rng = np.random.default_rng(0)
    shuffled = {name: table.take(rng.permutation(len(table))) for name, table in tables.items()}
    by_time = [("timestamp", "ascending"), ("impression_id", "ascending")]
    in_order = {**tables, "impressions": tables["impressions"].sort_by(by_time)}
    builds = {
        "again": built(tmp_path / "a", tables),
        "one bucket": built(tmp_path / "b", tables, buckets=1),
        "more buckets than keys, two threads": built(tmp_path / "c", tables, buckets=17, threads=2),
        "shuffled rows": built(tmp_path / "d", shuffled, buckets=7),
        "rows in order of time": built(tmp_path / "e", in_order, threads=2),
    }
    for what, feature_set in builds.items():
        assert feature_set.manifest.model_copy(update={"created": reference.created}) == reference, what


def test_a_table_in_several_files_is_the_same_table(tmp_path, small):
    tables = random_tables(1)
    data = write_tables(tmp_path / "data", {name: tables[name] for name in ("products", "purchases")})
    (data / "impressions").mkdir()
    for part in range(3):
        rows = np.arange(part, len(tables["impressions"]), 3)
        pq.write_table(tables["impressions"].take(rows), data / "impressions" / f"{part}.parquet")
    manifest = build(data, tmp_path / "features", CONFIG, threads=1)
    assert manifest.checksums == small[0].manifest.checksums


def test_click_rates_of_random_labels_rank_nothing(tmp_path):
    """A feature that saw its own label, or a later one, would rank random labels above 0.5."""
    rng = np.random.default_rng(7)
    count, days = 60_000, 20
    time_us = np.sort(rng.integers(0, days * 86_400_000_000, count // 4)).repeat(4)
    clicked = (rng.random(count) < 0.06).astype(np.int8)
    delay = rng.integers(1_000_000, 1_800_000_000, count)
    utc = pa.timestamp("us", tz="UTC")
    tables = random_tables(0)
    tables["impressions"] = pa.table(
        {
            "impression_id": np.arange(count),
            "timestamp": pa.array(time_us, utc),
            "user_id": rng.integers(0, 4_000, count // 4).repeat(4),
            "query": [f"q{number}" for number in rng.zipf(1.5, count) % 500],
            "product_id": rng.integers(0, 7, count) * 2,
            "clicked": clicked,
            "click_timestamp": pa.array(time_us + delay, utc, mask=clicked == 0),
        }
    )
    config = CONFIG.model_copy(
        update={
            "dense": (),
            "sparse": CONFIG.sparse[:1],
            "counters": CounterConfig(windows_days=(1, 7), granularity="exact"),
            "split": SplitConfig(validation_days=1, test_days=15),
        }
    )
    feature_set = built(tmp_path, tables, config)
    test = rows_of(feature_set, "test")
    labels = test.column("clicked").to_numpy()
    names = [name for name in feature_set.manifest.dense_columns if "_ctr_" in name or "_clicks_" in name]
    assert len(names) == 16
    for name in names:
        assert roc_auc_score(labels, test.column(name).to_numpy()) == pytest.approx(0.5, abs=0.03), name


def test_row_groups_hold_65536_rows_of_one_declared_schema(tmp_path):
    tables = random_tables(4)
    count = 80_000
    tables["impressions"] = (
        tables["impressions"]
        .take(np.arange(count) % 400)
        .set_column(0, "impression_id", pa.array(np.arange(count)))
    )
    feature_set = built(tmp_path, tables, CONFIG.model_copy(update={"counters": None}))
    rows = feature_set.manifest.splits["train"].rows
    (path,) = feature_set.split_files("train")
    footer = pq.read_metadata(path)
    sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
    assert sizes == [65_536] * (rows // 65_536) + [rows % 65_536] * bool(rows % 65_536)
    chunk = footer.row_group(0).column(3)
    assert chunk.compression == "ZSTD"
    assert not chunk.has_dictionary_page
    schema = pq.read_schema(path)
    assert schema.names[:8] == [
        "impression_id", "timestamp", "clicked", "product_index",
        "query_index", "user_index", "history_start", "history_end",
    ]  # fmt: skip
    assert schema.names[-3:] == ["slice_has_purchases", "slice_seen_product", "slice_query_frequency"]
    assert [str(schema.field(name).type) for name in ("timestamp", "price", "user")] == [
        "timestamp[us, tz=UTC]", "float", "int32",
    ]  # fmt: skip


def test_a_log_without_queries_builds(tmp_path):
    tables = random_tables(5)
    tables["impressions"] = tables["impressions"].drop_columns(["query"])
    feature_set = built(tmp_path, tables, WITHOUT_QUERIES)
    rows = all_rows(feature_set)
    assert feature_set.manifest.num_queries == len(feature_set.queries()) == 0
    assert set(rows.column("query_index").to_pylist()) == {-1}
    assert set(rows.column("slice_query_frequency").to_pylist()) == {-1}
    assert any("no queries" in absence for absence in feature_set.manifest.data.absences)


def test_a_log_without_purchases_has_empty_histories(tmp_path):
    tables = random_tables(6)
    del tables["purchases"]
    feature_set = built(tmp_path, tables)
    rows = all_rows(feature_set)
    assert rows.column("history_start").to_pylist() == rows.column("history_end").to_pylist()
    assert set(feature_set.manifest.empty_history_share.values()) == {1.0}
    assert len(feature_set.history_product_index()) == feature_set.manifest.events == 0
    assert history_file(feature_set, "user_start").tolist() == [0] * (feature_set.manifest.num_users + 1)


def test_clicks_without_their_own_time_count_from_the_impression_and_it_is_said(tmp_path):
    tables = random_tables(7)
    immediate = random_tables(7)
    shown = immediate["impressions"]
    clicks = pa.compute.if_else(pa.compute.equal(shown.column("clicked"), 1), shown.column("timestamp"), None)
    immediate["impressions"] = shown.set_column(
        shown.schema.get_field_index("click_timestamp"),
        "click_timestamp",
        clicks.cast(shown.schema.field("timestamp").type),
    )
    tables["impressions"] = shown.drop_columns(["click_timestamp"])
    without = built(tmp_path / "a", tables).manifest
    stated = built(tmp_path / "b", immediate).manifest
    assert without.checksums == stated.checksums
    assert without.data.clicks_counted_from == "impression_timestamp"
    assert without.data.clicks_without_time == shown.column("clicked").to_numpy().sum()
    assert (stated.data.clicks_counted_from, stated.data.clicks_without_time) == ("click_timestamp", 0)


def test_each_user_is_cut_by_their_own_time(tmp_path):
    tables = random_tables(8)
    split = SplitConfig(method="per_user", validation_share=0.1, test_share=0.2)
    feature_set = built(tmp_path, tables, CONFIG.model_copy(update={"split": split}))
    expected = Expected(tables, CONFIG)
    for user in set(expected.values("user_id")):
        own = [
            i
            for i, u in zip(expected.values("impression_id"), expected.values("user_id"), strict=True)
            if u == user
        ]
        test_rows, validation_rows = int(0.2 * len(own)), int(0.1 * len(own))
        tests = rows_of(feature_set, "test").column("impression_id").to_pylist()
        validations = rows_of(feature_set, "validation").column("impression_id").to_pylist()
        assert [i for i in own if i in tests] == own[len(own) - test_rows :]
        assert [i for i in own if i in validations] == own[
            len(own) - test_rows - validation_rows : len(own) - test_rows
        ]


def test_columns_named_like_keys_and_flags_of_products_are_ordinary_ids(tmp_path):
    tables = random_tables(9)
    shown = tables["impressions"]
    tables["impressions"] = shown.append_column("user", shown.column("store_id")).append_column(
        "product", shown.column("query")
    )
    flags = pa.array([True, False] * 3 + [None])
    tables["products"] = tables["products"].append_column("organic", flags)
    sparse = (
        SparseFeature(name="user_column", column="user", min_count=1),
        SparseFeature(name="product_column", column="product", min_count=1),
        SparseFeature(name="organic", source="products", column="organic", min_count=1),
    )
    feature_set = built(tmp_path, tables, CONFIG.model_copy(update={"sparse": sparse}))
    ids = {name.name: set(feature_set.vocabulary(name.name).column("id").to_pylist()) for name in sparse}
    assert ids["user_column"] == set(range(6))
    assert ids["product_column"] == {f"query {number}" for number in range(4)}
    assert ids["organic"] == {0, 1}
    assert feature_set.manifest.num_products == 7
