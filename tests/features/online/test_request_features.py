"""Law: what a server reads of an impression, by a snapshot of its moment, is its offline row, bit for bit."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.batches.pretrained_rows import PurchaseBags
from features.columns.counters import UNIT_US
from features.online.build_snapshot import build_snapshot
from features.online.request import RequestError, ScoreRequest
from features.online.request_features import OnlineFeatures
from features.schema import DenseFeature
from tests.features.small_logs import CONFIG, START_US, WITHOUT_QUERIES
from tests.features.small_market import WIDE, Market, assert_equal_rows


@pytest.mark.parametrize(
    ("granularity", "text_ids"), [("exact", False), ("hour", False), ("day", False), ("hour", True)]
)
def test_the_online_row_is_the_offline_row_bit_for_bit(tmp_path, granularity, text_ids):
    counters = WIDE.counters.model_copy(update={"granularity": granularity})
    market = Market(
        tmp_path, WIDE.model_copy(update={"counters": counters}), seed=5 + text_ids, text_ids=text_ids
    )
    unit_us = UNIT_US[granularity]
    by_moment = {}
    for slate in market.slates():
        by_moment.setdefault(int(market.time_us[slate[0]]) // unit_us * unit_us, []).append(slate)
    moments = sorted(by_moment)
    checked = 0
    for moment in moments[:: max(len(moments) // 3, 1)]:
        online = OnlineFeatures(market.snapshot(moment))
        for slate in by_moment[moment]:
            found = online.rows(market.request(slate))
            assert_equal_rows(found, market, slate)
            assert found.unknown["products"] == found.unknown["history"] == 0
            checked += len(slate)
    assert checked >= 3


@pytest.mark.parametrize("where", ["context", "candidate_columns"])
def test_a_live_number_beyond_what_the_network_reads_is_refused_by_name(tmp_path, where):
    market = Market(
        tmp_path, CONFIG.model_copy(update={"dense": (DenseFeature(name="number", column="price"),)})
    )
    context = ("price",) if where == "context" else ()
    online = OnlineFeatures(market.snapshot(START_US + 6 * 86_400_000_000), context_columns=context)
    given = {"context": {"price": 1e200}, "candidate_columns": {"price": [1e200]}}[where]
    with pytest.raises(RequestError, match=rf"{where}\.price: 1e\+200 came; send a value as it was logged"):
        online.rows(ScoreRequest(None, None, [0], **{where: given}))


@pytest.mark.parametrize("where", ["context", "candidate_columns"])
@pytest.mark.parametrize("transform", ["log", "standard"])
@pytest.mark.parametrize(("price", "came"), [(-1e308, r"-1e\+308"), (-0.5, "-0.5"), (1e9, r"1e\+09")])
def test_a_live_number_that_cannot_mean_what_it_did_in_training_is_refused(
    tmp_path, where, transform, price, came
):
    feature = DenseFeature(name="number", column="price", transform=transform)
    market = Market(tmp_path, CONFIG.model_copy(update={"dense": (feature,)}))
    context = ("price",) if where == "context" else ()
    online = OnlineFeatures(market.snapshot(START_US + 6 * 86_400_000_000), context_columns=context)
    low, high = market.snapshot(START_US + 6 * 86_400_000_000).manifest.transforms["number"].bounds
    assert 0 <= low < high < 1e5

    def asked(value):
        given = {"context": {"price": value}, "candidate_columns": {"price": [high, value]}}[where]
        return online.rows(ScoreRequest(None, None, [0, 1], **{where: given}))

    for value in (0.0, low, high, 10 * high, None):
        asked(value)
    at = "" if where == "context" else " for candidate 1"
    with pytest.raises(
        RequestError, match=rf"{where}\.price: {came}{at} came; send a value as it was logged"
    ):
        asked(price)


def test_purchases_of_a_snapshot_of_the_moment_are_those_of_the_impression(tmp_path):
    market = Market(tmp_path, CONFIG)
    start, end = (market.rows[f"history_{side}"].to_numpy() for side in ("start", "end"))
    shortest_first = np.argsort(end - start, kind="stable")
    lengths = []
    for row in shortest_first[[0, len(start) // 2, -2, -1]].tolist():
        online = OnlineFeatures(market.snapshot(market.time_us[row]))
        known = online.rows(market.request([row], history=None)).history
        given = online.rows(market.request([row])).history
        assert known.tolist() == given.tolist()
        assert online.snapshot.product_ids().take(pa.array(known)).to_pylist() == market.history(row)[:4]
        lengths.append(len(known))
    assert 0 in lengths
    assert max(lengths) == 4


def test_a_request_later_than_the_snapshot_forgets_what_has_left_the_window(tmp_path):
    market = Market(tmp_path, CONFIG)
    as_of_us = START_US + 6 * 86_400_000_000
    snapshot = market.snapshot(as_of_us)
    online = OnlineFeatures(snapshot)
    user = int(np.argmax(np.diff(snapshot.purchases.start_U)))
    user_id = snapshot.users.ids()[user].as_py()
    start, end = snapshot.purchases.start_U[user : user + 2]
    times = snapshot.purchases.time_us_E[start:end]
    assert len(set(times.tolist())) > 2
    for time_us in [*times, *(times + 1), times[-1] + 3 * 86_400_000_000 + 1, *(times + 3 * 86_400_000_000)]:
        expected = [
            int(product)
            for product, bought in zip(snapshot.purchases.product_E[start:end], times, strict=True)
            if time_us - 3 * 86_400_000_000 <= bought < time_us
        ]
        found = online.rows(ScoreRequest(user_id, None, [0], int(time_us)))
        assert found.history.tolist() == expected[::-1][:4]


@pytest.mark.parametrize("deduplicate", [False, True])
def test_a_history_is_the_bag_of_the_loader(tmp_path, deduplicate):
    """Purchases without a vector are left out before the cap, repeats as the schema says."""
    history = CONFIG.history.model_copy(update={"deduplicate": deduplicate, "cap": 2})
    market = Market(tmp_path, CONFIG.model_copy(update={"history": history}))
    feature_set = market.feature_set
    product_row_P = np.array([0, 1, 2, 0, 3, 4, 5])
    bags = PurchaseBags(
        feature_set.history_product_index(),
        feature_set.history_next_same_product(),
        product_row_P,
        cap=2,
        deduplicate=deduplicate,
    )
    snapshot = market.snapshot(market.time_us.max())
    online = OnlineFeatures(snapshot, product_has_vector=product_row_P != 0)
    start, end = (market.rows[f"history_{side}"].to_numpy() for side in ("start", "end"))
    bag, length = bags.expand(start, end)
    ends = np.cumsum(length)
    for row in range(len(market.rows)):
        found = online.rows(market.request([row]))
        assert product_row_P[found.history].tolist() == bag[ends[row] - length[row] : ends[row]].tolist()
    assert length.max() == 2


def test_a_log_without_queries_has_the_law_too(tmp_path):
    market = Market(tmp_path, WITHOUT_QUERIES)
    row = len(market.rows) // 2
    online = OnlineFeatures(market.snapshot(market.time_us[row]))
    assert_equal_rows(online.rows(market.request([row])), market, [row])


@pytest.mark.parametrize("left_out", ["counters", "history"])
def test_a_schema_without_counters_or_histories_has_the_law_too(tmp_path, left_out):
    market = Market(tmp_path, CONFIG.model_copy(update={left_out: None}))
    row = len(market.rows) // 2
    online = OnlineFeatures(market.snapshot(market.time_us[row]))
    changes = {"history": None} if left_out == "history" else {}
    found = online.rows(market.request([row], **changes))
    assert_equal_rows(found, market, [row])
    assert left_out == "counters" or not len(found.history)


def test_what_happens_at_the_moment_or_later_changes_no_byte_of_a_snapshot(tmp_path):
    market = Market(tmp_path, CONFIG)
    as_of_us = int(np.median(market.time_us))
    whole = market.snapshot(as_of_us, "whole")
    cut = tmp_path / "cut"
    shutil.copytree(market.data, cut)
    for name in ("impressions", "purchases"):
        table = pq.read_table(cut / f"{name}.parquet")
        past = table["timestamp"].cast(pa.int64()).to_numpy() < as_of_us
        assert 0 < past.sum() < len(past)
        pq.write_table(table.filter(pa.array(past)), cut / f"{name}.parquet")
    shown = pq.read_table(cut / "impressions.parquet")
    clicked_us = shown["click_timestamp"].cast(pa.int64()).fill_null(0).to_numpy()
    assert (clicked_us >= as_of_us).any()
    unclicked = pa.array(clicked_us >= as_of_us)
    for name, nothing in (("clicked", pa.scalar(0, pa.int8())), ("click_timestamp", None)):
        place = shown.schema.get_field_index(name)
        shown = shown.set_column(place, name, pa.compute.if_else(unclicked, nothing, shown[name]))
    pq.write_table(shown, cut / "impressions.parquet")
    of_past = build_snapshot(cut, market.feature_set, tmp_path / "past", as_of_us=as_of_us)
    assert of_past.manifest == whole.manifest
    assert len(whole.manifest.checksums) > 20


def test_all_candidates_equal_each_alone_and_the_two_parts_are_the_whole(tmp_path):
    market = Market(tmp_path, WIDE)
    slate = max(market.slates(), key=len)
    snapshot = market.snapshot(market.time_us[slate[0]])
    rows = slate * 3
    together = OnlineFeatures(snapshot).rows(market.request(rows))
    for place, row in enumerate(rows):
        alone = OnlineFeatures(snapshot).rows(market.request([row]))
        np.testing.assert_array_equal(together.dense_NF[place], alone.dense_NF[0])
        np.testing.assert_array_equal(together.sparse_NS[place], alone.sparse_NS[0])
    online = OnlineFeatures(snapshot, context_columns=["store_id"])
    row = slate[:1]
    request = market.request(row)
    parted = online.rows(request)
    np.testing.assert_array_equal(parted.dense_NF, OnlineFeatures(snapshot).rows(request).dense_NF)
    names = (*snapshot.manifest.dense_columns, *(c.name for c in snapshot.manifest.sparse_columns))
    assert len(online.request_columns) == len(parted.request_dense_F) + len(parted.request_sparse_S)
    assert {"store", "store_number", "store_number_missing"} <= set(online.request_columns)
    both = dict(zip(names, [*parted.dense_NF[0], *parted.sparse_NS[0]], strict=True))
    shared = [*parted.request_dense_F, *parted.request_sparse_S]
    assert shared == [both[name] for name in online.request_columns]
