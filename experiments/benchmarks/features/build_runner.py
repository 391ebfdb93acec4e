"""Our feature build on one thread, in a process of its own.

`python -m experiments.benchmarks.features.build_runner LOGS OUT` has the settings of the comparison with
pandas; with a MEMORY_LIMIT after them, it builds counters, histories and some ids under it.
"""

import sys
from pathlib import Path

from experiments.benchmarks.features.pandas_features import (
    HISTORY_DAYS,
    PRIOR_IMPRESSIONS,
    TEST_DAYS,
    VALIDATION_DAYS,
    WINDOWS_DAYS,
)
from features.offline.build import build
from features.schema import CounterConfig, FeatureConfig, HistoryConfig, SparseFeature, SplitConfig

CONFIG = FeatureConfig(
    sparse=(),
    counters=CounterConfig(
        windows_days=WINDOWS_DAYS, granularity="exact", prior_impressions=PRIOR_IMPRESSIONS
    ),
    history=HistoryConfig(window_days=HISTORY_DAYS),
    split=SplitConfig(validation_days=VALIDATION_DAYS, test_days=TEST_DAYS),
)
#: No user id: its table would grow with the log, and the scaling benchmark asks what else grows.
CONFIG_WITH_IDS = FeatureConfig(
    sparse=(
        SparseFeature(name="product", column="product_id"),
        SparseFeature(name="query", column="query"),
        SparseFeature(name="hour", source="timestamp", column="hour_of_day"),
    )
)


def main() -> None:
    """Build features from LOGS into OUT."""
    logs, out, *memory_limit = sys.argv[1:]
    if memory_limit:
        build(Path(logs), Path(out), CONFIG_WITH_IDS, threads=1, memory_limit=memory_limit[0])
    else:
        build(Path(logs), Path(out), CONFIG, threads=1)


if __name__ == "__main__":
    main()
