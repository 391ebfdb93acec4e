"""The generated logs, and the pandas peer against a loop written from the definitions."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from experiments.benchmarks.features.build_runner import CONFIGS
from experiments.benchmarks.features.comparison import compare_with_pandas
from experiments.benchmarks.features.feature_logs import HISTORY_DAYS, LogSize, write_feature_logs
from experiments.benchmarks.features.pandas_features import pandas_features
from experiments.benchmarks.features.scaling import ScalingBenchmark, run_scaling_benchmark
from experiments.benchmarks.features.spark import SparkBenchmark, run_spark_benchmark
from features.columns.clock import DAY_US
from features.feature_set import FeatureSet
from features.offline.build import build
from features.progress import silent
from tests.features.distributed.test_spark_engine import NO_SPARK

SIZE = LogSize(3_000, 1_200, products=60, queries=20, days=60)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    write_feature_logs(folder, SIZE, seed=5)
    return folder


@pytest.fixture(scope="module")
def peer(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pandas")
    pandas_features(logs, out)
    return out


@pytest.fixture(scope="module")
def ours(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    out = tmp_path_factory.mktemp("ours") / "features"
    build(logs, out, CONFIGS["comparison"], threads=1)
    return FeatureSet.open(out)


def test_logs_are_in_time_order_and_have_ties_and_edge_instants(logs: Path) -> None:
    impressions, purchases = _read(logs)
    assert len(impressions) == SIZE.impressions
    assert len(purchases) == SIZE.purchases
    assert impressions["us"].is_monotonic_increasing
    assert purchases["us"].is_monotonic_increasing
    assert impressions["us"].duplicated().mean() > 0.3
    pairs = impressions.merge(purchases, on="user_id")
    assert ((pairs["us_x"] - pairs["us_y"]) == 0).any()
    assert ((pairs["us_x"] - pairs["us_y"]) == HISTORY_DAYS * DAY_US).any()


def test_clicks_follow_their_impressions(logs: Path) -> None:
    frame = pd.read_parquet(logs / "impressions.parquet")
    assert (frame["click_timestamp"].notna() == (frame["clicked"] == 1)).all()
    clicked = frame[frame["clicked"] == 1]
    assert (clicked["click_timestamp"] > clicked["timestamp"]).all()


def test_empty_logs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one impression"):
        write_feature_logs(tmp_path, LogSize(0, 10), seed=0)


def test_the_pandas_peer_equals_a_loop_over_the_definitions(logs: Path, peer: Path) -> None:
    impressions, purchases = _read(logs)
    moments = json.loads((peer / "moments.json").read_text())
    rows = pd.concat(
        [
            pq.read_table(peer / split / "part-00000.parquet").to_pandas()
            for split in ("train", "validation", "test")
        ],
        ignore_index=True,
    )
    products_E = np.load(peer / "history" / "product_index.npy")
    for position in np.random.default_rng(0).choice(len(rows), 60, replace=False):
        row = rows.iloc[position]
        shown = impressions.iloc[row["impression_id"]]
        past = purchases[
            (purchases["user_id"] == shown["user_id"])
            & (purchases["us"] < shown["us"])
            & (purchases["us"] >= shown["us"] - HISTORY_DAYS * DAY_US)
        ]
        assert products_E[row["history_start"] : row["history_end"]].tolist() == past["product_id"].tolist()
        for key, same in (
            ("query", impressions["query"] == shown["query"]),
            ("user", impressions["user_id"] == shown["user_id"]),
            (
                "query_product",
                (impressions["query"] == shown["query"]) & (impressions["product_id"] == shown["product_id"]),
            ),
        ):
            since = shown["us"] - 7 * DAY_US
            expected = {
                "impressions": (same & impressions["us"].between(since, shown["us"], inclusive="left")).sum(),
                "clicks": (
                    same & impressions["click_us"].between(since, shown["us"], inclusive="left")
                ).sum(),
            }
            for quantity, count in expected.items():
                name = f"{key}_{quantity}_7d"
                mean, sd = moments[name]
                assert round(np.expm1(row[name] * sd + mean)) == count


def test_our_build_and_the_pandas_peer_are_identical(ours: FeatureSet, peer: Path) -> None:
    comparison = compare_with_pandas(ours, peer)
    assert comparison.differences == ()
    assert comparison.identical
    assert comparison.rows == SIZE.impressions


def test_a_single_changed_count_is_noticed(ours: FeatureSet, peer: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    _copy(peer, changed)
    path = changed / "test" / "part-00000.parquet"
    table = pq.read_table(path).to_pandas()
    mean, sd = json.loads((peer / "moments.json").read_text())["user_impressions_28d"]
    column = table["user_impressions_28d"].to_numpy().copy()
    count = np.rint(np.expm1(column[0] * sd + mean))
    column[0] = (np.log1p(count + 1) - mean) / sd
    table["user_impressions_28d"] = column
    table.to_parquet(path, index=False)
    assert compare_with_pandas(ours, changed).differences == ("test/user_impressions_28d",)


def test_a_changed_history_is_noticed(ours: FeatureSet, peer: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    _copy(peer, changed)
    array = np.load(changed / "history" / "product_index.npy")
    array[0] += 1
    np.save(changed / "history" / "product_index.npy", array)
    assert compare_with_pandas(ours, changed).differences == ("history/product_index",)


def _read(logs: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    impressions = pd.read_parquet(logs / "impressions.parquet")
    purchases = pd.read_parquet(logs / "purchases.parquet").sort_values(["timestamp", "purchase_id"])
    for frame in (impressions, purchases):
        frame["us"] = frame["timestamp"].astype("int64")
    impressions["click_us"] = impressions["click_timestamp"].astype("int64")
    return impressions, purchases


def _copy(source: Path, target: Path) -> None:
    import shutil

    shutil.copytree(source, target)


def test_scaling_builds_and_trains_at_the_size_asked_for(tmp_path: Path) -> None:
    benchmark = ScalingBenchmark(2_000, 800, factors=(2,))
    found = run_scaling_benchmark(benchmark, work=tmp_path, progress=silent)
    assert found["rows"] == [4_000]
    assert all(seconds > 0 for part in ("build", "training") for seconds in found[part]["cpu_s"])


@pytest.mark.spark
@pytest.mark.skipif(NO_SPARK, reason="needs pyspark and Java 17: make setup EXTRA=spark")
def test_spark_and_duckdb_are_measured_on_the_tables_given_and_agree(logs: Path, tmp_path: Path) -> None:
    found = run_spark_benchmark(SparkBenchmark(driver_memory="1g"), work=tmp_path, data=logs, progress=silent)
    assert found["identical"]
    assert found["rows"] == len(pq.read_table(logs / "impressions.parquet"))
    # Java starts alone costs more than the whole build of so few rows by DuckDB.
    assert found["spark"]["cpu_s"] > found["spark"]["start_cpu_s"] > 1
    assert found["spark"]["peak_mib"] > found["duckdb"]["peak_mib"]
