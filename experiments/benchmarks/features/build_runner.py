"""Our feature build with the settings of the comparison, in a process of its own.

`python -m experiments.benchmarks.features.build_runner LOGS OUT`.
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
from features.schema import CounterConfig, FeatureConfig, HistoryConfig, SplitConfig

CONFIG = FeatureConfig(
    sparse=(),
    counters=CounterConfig(
        windows_days=WINDOWS_DAYS, granularity="exact", prior_impressions=PRIOR_IMPRESSIONS
    ),
    history=HistoryConfig(window_days=HISTORY_DAYS),
    split=SplitConfig(validation_days=VALIDATION_DAYS, test_days=TEST_DAYS),
)


def main() -> None:
    """Build features from LOGS into OUT on one thread."""
    build(Path(sys.argv[1]), Path(sys.argv[2]), CONFIG, threads=1)


if __name__ == "__main__":
    main()
