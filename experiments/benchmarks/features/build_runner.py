"""Our feature build on one thread, in a process of its own.

`python -m experiments.benchmarks.features.build_runner LOGS OUT CONFIG [MEMORY_LIMIT]`, with a name of
`CONFIGS` or a JSON file.
"""

import sys
from pathlib import Path

from experiments.benchmarks.features.feature_logs import (
    HISTORY_DAYS,
    PRIOR_IMPRESSIONS,
    TEST_DAYS,
    VALIDATION_DAYS,
    WINDOWS_DAYS,
)
from features.offline.build import build
from features.schema import CounterConfig, FeatureConfig, HistoryConfig, SparseFeature, SplitConfig

#: The settings of the comparison with pandas; and counters, histories and ids for what reads the features.
CONFIGS = {
    "comparison": FeatureConfig(
        sparse=(),
        counters=CounterConfig(
            windows_days=WINDOWS_DAYS, granularity="exact", prior_impressions=PRIOR_IMPRESSIONS
        ),
        history=HistoryConfig(window_days=HISTORY_DAYS),
        split=SplitConfig(validation_days=VALIDATION_DAYS, test_days=TEST_DAYS),
    ),
    # No user id: its table would grow with the log, and scaling asks what grows although it need not.
    "cached": FeatureConfig(
        sparse=(
            SparseFeature(name="product", column="product_id"),
            SparseFeature(name="query", column="query"),
            SparseFeature(name="hour", source="timestamp", column="hour_of_day"),
        )
    ),
}


def config_of(name: str) -> FeatureConfig:
    """One of `CONFIGS`, or what a JSON file says."""
    return CONFIGS.get(name) or FeatureConfig.model_validate_json(Path(name).read_text(encoding="utf-8"))


def main(logs: str, out: str, config: str, memory_limit: str = "2GB") -> None:
    """Build features from `logs` into `out`."""
    build(Path(logs), Path(out), config_of(config), threads=1, memory_limit=memory_limit)


if __name__ == "__main__":
    main(*sys.argv[1:])
