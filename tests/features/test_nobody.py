"""Impressions and purchases without a user: strangers share row 0 of a sparse feature, and nothing else.

Law: a log with nulls among its users is the log in which each such row has a user of its own, but for the row
of sparse features on the user and for what is said of users.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from features.columns.counters import counter_names
from features.feature_set import FeatureSet
from features.offline.build import build
from features.online.build_snapshot import build_snapshot
from features.online.request import ScoreRequest
from features.online.request_features import OnlineFeatures
from features.schema import SplitConfig
from tests.features.small_logs import CONFIG, START_US, WITHOUT_QUERIES, Expected, random_tables, write_tables
from tests.features.small_market import Market, assert_equal_rows

SPLITS = ("train", "validation", "test")
PER_USER = CONFIG.model_copy(
    update={"split": SplitConfig(method="per_user", validation_share=0.1, test_share=0.2)}
)


def with_users(table, users):
    return table.set_column(table.schema.get_field_index("user_id"), "user_id", users)


def built(folder, tables, config=CONFIG, **options):
    build(write_tables(folder / "data", tables), folder / "features", config, threads=1, **options)
    return FeatureSet.open(folder / "features")


def rows_of(feature_set):
    parts = [
        pq.read_table(path).append_column("split", pa.array([split] * pq.read_metadata(path).num_rows))
        for split in SPLITS
        for path in feature_set.split_files(split)
    ]
    return pa.concat_tables(parts).sort_by("impression_id")


def strangers(tables):
    """The same tables with an id of its own for each row that has no user."""
    made, used = dict(tables), 0
    for name in ("impressions", "purchases"):
        own = pa.array(np.arange(len(tables[name])) + 1_000_000 + used)
        made[name] = with_users(tables[name], pc.coalesce(tables[name]["user_id"], own))
        used += len(tables[name])
    return made


@pytest.mark.parametrize("config", [CONFIG, PER_USER], ids=["global", "per_user"])
def test_nobodys_impressions_are_those_of_strangers_but_for_the_row_of_the_user(tmp_path, config):
    tables = random_tables(11, nobody=0.4)
    found = rows_of(built(tmp_path / "nobody", tables, config, buckets=3))
    expected = rows_of(built(tmp_path / "strangers", strangers(tables), config, buckets=3))
    nobody_N = found["user_index"].to_numpy() == -1
    assert 100 < nobody_N.sum() < 300
    offsets = {"history_start", "history_end"}  # strangers' purchases lie among those of others
    for name in found.column_names:
        if name in {"user_index", "user", *offsets}:
            continue
        assert found[name].equals(expected[name]), name
    lengths = [
        table["history_end"].to_numpy() - table["history_start"].to_numpy() for table in (found, expected)
    ]
    np.testing.assert_array_equal(*lengths)
    assert set(found["user"].to_numpy()[nobody_N].tolist()) == {0}
    assert 0 not in found["user"].to_numpy()[~nobody_N]
    known = found["user"].to_numpy()[~nobody_N]
    np.testing.assert_array_equal(known, expected["user"].to_numpy()[~nobody_N])
    assert lengths[0][~nobody_N].max() > 0


def test_nobody_has_no_counters_of_a_user_and_the_prior_as_click_rate(tmp_path):
    tables = random_tables(12, nobody=0.4)
    feature_set = built(tmp_path, tables)
    rows, expected = rows_of(feature_set), Expected(tables, CONFIG)
    order = np.argsort(expected.values("impression_id"))
    used = order[expected.split[order] != "unused"]
    prior = feature_set.manifest.counter_prior_ctr
    nobody_N = rows["user_index"].to_numpy() == -1
    train_N = expected.split[used] == "train"
    for days in CONFIG.counters.windows_days:
        shown, clicks = (counts[used] for counts in expected.counts("user", days))
        ctr = (clicks + 5.0 * prior) / (shown + 5.0)
        assert not shown[nobody_N].any()
        assert shown[~nobody_N].any()
        names = counter_names("user", days)
        for name, value, log in zip(names, (shown, clicks, ctr), (True, True, False), strict=True):
            transform = feature_set.manifest.transforms[name]
            np.testing.assert_array_equal(rows[name].to_numpy(), transform.apply(value.astype(float)))
            scaled = np.log1p(value[train_N]) if log else value[train_N]
            assert transform.mean == pytest.approx(scaled.mean(), abs=1e-7)


def test_it_is_said_how_many_rows_are_nobodys(tmp_path):
    tables = random_tables(13, nobody=0.3)
    manifest = built(tmp_path, tables).manifest
    shown, bought = (tables[name]["user_id"].null_count for name in ("impressions", "purchases"))
    assert (manifest.data.anonymous_impressions, manifest.data.anonymous_purchases) == (shown, bought)
    assert shown > 0
    assert bought > 0
    assert manifest.data.purchases == manifest.events == len(tables["purchases"]) - bought
    users = {user for name in ("impressions", "purchases") for user in tables[name]["user_id"].to_pylist()}
    assert manifest.num_users == len(users - {None})
    assert manifest.missing_share["test"]["user"] > 0


def test_a_blank_user_is_nobody_like_a_null(tmp_path):
    tables = random_tables(14, text_ids=True, nobody=0.3)
    assert tables["impressions"]["user_id"].null_count
    blank = {
        name: with_users(table, pc.fill_null(table["user_id"], "\u3000"))
        if "user_id" in table.column_names
        else table
        for name, table in tables.items()
    }
    nulls, blanks = built(tmp_path / "null", tables), built(tmp_path / "blank", blank)
    assert rows_of(nulls).equals(rows_of(blanks))


def test_strangers_only_train_where_each_user_is_cut_by_their_own_time(tmp_path):
    rows = rows_of(built(tmp_path, random_tables(15, nobody=0.3), PER_USER))
    nobody_N = rows["user_index"].to_numpy() == -1
    split_N = np.array(rows["split"].to_pylist())
    assert set(split_N[nobody_N]) == {"train"}
    assert set(split_N[~nobody_N]) == set(SPLITS)


@pytest.mark.parametrize("granularity", ["exact", "hour"])
def test_a_request_of_nobody_has_the_offline_row_bit_for_bit(tmp_path, granularity):
    """The crowd's impressions count for products and queries, online as offline, and for no user."""
    counters = CONFIG.counters.model_copy(update={"granularity": granularity})
    market = Market(tmp_path, CONFIG.model_copy(update={"counters": counters}), seed=21, nobody=0.5)
    slates = [slate for slate in market.slates() if market.impressions[slate[0]]["user_id"] is None]
    known = [slate for slate in market.slates() if market.impressions[slate[0]]["user_id"] is not None]
    for slate in [*slates[:: max(len(slates) // 4, 1)], *known[:2]]:
        online = OnlineFeatures(market.snapshot(market.time_us[slate[0]]))
        found = online.rows(market.request(slate, history=None))
        assert_equal_rows(found, market, slate)
        assert found.unknown["users"] == 0
    assert len(slates) >= 4


@pytest.mark.parametrize("text_ids", [False, True])
@pytest.mark.parametrize("config", [CONFIG, WITHOUT_QUERIES], ids=["queries", "none"])
def test_a_log_in_which_nobody_is_known_has_features_and_a_snapshot(tmp_path, text_ids, config):
    tables = random_tables(16, text_ids=text_ids)
    for name in ("impressions", "purchases"):
        kind = tables[name].schema.field("user_id").type
        tables[name] = with_users(tables[name], pa.nulls(len(tables[name]), kind))
    feature_set = built(tmp_path, tables, config, buckets=2)
    assert (feature_set.manifest.num_users, feature_set.manifest.events) == (0, 0)
    assert feature_set.manifest.empty_history_share["test"] == 1
    snapshot = build_snapshot(
        tmp_path / "data", feature_set, tmp_path / "snapshot", as_of_us=START_US + 6 * 86_400_000_000
    )
    products = snapshot.product_ids().to_pylist()[:2]
    found = OnlineFeatures(snapshot).rows(ScoreRequest(None, None, products))
    other = OnlineFeatures(snapshot).rows(ScoreRequest("x" if text_ids else 7, None, products))
    assert (found.unknown["users"], other.unknown["users"]) == (0, 1)
    np.testing.assert_array_equal(found.request_dense_F, other.request_dense_F)
    assert not len(found.history)
