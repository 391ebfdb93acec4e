"""Law: a log with blank strings gives the features of the same log with nulls in their place."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from features.feature_set import SPLITS, FeatureSet
from features.offline.build import build
from features.offline.log_checks import LogError
from features.offline.log_reader import encode_ids
from features.online.build_snapshot import build_snapshot
from features.online.request import ScoreRequest
from features.online.request_features import OnlineFeatures
from features.schema import SparseFeature
from tests.features.small_logs import CONFIG, START_US, WITHOUT_QUERIES, random_tables, write_tables

BLANKS = ["", " ", "\u3000", "\t\n", "\xa0 "]
COLUMNS = {"impressions": ("query", "store_id"), "products": ("brand",), "purchases": ("purchase_id",)}


def text_tables():
    """Ids are texts; the columns above have nulls, and each some values."""
    tables = random_tables(4, text_ids=True)
    shown, bought = tables["impressions"], tables["purchases"]
    stores = pc.binary_join_element_wise("store", shown["store_id"].cast(pa.string()), " ")
    tables["impressions"] = shown.set_column(shown.schema.get_field_index("store_id"), "store_id", stores)
    ids = [None if row % 3 == 0 else id_ for row, id_ in enumerate(bought["purchase_id"].to_pylist())]
    tables["purchases"] = bought.set_column(0, "purchase_id", pa.array(ids))
    return tables


def with_blanks(tables):
    """Every null is one of the blank strings in turn."""
    result = dict(tables)
    for table, names in COLUMNS.items():
        for name in names:
            content = result[table]
            values = content[name].to_pylist()
            assert None in values
            filled = [
                BLANKS[row % len(BLANKS)] if value is None else value for row, value in enumerate(values)
            ]
            result[table] = content.set_column(content.schema.get_field_index(name), name, pa.array(filled))
    return result


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folders of two feature sets and their data: with nulls, with blanks."""
    folders = []
    for name, tables in (("nulls", text_tables()), ("blanks", with_blanks(text_tables()))):
        folder = tmp_path_factory.mktemp(name)
        build(write_tables(folder / "data", tables), folder / "features", CONFIG, buckets=2, threads=1)
        folders.append(folder)
    return folders


def test_a_feature_set_of_blanks_is_that_of_nulls(both):
    nulls, blanks = (FeatureSet.open(folder / "features") for folder in both)
    ignored = {"created", "checksums"}
    assert nulls.manifest.model_dump(exclude=ignored) == blanks.manifest.model_dump(exclude=ignored)
    assert nulls.manifest.missing_share["train"]["query"] > 0
    assert nulls.manifest.missing_share["train"]["brand"] > 0
    assert nulls.manifest.missing_share["train"]["store"] > 0
    assert nulls.queries().equals(blanks.queries())
    for split in SPLITS:
        for one, other in zip(nulls.split_files(split), blanks.split_files(split), strict=True):
            assert pq.read_table(one).equals(pq.read_table(other))
    for feature in CONFIG.sparse:
        assert nulls.vocabulary(feature.name).equals(blanks.vocabulary(feature.name))
    assert (nulls.history_product_index() == blanks.history_product_index()).all()


def test_a_snapshot_of_blanks_is_that_of_nulls(both, tmp_path):
    as_of_us = START_US + 6 * 86_400_000_000
    made = [
        build_snapshot(
            folder / "data", FeatureSet.open(folder / "features"), tmp_path / folder.name, as_of_us=as_of_us
        )
        for folder in both
    ]
    assert made[0].manifest.checksums == made[1].manifest.checksums


@pytest.mark.parametrize("blank", BLANKS)
def test_a_request_with_blanks_has_the_rows_of_one_with_nulls(both, tmp_path, blank):
    as_of_us = START_US + 6 * 86_400_000_000
    snapshot = build_snapshot(
        both[1] / "data", FeatureSet.open(both[1] / "features"), tmp_path / "snapshot", as_of_us=as_of_us
    )
    online = OnlineFeatures(snapshot, context_columns=("store_id",))
    products = snapshot.products.ids().to_pylist()[:3]

    def rows(missing):
        request = ScoreRequest(
            user_id=missing,
            query=missing,
            candidates=products,
            timestamp_us=as_of_us,
            context={"store_id": missing},
            candidate_columns={"brand": [missing, "brand 1", missing]},
        )
        return online.rows(request)

    found, expected = rows(blank), rows(None)
    np.testing.assert_array_equal(found.dense_NF, expected.dense_NF)
    np.testing.assert_array_equal(found.sparse_NS, expected.sparse_NS)
    assert (found.user, found.query, found.unknown) == (expected.user, expected.query, expected.unknown)
    assert found.unknown["queries"] == found.unknown["users"] == 0
    each = ScoreRequest(None, None, products, as_of_us, candidate_columns={"store_id": [blank, None, ""]})
    np.testing.assert_array_equal(online.rows(each).request_sparse_S, expected.request_sparse_S)


def test_a_log_whose_queries_are_all_blank_is_one_without_queries(tmp_path):
    tables = random_tables(1)
    shown = tables["impressions"]
    blanks = pa.array([BLANKS[row % len(BLANKS)] for row in range(len(shown))])
    tables["impressions"] = shown.set_column(shown.schema.get_field_index("query"), "query", blanks)
    data = write_tables(tmp_path / "data", tables)
    with pytest.raises(LogError, match="the impressions have no queries"):
        build(data, tmp_path / "features", CONFIG, threads=1)
    manifest = build(data, tmp_path / "features", WITHOUT_QUERIES, threads=1)
    assert manifest.num_queries == 0
    assert any("no queries in impressions" in absence for absence in manifest.data.absences)


@pytest.mark.parametrize(
    ("table", "column", "said"),
    [
        ("impressions", "impression_id", "1 rows have no impression_id"),
        ("products", "product_id", "0 rows repeat a product_id and 1 have none"),
        ("purchases", "product_id", "1 rows lack a product_id"),
    ],
)
def test_a_blank_id_is_refused_like_a_null(tmp_path, table, column, said):
    tables = random_tables(1, text_ids=True)
    values = tables[table][column].to_pylist()
    values[0] = "\u3000"
    place = tables[table].schema.get_field_index(column)
    tables[table] = tables[table].set_column(place, column, pa.array(values))
    with pytest.raises(LogError, match=said):
        build(write_tables(tmp_path / "data", tables), tmp_path / "features", CONFIG, threads=1)


def test_blank_values_of_a_product_have_no_number():
    ids, code = encode_ids(pa.array(["b", None, "a", "\u3000", ""]))
    assert ids.to_pylist() == ["a", "b"]
    assert code.tolist() == [1, -1, 0, -1, -1]


def test_a_blank_serving_value_is_a_missing_one(both, tmp_path):
    folder = both[1]
    config = CONFIG.model_copy(
        update={
            "sparse": (
                *(feature for feature in CONFIG.sparse if feature.name != "store"),
                SparseFeature(name="store", column="store_id", min_count=10, oov_rows=1, serving_value=" "),
            )
        }
    )
    build(folder / "data", tmp_path / "features", config, threads=1)
    snapshot = build_snapshot(
        folder / "data",
        FeatureSet.open(tmp_path / "features"),
        tmp_path / "snapshot",
        as_of_us=START_US + 6 * 86_400_000_000,
    )
    online = OnlineFeatures(snapshot, context_columns=("store_id",))
    found = online.rows(ScoreRequest(None, None, snapshot.products.ids().to_pylist()[:1]))
    names = [column.name for column in snapshot.manifest.sparse_columns]
    assert found.sparse_NS[0, names.index("store")] == 0
