"""A feature build with counters, histories and two sparse ids on one thread, in a process of its own.

`python -m experiments.benchmarks.features.cached_build LOGS OUT MEMORY_LIMIT`. There is no user id among the
sparse
features: its table would grow with the log, and the scaling benchmark asks what grows although it need not.
"""

import sys
from pathlib import Path

from features.offline.build import build
from features.schema import FeatureConfig, SparseFeature

CONFIG = FeatureConfig(
    sparse=(
        SparseFeature(name="product", column="product_id"),
        SparseFeature(name="query", column="query"),
        SparseFeature(name="hour", source="timestamp", column="hour_of_day"),
    )
)


def main() -> None:
    """Build features from LOGS into OUT under MEMORY_LIMIT."""
    build(Path(sys.argv[1]), Path(sys.argv[2]), CONFIG, threads=1, memory_limit=sys.argv[3])


if __name__ == "__main__":
    main()
