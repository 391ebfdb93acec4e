"""Logged impressions come back as the requests that showed them, with exactly what they saw."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.columns.transforms import Transform
from features.feature_set import FeatureSet
from features.inputs.tables import InputTables
from features.online.request import ScoreRequest
from serving.packaging.logged_requests import LoggedImpressions, raw_counts, spread
from tests.features.small_logs import Expected
from tests.features.stored_types import stored_as


@pytest.fixture(scope="module")
def impressions(small_run: Path) -> LoggedImpressions:
    return LoggedImpressions(
        FeatureSet.open(small_run / "features"), InputTables.open(small_run / "data"), context=("store_id",)
    )


@pytest.fixture(scope="module")
def log(small_run: Path) -> pa.Table:
    return pq.read_table(small_run / "data" / "impressions.parquet")


def test_every_impression_of_the_split_is_in_one_request(impressions: LoggedImpressions) -> None:
    rows = np.concatenate(impressions.groups())
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(impressions)))


def test_more_impressions_than_a_request_may_hold_are_several_requests(
    impressions: LoggedImpressions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of nobody in a log whose moments are whole hours."""
    whole = impressions.groups()
    assert max(map(len, whole)) == 2
    monkeypatch.setattr("serving.packaging.logged_requests.MAX_CANDIDATES", 1)
    parts = impressions.groups()
    assert max(map(len, parts)) == 1
    request_of = {int(row): number for number, rows in enumerate(whole) for row in rows}
    assert all(len({request_of[int(row)] for row in rows}) == 1 for rows in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(impressions)))


def test_a_request_carries_the_ids_and_columns_of_its_impressions(
    impressions: LoggedImpressions, log: pa.Table
) -> None:
    by_id = {row["impression_id"]: row for row in log.to_pylist()}
    for one in impressions.requests():
        for candidate, row in enumerate(one.rows_N):
            logged = by_id[impressions.rows["impression_id"][int(row)].as_py()]
            request = one.request
            assert request.user_id == logged["user_id"]
            assert request.query == logged["query"]
            assert request.timestamp_us == int(logged["timestamp"].timestamp() * 1e6 + 0.5)
            assert request.candidates[candidate].as_py() == logged["product_id"]
            assert request.context["store_id"] == logged["store_id"]
            price = request.candidate_columns["price"][candidate]
            assert price == logged["price"]


def test_counters_and_purchases_are_what_the_definitions_say(
    impressions: LoggedImpressions, small_run: Path
) -> None:
    tables = {
        name: pq.read_table(small_run / "data" / f"{name}.parquet") for name in ("impressions", "purchases")
    }
    config = FeatureSet.open(small_run / "features").manifest.config
    expected = Expected(tables, config)
    place = {value: row for row, value in enumerate(expected.values("impression_id"))}
    shown, clicked = expected.counts("query_product", 2)
    user_shown, _ = expected.counts("user", 1)
    for one in impressions.requests(limit=40):
        rows = [place[impressions.rows["impression_id"][int(row)].as_py()] for row in one.rows_N]
        columns, context = one.request.candidate_columns, one.request.context
        np.testing.assert_array_equal(columns["query_product_impressions_2d"], shown[rows])
        np.testing.assert_array_equal(columns["query_product_clicks_2d"], clicked[rows])
        assert context["user_impressions_1d"] == user_shown[rows[0]]
        newest_first = [product for _, product in reversed(expected.history(rows[0]))]
        assert one.request.history is not None
        assert one.request.history.to_pylist() == newest_first


def test_without_live_features_counters_and_purchases_are_left_to_the_server(
    impressions: LoggedImpressions,
) -> None:
    request = impressions.request(impressions.groups()[0], live=False)
    assert request.history is None
    assert set(request.context) == {"store_id"}
    assert set(request.candidate_columns) == {"price"}


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(0, 100_000), min_size=1, max_size=50),
    mean=st.floats(-2, 12),
    sd=st.floats(0.05, 3),
)
def test_counts_survive_the_way_through_the_transform(counts: list[int], mean: float, sd: float) -> None:
    transform = Transform(kind="log", mean=mean, sd=sd)
    np.testing.assert_array_equal(raw_counts(transform, transform.apply(np.array(counts))), counts)


def test_a_column_that_was_constant_gives_some_count_that_reads_the_same() -> None:
    transform = Transform(kind="log", mean=float(np.log1p(3)), sd=0.0)
    np.testing.assert_array_equal(raw_counts(transform, np.zeros(2, np.float32)), [3, 3])


def test_a_limit_takes_requests_from_the_whole_split() -> None:
    assert spread(list(range(10)), 5) == [0, 2, 4, 7, 9]
    assert spread([1, 2], 5) == [1, 2]
    assert spread([1, 2], None) == [1, 2]


def test_another_log_is_refused_naming_the_impression_that_it_lacks(small_run: Path, tmp_path: Path) -> None:
    for name in ("products", "purchases"):
        table = pq.read_table(small_run / "data" / f"{name}.parquet")
        pq.write_table(table, tmp_path / f"{name}.parquet")
    shown = pq.read_table(small_run / "data" / "impressions.parquet").sort_by("timestamp")
    pq.write_table(shown.slice(0, len(shown) - 1), tmp_path / "impressions.parquet")
    lost = shown["impression_id"][len(shown) - 1].as_py()
    with pytest.raises(ValueError, match=f"impression {lost} of the feature set is not in .*impressions"):
        LoggedImpressions(
            FeatureSet.open(small_run / "features"), InputTables.open(tmp_path), context=("store_id",)
        )


def test_predictions_of_another_split_are_refused(impressions: LoggedImpressions, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is missing: the run is not finished"):
        impressions.offline_probabilities(tmp_path)
    (tmp_path / "predictions").mkdir()
    other = pa.table({"impression_id": [1, 2], "logit": pa.array([0.0, 0.0], pa.float32())})
    pq.write_table(other, tmp_path / "predictions" / "test.parquet")
    with pytest.raises(ValueError, match="is not of the test split"):
        impressions.offline_probabilities(tmp_path)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata"])
def test_a_log_stored_in_other_types_gives_the_same_requests(
    small_run: Path, impressions: LoggedImpressions, log: pa.Table, tmp_path: Path, zone: str
) -> None:
    shutil.copytree(small_run / "data", tmp_path / "data")
    path = tmp_path / "data" / "impressions.parquet"
    kinds = {"timestamp": pa.timestamp("ns", tz=zone), "user_id": pa.int32(), "store_id": pa.int16()}
    stored = {
        name: stored_as(log[name].combine_chunks(), kinds.get(name, log[name].type))
        for name in log.column_names
    }
    stored["query"] = log["query"].cast(pa.string_view())
    pq.write_table(pa.table(stored), path)
    found = LoggedImpressions(
        FeatureSet.open(small_run / "features"), InputTables.open(path.parent), context=("store_id",)
    )
    assert [as_dict(one.request) for one in found.requests()] == [
        as_dict(one.request) for one in impressions.requests()
    ]
    decimals = pc.round(log["price"], 2).cast(pa.decimal128(20, 2), safe=False)
    pq.write_table(log.set_column(log.column_names.index("price"), "price", decimals), path)
    found = LoggedImpressions(
        FeatureSet.open(small_run / "features"), InputTables.open(path.parent), context=()
    )
    by_id = dict(zip(log["impression_id"].to_pylist(), decimals.to_pylist(), strict=True))
    for one in found.requests(limit=10):
        for row, price in zip(one.rows_N, one.request.candidate_columns["price"], strict=True):
            exact = by_id[found.rows["impression_id"][int(row)].as_py()]
            assert price == (None if exact is None else float(exact))


def as_dict(request: ScoreRequest) -> dict[str, object]:
    return vars(request) | {
        "candidates": request.candidates.to_pylist(),
        "history": None if request.history is None else request.history.to_pylist(),
        "candidate_columns": {name: list(values) for name, values in request.candidate_columns.items()},
    }
