"""What cannot be built is refused in one sentence, and nothing is left behind."""

import re
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.feature_set import FeatureSet, FeatureSetError
from features.offline.build import build, memory_limit_bytes
from features.offline.log_checks import LogError
from features.offline.log_reader import IdIndex
from features.schema import DenseFeature, SparseFeature, SplitConfig
from tests.features.small_logs import CONFIG, random_tables, write_tables


def with_column(table, name, values):
    return table.set_column(table.schema.get_field_index(name), name, values)


def refused(folder, tables, config=CONFIG):
    """The sentence with which the build is refused; the folder holds the input only."""
    data = write_tables(folder / "data", tables)
    with pytest.raises(ValueError) as caught:
        build(data, folder / "features", config, threads=1)
    assert sorted(path.name for path in folder.iterdir()) == ["data"]
    return str(caught.value)


def test_a_product_that_the_catalogue_lacks_is_named(tmp_path):
    tables = random_tables(1)
    tables["products"] = tables["products"].slice(1)
    message = refused(tmp_path, tables)
    count = int((tables["impressions"].column("product_id").to_numpy() == 0).sum())
    assert f"{count} rows name a product that products lacks, such as 0" in message
    assert f"dashclip validate {tmp_path / 'data'} --out CHECKED --write-clean" in message
    assert "CHECKED/clean" in message


def test_a_purchased_product_that_the_catalogue_lacks_is_named(tmp_path):
    tables = random_tables(1)
    bought = tables["purchases"].column("product_id").to_numpy().copy()
    bought[0] = 999
    tables["purchases"] = with_column(tables["purchases"], "product_id", pa.array(bought))
    assert "purchases.parquet: 1 rows name a product that products lacks, such as 999" in refused(
        tmp_path, tables
    )


def test_a_product_listed_twice_is_refused(tmp_path):
    tables = random_tables(1)
    tables["products"] = pa.concat_tables([tables["products"], tables["products"].slice(0, 1)])
    assert "1 rows repeat a product_id" in refused(tmp_path, tables)


@pytest.mark.parametrize("clicked", [0, 1])
def test_training_labels_of_one_class_are_refused(tmp_path, clicked):
    tables = random_tables(1)
    labels = pa.array(np.full(400, clicked, dtype=np.int8))
    shown = tables["impressions"].drop_columns(["click_timestamp"])
    tables["impressions"] = with_column(shown, "clicked", labels)
    message = refused(tmp_path, tables)
    assert f"clicked = {clicked}" in message
    assert "both classes" in message


def test_training_labels_whose_clicks_all_came_too_late_are_refused_and_it_is_said_why(tmp_path):
    tables = random_tables(1)
    shown = tables["impressions"]
    later = pa.compute.add(shown.column("timestamp"), pa.scalar(timedelta(days=1)))
    clicks = pa.compute.if_else(pa.compute.equal(shown.column("clicked"), 1), later, None)
    tables["impressions"] = with_column(shown, "click_timestamp", clicks)
    message = refused(tmp_path, tables)
    assert re.search(r"training impressions have clicked = 0 \(\d+ clicks came too late for a label", message)


def test_a_label_other_than_0_and_1_is_refused(tmp_path):
    tables = random_tables(1)
    labels = tables["impressions"].column("clicked").to_numpy().copy()
    labels[3] = 2
    tables["impressions"] = with_column(tables["impressions"], "clicked", pa.array(labels))
    assert "1 rows have `clicked` other than 0 and 1" in refused(tmp_path, tables)


def test_clicks_before_their_impressions_are_refused_as_they_would_say_of_it_what_comes(tmp_path):
    tables = random_tables(1)
    shown = tables["impressions"]
    moments = shown.column("timestamp").to_pylist()
    clicks = [moments[0] - timedelta(microseconds=1), moments[1], *[None] * (len(moments) - 2)]
    clicks = pa.array(clicks, shown.schema.field("timestamp").type)
    tables["impressions"] = with_column(shown, "click_timestamp", clicks)
    message = refused(tmp_path, tables)
    assert "1 rows have a `click_timestamp` before their `timestamp`" in message
    assert "--write-clean" in message


def test_a_null_where_a_value_is_required_is_refused(tmp_path):
    tables = random_tables(1)
    products = tables["impressions"].column("product_id").to_pylist()
    products[5] = None
    tables["impressions"] = with_column(tables["impressions"], "product_id", pa.array(products))
    assert "1 rows have no product_id" in refused(tmp_path, tables)


def test_a_log_too_short_for_its_splits_is_refused(tmp_path):
    config = CONFIG.model_copy(update={"split": SplitConfig()})
    assert "no training window" in refused(tmp_path, random_tables(1), config)


def test_an_empty_split_is_refused(tmp_path):
    tables = random_tables(1, days=20)
    days = tables["impressions"].column("timestamp").cast(pa.int64()).to_numpy() // 86_400_000_000
    tables["impressions"] = tables["impressions"].filter(pa.array(days != days.max() - 2))
    assert "the validation split has no impressions" in refused(tmp_path, tables)


def test_a_misspelt_column_gets_a_hint(tmp_path):
    config = CONFIG.model_copy(update={"dense": (DenseFeature(name="p", column="prise"),)})
    message = refused(tmp_path, random_tables(1), config)
    assert "dense feature 'p' reads column 'prise'" in message
    assert "did you mean 'price'?" in message


def test_text_is_no_dense_feature_and_a_fraction_no_id(tmp_path):
    dense = CONFIG.model_copy(update={"dense": (DenseFeature(name="b", source="products", column="brand"),)})
    assert "dense feature 'b' needs numbers" in refused(tmp_path / "a", random_tables(1), dense)
    sparse = CONFIG.model_copy(update={"sparse": (SparseFeature(name="p", column="price"),)})
    assert "sparse feature 'p' needs integer or string ids" in refused(
        tmp_path / "b", random_tables(1), sparse
    )


def test_an_infinite_number_is_refused(tmp_path):
    tables = random_tables(1)
    prices = np.full(400, 1.0)
    prices[7] = np.inf
    tables["impressions"] = with_column(tables["impressions"], "price", pa.array(prices))
    assert "column 'price' of impressions holds an infinite value" in refused(tmp_path, tables)


@pytest.mark.parametrize("number", [1e200, -1e200, 1e39])
@pytest.mark.parametrize("source", ["impressions", "products"])
def test_a_number_too_large_for_a_standard_transform_is_named_before_the_build(
    tmp_path, monkeypatch, source, number
):
    monkeypatch.setattr("features.offline.build._read", None)  # the build may not start
    tables = random_tables(1)
    column = {"impressions": "price", "products": "weight"}[source]
    values = tables[source].column(column).to_pylist()
    values[3] = number
    tables[source] = with_column(tables[source], column, pa.array(values))
    dense = (DenseFeature(name="number", source=source, column=column),)
    message = refused(tmp_path, tables, CONFIG.model_copy(update={"dense": dense}))
    assert f"{source}.parquet row 3, dense feature 'number': column {column!r} of {source}" in message
    assert f"holds {number:g}, too large for transform = 'standard'" in message
    assert "write null, or use the transform log" in message


def test_a_huge_number_is_no_trouble_for_a_logarithm(tmp_path):
    tables = random_tables(1)
    values = tables["impressions"].column("price").to_pylist()
    values[3] = 1e200
    tables["impressions"] = with_column(tables["impressions"], "price", pa.array(values))
    manifest = build(write_tables(tmp_path / "data", tables), tmp_path / "features", CONFIG, threads=1)
    assert np.isfinite([manifest.transforms["price"].mean, manifest.transforms["price"].sd]).all()


def test_a_number_beyond_what_the_network_reads_is_named(tmp_path):
    tables = random_tables(1)
    time_us = tables["impressions"].column("timestamp").cast(pa.int64()).to_numpy()
    values = np.where(np.arange(400) % 2, 1e-9, 0.0)
    values[time_us.argmax()] = 1e38  # in the test split
    tables["impressions"] = with_column(tables["impressions"], "price", pa.array(values))
    dense = (DenseFeature(name="number", column="price"),)
    message = refused(tmp_path, tables, CONFIG.model_copy(update={"dense": dense}))
    assert "dense feature 'number': column 'price' holds 1e+38, too far from the training window" in message


def test_a_dense_column_without_training_values_is_refused(tmp_path):
    tables = random_tables(1)
    nothing = pa.nulls(400, pa.float64())
    tables["impressions"] = with_column(tables["impressions"], "price", nothing)
    assert "has no value in the training window" in refused(tmp_path, tables)


def test_query_counters_without_queries_are_refused_with_the_keys_that_would_do(tmp_path):
    tables = random_tables(1)
    tables["impressions"] = tables["impressions"].drop_columns(["query"])
    sparse = tuple(feature for feature in CONFIG.sparse if feature.name != "query")
    message = refused(tmp_path, tables, CONFIG.model_copy(update={"sparse": sparse}))
    assert "set counters.keys = ['product', 'user']" in message


@pytest.mark.parametrize("stage", ["reading the log", "counting", "writing rows"])
def test_a_failure_at_any_stage_keeps_the_old_feature_set_and_leaves_nothing_else(tmp_path, stage):
    data = write_tables(tmp_path / "data", random_tables(1))
    first = build(data, tmp_path / "features", CONFIG, threads=1)

    def fail(name, done, total):
        if name == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(data, tmp_path / "features", CONFIG, threads=1, progress=fail)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "features"]
    assert FeatureSet.open(tmp_path / "features").manifest == first


def test_a_broken_page_inside_a_whole_file_is_a_sentence(tmp_path):
    data = write_tables(tmp_path / "data", random_tables(1))
    path = data / "impressions.parquet"
    content = bytearray(path.read_bytes())
    content[100:4000] = bytes(3900)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="engine stopped"):
        build(data, tmp_path / "features", CONFIG, threads=1)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data"]


def test_the_truth_of_a_simulated_log_is_never_read(tmp_path):
    tables = random_tables(1)
    data = write_tables(tmp_path / "data", tables)
    plain = build(data, tmp_path / "plain", CONFIG, threads=1)
    (data / "truth").mkdir()
    (data / "truth" / "impressions.parquet").write_text("not even Parquet")
    beside = build(data, tmp_path / "beside", CONFIG, threads=1)
    assert beside.checksums == plain.checksums


def test_memory_limits_are_sizes():
    assert memory_limit_bytes("2GB") == 2_000_000_000
    assert memory_limit_bytes("512 MiB") == 512 * 2**20
    with pytest.raises(ValueError, match="not a size"):
        memory_limit_bytes("plenty")
    with pytest.raises(ValueError, match="at least 200MB"):
        memory_limit_bytes("10MB")


@pytest.mark.parametrize("name", ["user_ctr_1d", "price_missing"])
def test_a_feature_named_like_a_made_column_is_refused(tmp_path, name):
    sparse = (*CONFIG.sparse, SparseFeature(name=name, column="store_id"))
    message = refused(tmp_path, random_tables(1), CONFIG.model_copy(update={"sparse": sparse}))
    assert f"two columns named {name!r}" in message


def test_a_feature_name_that_is_no_file_name_is_refused(tmp_path):
    sparse = (SparseFeature(name="../user", column="user_id"),)
    config = CONFIG.model_copy(update={"sparse": sparse})
    assert "cannot be a file name" in refused(tmp_path, random_tables(1), config)


def test_no_bucket_is_refused(tmp_path):
    data = write_tables(tmp_path / "data", random_tables(1))
    with pytest.raises(ValueError, match="0 buckets are asked for; it must be 1 or more"):
        build(data, tmp_path / "features", CONFIG, buckets=0)


def test_a_changed_or_missing_file_is_named_on_opening(tmp_path):
    data = write_tables(tmp_path / "data", random_tables(1))
    build(data, tmp_path / "features", CONFIG, threads=1)
    path = tmp_path / "features" / "train" / "part-00000.parquet"
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)
    with pytest.raises(FeatureSetError, match=r"part-00000\.parquet has changed"):
        FeatureSet.open(tmp_path / "features")
    FeatureSet.open(tmp_path / "features", verify=False)
    path.unlink()
    with pytest.raises(FeatureSetError, match=r"part-00000\.parquet is missing"):
        FeatureSet.open(tmp_path / "features")


def test_a_folder_that_is_no_feature_set_is_refused(tmp_path):
    with pytest.raises(FeatureSetError, match="not a feature set"):
        FeatureSet.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(FeatureSetError, match="format 99"):
        FeatureSet.open(tmp_path)


def test_an_unknown_split_or_vocabulary_is_refused_with_the_known_ones(tmp_path):
    data = write_tables(tmp_path / "data", random_tables(1))
    build(data, tmp_path / "features", CONFIG, threads=1)
    feature_set = FeatureSet.open(tmp_path / "features")
    with pytest.raises(FeatureSetError, match="train, validation, test"):
        feature_set.split_files("dev")
    with pytest.raises(FeatureSetError, match="user, product"):
        feature_set.vocabulary("aisle")
    assert pq.read_table(feature_set.split_files("test")[0]).num_rows > 0


def test_a_build_replaces_a_feature_set_but_no_other_folder(tmp_path):
    data = write_tables(tmp_path / "data", random_tables(1))
    for _ in range(2):
        build(data, tmp_path / "features", CONFIG, threads=1)
    other = tmp_path / "table"
    other.mkdir()
    (other / "manifest.json").write_text('{"encoder_id": "someone"}')
    with pytest.raises(FileExistsError, match="another kind"):
        build(data, other, CONFIG, threads=1)
    assert [path.name for path in other.iterdir()] == ["manifest.json"]


def test_a_build_never_replaces_its_input(tmp_path):
    data = write_tables(tmp_path / "data", random_tables(1))
    before = sorted(data.iterdir())
    for out in (data, tmp_path):
        with pytest.raises(ValueError, match="would replace the input"):
            build(data, out, CONFIG, threads=1)
    assert sorted(data.iterdir()) == before


def test_more_ids_than_32_bits_number_are_refused():
    nothing = np.zeros(0, np.int64)
    with pytest.raises(LogError, match=r"2,147,483,648 distinct ids of one kind.* exceed the 2,147,483,647"):
        IdIndex(pa.nulls(2**31), nothing, nothing)
