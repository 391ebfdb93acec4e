"""Clicks find the impression that they belong to, and the tables that come out are as features take them."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.inputs.tables import InputTables
from features.inputs.validation import check_or_raise
from features.online.request import ScoreRequest
from features.online.snapshot import Snapshot
from serving.feature_log.feature_log import FeatureLog, FeatureLogSettings
from serving.feature_log.join_clicks import Joined, join_clicks, latest_before
from serving.feature_log.log_files import logged_files, write_rows
from serving.feature_log.user_keys import read_key
from serving.package.parity import read_requests
from serving.scoring.predictor import Predictor
from serving.servers.measures import Measures
from tests.serving.small_packages import AS_OF_US

HOUR_US = 3_600_000_000
UTC_US = pa.timestamp("us", tz="UTC")


def slow_latest(keys: list[int], times: list[int], key: int, time: int) -> int:
    best = -1
    for row, (own, at) in enumerate(zip(keys, times, strict=True)):
        if own == key and at <= time and (best < 0 or at >= times[best]):
            best = row
    return best


EVENTS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)))
Events = list[tuple[int, int]]


@settings(deadline=None)
@given(EVENTS, EVENTS)
def test_the_latest_before_is_that_of_a_loop(rows: Events, asked: Events) -> None:
    keys, times = [key for key, _ in rows], [time for _, time in rows]
    found = latest_before(
        np.array(keys, np.int64).reshape(-1, 1),
        np.array(times, np.int64),
        np.array([key for key, _ in asked], np.int64).reshape(-1, 1),
        np.array([time for _, time in asked], np.int64),
    )
    assert found.tolist() == [slow_latest(keys, times, key, time) for key, time in asked]


@pytest.fixture
def served(small_run: Path, tmp_path: Path) -> SimpleNamespace:
    """A log of the recorded requests, all at the moment of the snapshot and an hour apart, and its folder."""
    predictor = Predictor.load(small_run / "package")
    log = FeatureLogSettings(folder=tmp_path / "log", share=1.0, limit_mb=10, key_file=tmp_path / "key")
    log.prepare()
    writer = FeatureLog(log, Measures())
    requests = [
        replace(request, timestamp_us=AS_OF_US + number * HOUR_US)
        for number, request in enumerate(read_requests(small_run / "package"))
    ]
    for number, request in enumerate(requests):
        reply = predictor.score(request)
        writer.saw(request, reply, f"r{number}")
        if number == 0:
            writer.saw(request, replace(reply, is_shadow=True, variant="b"), "r0")
    writer.close()
    return SimpleNamespace(
        requests=requests, folder=log.folder, key=read_key(log.key_file), data=small_run / "data"
    )


def clicks_file(path: Path, rows: list[dict[str, object]]) -> Path:
    columns: dict[str, list[object]] = {name: [row[name] for row in rows] for name in rows[0]}
    times = pa.array(columns.pop("timestamp"), pa.int64()).cast(UTC_US)
    pq.write_table(pa.table({"timestamp": times, **columns}), path)
    return path


def join(
    served: SimpleNamespace, out: Path, clicks: list[dict[str, object]], **changes: object
) -> tuple[Joined, pa.Table]:
    path = clicks_file(out.with_name("clicks.parquet"), clicks)
    fields = {"data": served.data, "key": served.key, "within_us": 24 * HOUR_US, **changes}
    joined, _ = join_clicks(served.folder, path, out, **fields)
    return joined, pq.read_table(out / "impressions" / "served.parquet")


def click(request: ScoreRequest, *, after_us: int, place: int = 0, **fields: object) -> dict[str, object]:
    return {
        "timestamp": (request.timestamp_us or 0) + after_us,
        "product_id": request.candidates[place].as_py(),
        **fields,
    }


def test_every_served_candidate_is_an_impression_and_the_tables_are_valid(
    served: SimpleNamespace, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    joined, table = join(served, out, [click(served.requests[1], after_us=5, request_id="r1")])
    expected = [id_ for request in served.requests for id_ in request.candidates.to_pylist()]
    assert table["product_id"].to_pylist() == expected
    assert joined.impressions == len(expected)
    assert joined.requests == len(served.requests)
    assert joined.share == 1.0
    users = [request.user_id for request in served.requests for _ in request.candidates]
    assert table["user_id"].to_pylist() == users
    assert joined.unknown_users == 0
    prices = [one for request in served.requests for one in request.candidate_columns["price"]]
    known = [(None if one is None or np.isnan(one) else one) for one in prices]
    assert table["price"].to_pylist() == pytest.approx(known, nan_ok=True)
    stores = [request.context["store_id"] for request in served.requests for _ in request.candidates]
    assert table["store_id"].to_pylist() == stores
    assert joined.absent == ()
    tables = InputTables.open(out)
    check_or_raise(tables)
    before = pq.read_table(out / "impressions" / "before.parquet")
    log = pq.read_table(served.data / "impressions.parquet")
    past = pc.less(log["timestamp"].cast(pa.int64()), AS_OF_US)
    assert before.num_rows == joined.before == log.filter(past).num_rows
    assert tables.rows("purchases") == pq.read_table(served.data / "purchases.parquet").num_rows
    assert json.loads((out / "source.json").read_text())["joined"]["requests"] == joined.requests


@pytest.mark.parametrize("by", ["request_id", "user_id"])
def test_a_click_counts_for_its_impression_within_the_window(
    served: SimpleNamespace, tmp_path: Path, by: str
) -> None:
    at = next(n for n, one in enumerate(served.requests) if one.user_id is not None)
    request = served.requests[at]
    who = {"request_id": f"r{at}", "user_id": request.user_id}
    place_of = sum(len(one.candidates) for one in served.requests[:at])
    cases = [(0, True), (1, True), (HOUR_US - 1, True), (HOUR_US, False), (-1, False)]
    for after_us, counts in cases:
        one = click(request, after_us=after_us, **{by: who[by]})
        joined, table = join(served, tmp_path / "out", [one], within_us=HOUR_US)
        found = pc.indices_nonzero(table["clicked"]).to_pylist()
        assert found == ([place_of] if counts else []), after_us
        assert (joined.clicks, joined.clicks_used, joined.clicked) == (1, int(counts), int(counts))
        if counts:
            assert table["click_timestamp"].cast(pa.int64())[place_of].as_py() == one["timestamp"]


def test_of_two_clicks_the_first_counts_and_strangers_count_for_nothing(
    served: SimpleNamespace, tmp_path: Path
) -> None:
    request = served.requests[0]
    clicks = [
        click(request, after_us=9, request_id="r0"),
        click(request, after_us=4, request_id="r0"),
        click(request, after_us=1, request_id="unknown"),
        {**click(request, after_us=1, request_id="r0"), "product_id": 10**6},
    ]
    joined, table = join(served, tmp_path / "out", clicks)
    assert (joined.clicks, joined.clicks_used, joined.clicked) == (4, 2, 1)
    assert table["click_timestamp"].cast(pa.int64())[0].as_py() == (request.timestamp_us or 0) + 4


def test_only_what_was_shown_is_an_impression(served: SimpleNamespace, tmp_path: Path) -> None:
    one = click(served.requests[0], after_us=1, request_id="r0")
    joined, table = join(served, tmp_path / "out", [one], shown=1)
    assert joined.impressions == table.num_rows == len(served.requests)


def test_a_later_log_joined_to_what_an_earlier_one_made_has_ids_of_its_own(
    served: SimpleNamespace, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for path in served.data.glob("*.parquet"):
        table = pq.read_table(path)
        if path.stem == "impressions":
            ids = table["impression_id"].cast(pa.string())
            table = table.set_column(table.column_names.index("impression_id"), "impression_id", ids)
        pq.write_table(table, data / path.name)
    one = click(served.requests[0], after_us=1, request_id="r0")
    join(served, tmp_path / "first", [one], data=data)
    for path in served.folder.glob("*/*.parquet"):
        table = pq.read_table(path)
        later = pc.add(table["timestamp"].cast(pa.int64()), 48 * HOUR_US).cast(UTC_US)
        pq.write_table(table.set_column(table.column_names.index("timestamp"), "timestamp", later), path)
    join(served, tmp_path / "second", [one], data=tmp_path / "first")
    tables = InputTables.open(tmp_path / "second")
    check_or_raise(tables)
    ids = tables.table("impressions").to_table(["impression_id"])["impression_id"]
    assert len(ids.unique()) == len(ids)


def test_another_key_makes_nobody_of_everybody_and_says_so(served: SimpleNamespace, tmp_path: Path) -> None:
    one = click(served.requests[0], after_us=1, request_id="r0")
    joined, table = join(served, tmp_path / "out", [one], key=bytes(32))
    assert table["user_id"].null_count == table.num_rows
    known = sum(len(request.candidates) for request in served.requests if request.user_id is not None)
    assert joined.unknown_users == known > 0


def test_a_rank_column_is_the_served_rank_from_one(served: SimpleNamespace, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for path in served.data.glob("*.parquet"):
        table = pq.read_table(path)
        if path.stem == "impressions":
            table = table.append_column("position", pa.array([1] * table.num_rows, pa.int8()))
        pq.write_table(table, data / path.name)
    one = click(served.requests[0], after_us=1, request_id="r0")
    joined, table = join(served, tmp_path / "plain", [one], data=data)
    assert (joined.absent, table["position"].null_count) == (("position",), table.num_rows)
    joined, table = join(served, tmp_path / "ranked", [one], data=data, rank_column="position")
    count = len(served.requests[0].candidates)
    assert sorted(table["position"].to_pylist()[:count]) == [*range(1, count + 1)]
    assert joined.absent == ()
    with pytest.raises(ValueError, match="'place' is none of the impressions"):
        join(served, tmp_path / "no", [one], data=data, rank_column="place")


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([{"timestamp": 1, "product_id": 0}], "needs timestamp, product_id, and request_id or user_id"),
        ([{"timestamp": 1, "user_id": 0}], "needs timestamp, product_id"),
        ([{"timestamp": 1, "user_id": 0, "product_id": "a"}], "product_id is string, the tables have int64"),
        ([{"timestamp": 1, "user_id": 0, "product_id": None}], "product_id"),
    ],
)
def test_clicks_that_cannot_be_used_are_refused(
    served: SimpleNamespace, tmp_path: Path, rows: list[dict[str, object]], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        join(served, tmp_path / "out", rows)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def by_hand(tmp_path: Path) -> SimpleNamespace:
    """A log of one request, r0: products 1 and 2 with what a client gave of each, and four small tables."""
    data = tmp_path / "data"
    data.mkdir()
    pq.write_table(
        pa.table({"product_id": [1, 2], "title": ["a", "b"], "aisle": ["x", "x"]}), data / "products.parquet"
    )
    impressions = {
        "impression_id": [1],
        "timestamp": pa.array([AS_OF_US - HOUR_US], UTC_US),
        "user_id": [7],
        "product_id": [1],
        "clicked": pa.array([0], pa.int8()),
        "store_id": [3],
        "price": [1.5],
    }
    pq.write_table(pa.table(impressions), data / "impressions.parquet")

    def log(*given: dict[str, object]) -> Path:
        rows = {
            "request_id": ["r0"] * len(given),
            "timestamp": pa.array([AS_OF_US] * len(given), UTC_US),
            "user": pa.nulls(len(given), pa.string()),
            "query": pa.nulls(len(given), pa.string()),
            "product_id": list(range(1, len(given) + 1)),
            "candidate": list(range(len(given))),
            "rank": list(range(len(given))),
            "is_shadow": [False] * len(given),
            "given": [json.dumps(one) for one in given],
        }
        told = json.dumps({"model_version": "m", "share": 1.0, "left_out": []})
        write_rows(tmp_path / "log", pa.table(rows, metadata={b"dashclip": told.encode()}), limit_bytes=10**6)
        return tmp_path / "log"

    def joined(log: Path, clicks: dict[str, object]) -> pa.Table:
        pq.write_table(pa.table(clicks), tmp_path / "clicks.parquet")
        out = tmp_path / "out"
        join_clicks(log, tmp_path / "clicks.parquet", out, data=data, key=bytes(32), within_us=HOUR_US)
        return pq.read_table(out / "impressions" / "served.parquet")

    return SimpleNamespace(log=log, joined=joined, data=data)


UTC_NS = pa.timestamp("ns", tz="UTC")


def test_moments_of_clicks_may_have_nanoseconds_which_are_cut_off(by_hand: SimpleNamespace) -> None:
    at = pa.array([AS_OF_US * 1000 + 5_999], UTC_NS)
    table = by_hand.joined(by_hand.log({}, {}), {"timestamp": at, "request_id": ["r0"], "product_id": [2]})
    assert table["clicked"].to_pylist() == [0, 1]
    assert table["click_timestamp"].cast(pa.int64()).to_pylist() == [None, AS_OF_US + 5]


def test_a_click_without_a_moment_belongs_to_nothing(by_hand: SimpleNamespace) -> None:
    clicks = {"timestamp": pa.array([AS_OF_US, None], UTC_US), "request_id": ["r0"] * 2, "product_id": [1, 2]}
    assert by_hand.joined(by_hand.log({}, {}), clicks)["clicked"].to_pylist() == [1, 0]


def test_a_file_that_a_worker_removes_meanwhile_to_make_room_is_passed_over(
    by_hand: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = by_hand.log({"store_id": 1})
    by_hand.log({"store_id": 2})
    by_hand.log({"store_id": 3})
    files = logged_files(log)
    seen = [next(files)]
    first, second, _ = sorted(log.glob("*/*.parquet"))
    second.unlink()
    seen += files  # the second one is gone before it is looked at
    first.unlink()  # and the first one before its rows are read
    monkeypatch.setattr("serving.feature_log.join_clicks.logged_files", lambda _: iter(seen))
    clicks = {"timestamp": pa.array([AS_OF_US], UTC_US), "request_id": ["r0"], "product_id": [1]}
    assert by_hand.joined(log, clicks)["store_id"].to_pylist() == [3]


@pytest.mark.parametrize(("users", "came"), [(["7"], "string"), ([7.0], "double")])
def test_users_of_clicks_are_of_the_kind_that_the_tables_have(
    by_hand: SimpleNamespace, users: list[object], came: str
) -> None:
    clicks = {"timestamp": pa.array([AS_OF_US], UTC_US), "user_id": users, "product_id": [1]}
    with pytest.raises(ValueError, match=f"clicks.parquet: user_id is {came}, the tables have int64"):
        by_hand.joined(by_hand.log({}), clicks)
    unknown = clicks | {"user_id": pa.array([None], pa.int64())}  # a click of nobody finds no impression
    assert by_hand.joined(by_hand.log({}), unknown)["clicked"].to_pylist() == [0, 0]


def test_live_values_become_a_column_of_the_tables_type_or_are_refused(by_hand: SimpleNamespace) -> None:
    clicks = {"timestamp": pa.array([AS_OF_US], UTC_US), "request_id": ["r0"], "product_id": [1]}
    log = by_hand.log({"store_id": True, "price": 2}, {"store_id": 4.0, "price": None})
    table = by_hand.joined(log, clicks)  # true is 1, as in a request
    assert (table["store_id"].to_pylist(), table["price"].to_pylist()) == ([1, 4], [2.0, None])
    with pytest.raises(ValueError, match="values of 'store_id' that are no int64 as in the tables"):
        by_hand.joined(by_hand.log({"store_id": 2.5}), clicks)


@pytest.mark.parametrize("rows_at_a_time", [1, 65_536])
def test_without_a_table_of_impressions_all_live_values_are_kept_but_counters(
    by_hand: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, rows_at_a_time: int
) -> None:
    monkeypatch.setattr("serving.feature_log.join_clicks._CHUNK_ROWS", rows_at_a_time)
    (by_hand.data / "impressions.parquet").unlink()
    clicks = {"timestamp": pa.array([AS_OF_US], UTC_US), "request_id": ["r0"], "product_id": [1]}
    given = {"device": "phone", "price": 2, "user_clicks_7d": 3, "query_product_ctr_28d": 0.5, "query": "x"}
    table = by_hand.joined(by_hand.log(given, {"price": 2.5, "night": True}), clicks)
    assert table["price"].to_pylist() == [2.0, 2.5]
    assert table["device"].to_pylist() == ["phone", None]
    assert table["night"].to_pylist() == [None, True]
    assert table["query"].null_count == 2, "the log has it in a column of its own"
    assert not {"user_clicks_7d", "query_product_ctr_28d"} & {*table.column_names}
    with pytest.raises(ValueError, match=r"values of several kinds in .*device"):
        by_hand.joined(by_hand.log({"device": "phone"}, {"device": 7}), clicks)


def test_a_log_is_read_a_part_at_a_time_with_the_same_outcome(
    served: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clicks = [click(served.requests[0], after_us=1, request_id="r0")]
    whole = join(served, tmp_path / "whole", clicks, rank_column="price")
    monkeypatch.setattr("serving.feature_log.join_clicks._CHUNK_ROWS", 3)
    parts = join(served, tmp_path / "parts", clicks, rank_column="price")
    assert (whole[0], whole[1]) == (parts[0], parts[1])


def test_without_a_table_of_impressions_a_rank_column_is_made(
    by_hand: SimpleNamespace, tmp_path: Path
) -> None:
    (by_hand.data / "impressions.parquet").unlink()
    clicks = {"timestamp": pa.array([AS_OF_US], UTC_US), "request_id": ["r0"], "product_id": [1]}
    pq.write_table(pa.table(clicks), tmp_path / "clicks.parquet")
    given = {"key": bytes(32), "within_us": HOUR_US, "rank_column": "position"}
    join_clicks(
        by_hand.log({}, {}), tmp_path / "clicks.parquet", tmp_path / "out", data=by_hand.data, **given
    )
    assert pq.read_table(tmp_path / "out/impressions/served.parquet")["position"].to_pylist() == [1, 2]


@pytest.mark.parametrize("column", ["product_id", "user_id"])
def test_an_id_beyond_64_bits_is_refused_in_a_sentence(by_hand: SimpleNamespace, column: str) -> None:
    clicks = {"timestamp": pa.array([AS_OF_US], UTC_US), "user_id": [7], "product_id": [1]}
    clicks[column] = pa.array([2**63 + 5], pa.uint64())
    with pytest.raises(ValueError, match=f"{column} holds 9223372036854775813, beyond the 64-bit signed"):
        by_hand.joined(by_hand.log({}), clicks)


def test_a_folder_of_another_kind_is_left_alone(served: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError):
        join(served, tmp_path / "out", [click(served.requests[0], after_us=1, request_id="r0")])


def test_no_log_is_said(served: SimpleNamespace, tmp_path: Path) -> None:
    served.folder = tmp_path / "nothing"
    with pytest.raises(ValueError, match="holds no feature log"):
        join(served, tmp_path / "out", [click(served.requests[0], after_us=1, request_id="r0")])


def test_the_snapshot_of_the_package_is_at_the_first_request(small_run: Path) -> None:
    snapshot = Snapshot.open(small_run / "package" / "generations" / "000001" / "snapshot")
    assert snapshot.manifest.as_of_us == AS_OF_US
