"""Loader speed: shuffled rows a second on one thread, out of Parquet, as tensors."""

import os
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.benchmarks.features.feature_logs import BUILD, LogSize, write_feature_logs
from experiments.benchmarks.measure import last_json, measure_module
from experiments.runtime.environment import describe_machine
from features.progress import Progress


@dataclass(frozen=True)
class LoaderBenchmark:
    """Sizes of the measurement."""

    impressions: int = 1_000_000
    purchases: int = 400_000
    seconds: float = 8.0
    memory_limit: str = "1GB"
    seed: int = 0


def run_loader_benchmark(benchmark: LoaderBenchmark, *, work: Path, progress: Progress) -> dict[str, Any]:
    """Build a feature set, read it in three ways, and return `loader.json`."""
    load = os.getloadavg()[0]  # before our own work adds to it
    logs, features = work / "loader_logs", work / "loader_features"
    size = LogSize(benchmark.impressions, benchmark.purchases)
    write_feature_logs(logs, size, seed=benchmark.seed, progress=progress)
    progress("loader: building its features", 0, 2)
    measure_module(BUILD, logs, features, "cached", benchmark.memory_limit)
    progress("loader: reading", 1, 2)
    measurement = measure_module(f"{__package__}.loader_runner", features, benchmark.seconds)
    found = last_json(measurement)
    ways = {
        name: {
            "rows_per_s": statistics.median(epoch["rows_per_s"] for epoch in found[name]),
            "rows_per_cpu_s": statistics.median(epoch["rows_per_cpu_s"] for epoch in found[name]),
            "epochs": len(found[name]),
        }
        for name in ("shuffled", "stored_order", "shuffled_with_history")
    }
    progress("loader", 2, 2)
    return {
        "settings": asdict(benchmark),
        "machine": describe_machine(),
        "load_average_before": load,
        "rows_per_s": ways["shuffled"]["rows_per_s"],
        "rows": found["rows"],
        "columns": found["columns"],
        "peak_mib": measurement.peak_mib,
        **ways,
    }
