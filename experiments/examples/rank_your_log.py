"""Rank your log: input tables to features, a trained ranker, and its AUC on the last seven days.

    python -m experiments.examples.rank_your_log DATA OUT

DATA holds products, impressions and, if you have them, purchases, as Parquet or CSV files (times with a zone:
2024-05-01T12:00:00Z). OUT receives the features and the run; a second call goes on where the first one was.
"""

import sys
from pathlib import Path

import pyarrow.csv as csv
import pyarrow.parquet as pq

from experiments.api import (
    FeatureConfig,
    InputTables,
    RunConfig,
    SparseFeature,
    build_features,
    check_or_raise,
    environment,
    execute_run,
)

#: Ids that get a trainable embedding. Counters and purchase histories come by themselves.
IDS = ("user_id", "product_id", "query")


def parquet_tables(data: Path, out: Path) -> Path:
    """The folder of Parquet tables: DATA itself, or OUT with DATA's CSV files converted."""
    for path in data.glob("*.csv"):
        out.mkdir(parents=True, exist_ok=True)
        parquet = out / f"{path.stem}.parquet"
        pq.write_table(csv.read_csv(path), parquet, coerce_timestamps="us", allow_truncated_timestamps=True)
    return out if out.exists() else data


def rank(data: Path, out: Path) -> float:
    """Train a ranker on the log in `data`; its AUC on the test days."""
    data = parquet_tables(data, out / "data")
    check_or_raise(InputTables.open(data))
    features = FeatureConfig(sparse=tuple(SparseFeature(name=name, column=name) for name in IDS))
    build_features(data, out / "features", features)
    run = RunConfig(variant="dcn", seed=1, features=out / "features")
    metrics = execute_run(run, out / "dcn", environment=environment(), resume=True)
    return float(metrics["test"]["auc"])


if __name__ == "__main__":
    print(f"AUC on the test days: {rank(Path(sys.argv[1]), Path(sys.argv[2])):.4f}")
