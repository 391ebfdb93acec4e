"""Feature build against pandas: processor seconds and peak memory for the same histories and counters.

Both read the same Parquet logs and write the same columns and history arrays as Parquet and `.npy`, each on
one thread in a process of its own, in turn. Ours also checks its input, hashes its output and works in
bounded memory; pandas holds everything at once.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.benchmarks.features.comparison import compare_with_pandas
from experiments.benchmarks.features.feature_logs import BUILD, LogSize, write_feature_logs
from experiments.benchmarks.measure import measure_module
from experiments.runtime.environment import describe_machine
from features.feature_set import FeatureSet
from features.progress import Progress

_PANDAS = f"{__package__}.pandas_features"


@dataclass(frozen=True)
class FeatureBenchmark:
    """Sizes of the comparison."""

    impressions: int = 5_000_000
    purchases: int = 2_000_000
    seed: int = 0


def run_feature_benchmark(benchmark: FeatureBenchmark, *, work: Path, progress: Progress) -> dict[str, Any]:
    """Write the logs, build their features both ways, compare the outputs, and return `features.json`."""
    load = os.getloadavg()[0]  # before our own work adds to it
    logs = work / "feature_logs"
    size = LogSize(benchmark.impressions, benchmark.purchases)
    write_feature_logs(logs, size, seed=benchmark.seed, progress=progress)
    ours, theirs = work / "features_ours", work / "features_pandas"
    commands: dict[str, tuple[Any, ...]] = {
        "ours": (BUILD, logs, ours, "comparison"),
        "pandas": (_PANDAS, logs, theirs),
    }
    costs: dict[str, dict[str, float]] = {}
    for done, (name, command) in enumerate(commands.items()):
        progress(f"feature build: {name}", done, len(commands))
        measured = measure_module(*command)
        costs[name] = {"cpu_s": measured.cpu_s, "wall_s": measured.wall_s, "peak_mib": measured.peak_mib}
    progress("feature build: comparing", len(commands), len(commands))
    comparison = compare_with_pandas(FeatureSet.open(ours), theirs)
    return {
        "settings": {**asdict(benchmark), **asdict(size), "users": size.users},
        "machine": describe_machine(),
        "load_average_before": load,
        "cpu_ratio_to_pandas": costs["ours"]["cpu_s"] / costs["pandas"]["cpu_s"],
        "memory_ratio_to_pandas": costs["ours"]["peak_mib"] / costs["pandas"]["peak_mib"],
        "identical": comparison.identical,
        "compared": asdict(comparison),
        **costs,
    }
