"""A snapshot is whole or refused, of the moment it says, and light to open."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.columns.clock import DAY_US
from features.columns.counters import UNIT_US
from features.feature_set import FeatureSet
from features.offline.log_checks import LogError
from features.online.build_snapshot import build_snapshot
from features.online.snapshot import Pairs, Snapshot, SnapshotError, schema_fingerprint
from tests.features.small_logs import START_US, Expected
from tests.features.small_market import WIDE, Market, tables_of

NOW_US = START_US + 6 * DAY_US + 5_000_000_000


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    return Market(tmp_path_factory.mktemp("market"), WIDE, seed=3)


@pytest.fixture(scope="module")
def snapshot(market):
    return market.snapshot(NOW_US)


@pytest.mark.parametrize("granularity", ["exact", "hour"])
def test_raw_counts_equal_a_loop_over_the_log(tmp_path, granularity):
    config = WIDE.model_copy(
        update={"counters": WIDE.counters.model_copy(update={"granularity": granularity})}
    )
    market = Market(tmp_path, config, seed=4)
    snapshot = market.snapshot(NOW_US)
    log = Expected(tables_of(4, text_ids=False), config)
    until_us = NOW_US // UNIT_US[granularity] * UNIT_US[granularity]
    assert snapshot.manifest.counters_as_of_us == until_us
    log_times = {"impressions": log.time_us, "clicks": log.click_us}
    queries, products = snapshot.queries.ids().to_pylist(), snapshot.product_ids().to_pylist()
    ids = {"query": queries, "product": products, "user": snapshot.users.ids().to_pylist()}
    shown_us = log.time_us
    for key in ("query", "product", "user", "query_product"):
        of_row = log.key(key)
        if key == "query_product":
            keys = [(query, product) for query in queries for product in products]
            place = [
                int(snapshot.pairs.find(number, np.array([position]))[0])
                for number in range(len(queries))
                for position in range(len(products))
            ]
        else:
            keys, place = ids[key], range(len(ids[key]))
        for value, row in zip(keys, place, strict=True):
            own = np.array([one == value for one in of_row]) & (shown_us < NOW_US)
            expected = []
            for days in config.counters.windows_days:
                for times in log_times.values():
                    inside = own & (times >= until_us - days * DAY_US) & (times < until_us)
                    expected.append(int(inside.sum()))
            assert snapshot.counts[key][row].tolist() == expected
    assert all((table[-1] == 0).all() for table in snapshot.counts.values())


def test_the_manifest_says_what_is_inside(market, snapshot):
    manifest = snapshot.manifest
    assert manifest.as_of == "2023-12-15T01:23:20+00:00"
    assert manifest.num_products == len(snapshot.products) == 7
    assert manifest.num_users == len(snapshot.users)
    assert manifest.num_queries == len(snapshot.queries) == 4
    assert manifest.num_purchases == len(snapshot.purchases.product_E) > 0
    assert manifest.num_pairs == len(snapshot.pairs.product_M) > 0
    assert manifest.last_impression < manifest.as_of
    assert manifest.dense_columns == market.feature_set.manifest.dense_columns
    assert (snapshot.purchases.time_us_E < NOW_US).all()
    assert (snapshot.purchases.time_us_E >= NOW_US - 3 * DAY_US).all()


def test_users_and_queries_of_the_future_are_unknown(tmp_path, market):
    tables = {path.stem: pq.read_table(path) for path in market.data.glob("*.parquet")}
    late = tables["impressions"].slice(0, 1).to_pylist()[0]
    moment = pa.scalar(NOW_US, pa.timestamp("us", tz="UTC")).as_py()
    late |= {"impression_id": 10**6, "timestamp": moment, "user_id": 777, "query": "of tomorrow"}
    late |= {"click_timestamp": None, "clicked": 0}
    schema = tables["impressions"].schema
    tables["impressions"] = pa.concat_tables(
        [tables["impressions"], pa.Table.from_pylist([late], schema=schema)]
    )
    for name, table in tables.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
    out = tmp_path / "snapshot"
    at = build_snapshot(tmp_path, market.feature_set, out, as_of_us=NOW_US)
    assert (at.users.find_one(777), at.queries.find_one("of tomorrow")) == (-1, -1)
    after = build_snapshot(tmp_path, market.feature_set, out, as_of_us=NOW_US + 1)
    assert after.users.find_one(777) >= 0
    assert after.queries.find_one("of tomorrow") >= 0


def test_any_changed_or_missing_file_is_named(market, snapshot, tmp_path):
    for name in ("products_dense.npy", "vocabularies/user/key.npy", "counters/user.npy", "history/start.npy"):
        copy = market.snapshot(NOW_US, f"copy {name.replace('/', ' ')}").folder
        content = bytearray((copy / name).read_bytes())
        content[-1] ^= 1
        (copy / name).write_bytes(bytes(content))
        with pytest.raises(SnapshotError, match=f"{name} has changed"):
            Snapshot.open(copy)
        (copy / name).unlink()
        with pytest.raises(SnapshotError, match=f"{name} is missing"):
            Snapshot.open(copy)
        with pytest.raises(SnapshotError, match="again"):
            Snapshot.open(copy, verify=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a feature snapshot"),
        ("{", "cannot be read"),
        ('{"format": 99}', "has format 99, this version reads 1"),
        ("[]", "has format None"),
        ('{"format": 1}', "cannot be read"),
    ],
)
def test_a_folder_that_is_no_snapshot_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(SnapshotError, match=message):
        Snapshot.open(tmp_path)


def test_a_moment_before_the_log_is_refused_and_nothing_is_left(market, tmp_path):
    with pytest.raises(LogError, match=r"no impression before 2023-12-09T00:00:00.*choose a later time"):
        build_snapshot(market.data, market.feature_set, tmp_path / "out", as_of_us=START_US)
    assert list(tmp_path.iterdir()) == []


def test_a_moment_long_after_the_log_counts_nothing(market):
    late = market.snapshot(NOW_US + 1_000 * DAY_US)
    assert late.manifest.num_pairs == late.manifest.num_purchases == 0
    assert {key: int(count_KC.sum()) for key, count_KC in late.counts.items()} == dict.fromkeys(
        late.counts, 0
    )


def test_ids_of_another_type_than_the_feature_sets_are_refused(market, tmp_path):
    other = Market(tmp_path, WIDE, seed=3, text_ids=True)
    with pytest.raises(SnapshotError, match="user_id is string, but int64 in the feature set"):
        build_snapshot(other.data, market.feature_set, tmp_path / "out", as_of_us=NOW_US)


def test_only_a_snapshot_or_an_empty_folder_is_replaced(market, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="something of another kind"):
        build_snapshot(market.data, market.feature_set, tmp_path, as_of_us=NOW_US)
    for source in (market.data, market.feature_set.folder, market.folder):
        with pytest.raises(ValueError, match="would replace the input"):
            build_snapshot(market.data, market.feature_set, source, as_of_us=NOW_US)
    FeatureSet.open(market.feature_set.folder)


def test_progress_is_reported(market):
    steps = []
    build_snapshot(
        market.data,
        market.feature_set,
        market.folder / "watched",
        as_of_us=NOW_US,
        progress=lambda *step: steps.append(step),
    )
    assert steps == [("writing the snapshot", step, 4) for step in (1, 2, 3, 4)]


def test_the_fingerprint_is_of_what_a_model_depends_on(market, snapshot, tmp_path):
    same = market.snapshot(NOW_US + DAY_US, "later")
    assert same.manifest.schema_fingerprint == snapshot.manifest.schema_fingerprint
    assert schema_fingerprint(market.feature_set) == snapshot.manifest.schema_fingerprint
    other = Market(tmp_path, WIDE, seed=9)
    assert schema_fingerprint(other.feature_set) != snapshot.manifest.schema_fingerprint


def test_pairs_are_found_within_their_query():
    pairs = Pairs(np.array([0, 2, 2, 3]), np.array([1, 4, 4], np.int32))
    asked = np.array([4, 1, 0, -1, 9])
    assert pairs.find(0, asked).tolist() == [1, 0, -1, -1, -1]
    assert pairs.find(1, asked).tolist() == [-1] * 5
    assert pairs.find(2, asked).tolist() == [2, -1, -1, -1, -1]
    assert pairs.find(-1, asked).tolist() == [-1] * 5


def test_a_server_imports_no_engine_and_no_trainer():
    """A worker opens snapshots and makes rows with NumPy, Arrow and pydantic alone."""
    code = (
        "import json, sys\n"
        "import features.online.request_features, features.online.snapshot\n"
        "import features.columns.id_map, features.online.request\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert "pyarrow" in loaded
    assert not loaded & {"duckdb", "pandas", "sklearn", "torch", "torchrec", "fbgemm_gpu", "transformers"}
