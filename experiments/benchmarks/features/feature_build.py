"""Feature build against pandas: processor seconds and peak memory for the same histories and counters.

Both read the same Parquet logs and write the same columns and history arrays as Parquet and `.npy`, each on
one thread in a process of its own, in turn. Ours also checks its input, hashes its output and works in
bounded memory; pandas holds everything at once.
"""

import shutil
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.benchmarks.features.comparison import compare_with_pandas
from experiments.benchmarks.features.feature_logs import BUILD, LogSize, write_feature_logs
from experiments.benchmarks.measure import Measurement, measure_module
from experiments.runtime.environment import describe_machine
from features.feature_set import FeatureSet
from features.progress import Progress

_PANDAS = f"{__package__}.pandas_features"


@dataclass(frozen=True)
class FeatureBenchmark:
    """Sizes of the comparison."""

    impressions: int = 5_000_000
    purchases: int = 2_000_000
    rounds: int = 1
    seed: int = 0


def run_feature_benchmark(benchmark: FeatureBenchmark, *, work: Path, progress: Progress) -> dict[str, Any]:
    """Write the logs, build their features both ways, compare the outputs, and return `features.json`."""
    logs = work / "feature_logs"
    size = LogSize(benchmark.impressions, benchmark.purchases)
    write_feature_logs(logs, size, seed=benchmark.seed, progress=progress)
    ours, theirs = work / "features_ours", work / "features_pandas"
    commands: dict[str, tuple[Any, ...]] = {
        "ours": (BUILD, logs, ours, "comparison"),
        "pandas": (_PANDAS, logs, theirs),
    }
    measured: dict[str, list[Measurement]] = {name: [] for name in commands}
    for round_number in range(benchmark.rounds):
        for position, (name, command) in enumerate(commands.items()):
            progress(f"feature build: {name}", 2 * round_number + position, 2 * benchmark.rounds)
            shutil.rmtree(work / f"features_{name}", ignore_errors=True)
            measured[name].append(measure_module(*command))
    progress("feature build: comparing", 2 * benchmark.rounds, 2 * benchmark.rounds)
    comparison = compare_with_pandas(FeatureSet.open(ours), theirs)
    costs = {name: summarise(runs) for name, runs in measured.items()}
    return {
        "settings": {**asdict(benchmark), **asdict(size), "users": size.users},
        "machine": describe_machine(),
        "cpu_ratio_to_pandas": costs["ours"]["cpu_s"] / costs["pandas"]["cpu_s"],
        "memory_ratio_to_pandas": costs["ours"]["peak_mib"] / costs["pandas"]["peak_mib"],
        "identical": comparison.identical,
        "compared": asdict(comparison),
        **costs,
    }


def summarise(runs: Sequence[Measurement]) -> dict[str, float]:
    """Medians over the rounds; the peak is the largest."""
    return {
        "cpu_s": statistics.median(run.cpu_s for run in runs),
        "wall_s": statistics.median(run.wall_s for run in runs),
        "peak_mib": max(run.peak_mib for run in runs),
    }
