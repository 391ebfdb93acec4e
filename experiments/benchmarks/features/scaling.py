"""Cost against size: time and peak memory of a feature build and an epoch at 1, 2, 4 and 8 times the rows.

Users grow with the rows, each with as many impressions as before; products and queries stay.
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.benchmarks.features.feature_logs import BUILD, LogSize, write_feature_logs
from experiments.benchmarks.measure import measure_module
from experiments.runtime.environment import describe_machine
from features.progress import Progress


@dataclass(frozen=True)
class ScalingBenchmark:
    """Sizes of the measurement."""

    #: At 1x the loader's pool of row groups is already full.
    impressions: int = 300_000
    purchases: int = 120_000
    factors: tuple[int, ...] = (1, 2, 4, 8)
    #: Given to every build, so that a larger log takes more buckets rather than more memory.
    memory_limit: str = "400MB"
    seed: int = 0


def run_scaling_benchmark(benchmark: ScalingBenchmark, *, work: Path, progress: Progress) -> dict[str, Any]:
    """Build and train at every size, and return `scaling.json`.

    `seconds` and `peak_mib` cover build and epoch together (sum and maximum); both are listed alone too.
    """
    logs, features = work / "scaling_logs", work / "scaling_features"
    rows: list[int] = []
    parts: dict[str, dict[str, list[float]]] = {
        part: {"seconds": [], "cpu_s": [], "peak_mib": []} for part in ("build", "training")
    }
    for done, factor in enumerate(benchmark.factors):
        progress(f"scaling: {factor}x", done, len(benchmark.factors))
        size = LogSize(benchmark.impressions * factor, benchmark.purchases * factor)
        write_feature_logs(logs, size, seed=benchmark.seed)
        shutil.rmtree(features, ignore_errors=True)
        rows.append(size.impressions)
        for part, command in (
            ("build", (BUILD, logs, features, "cached", benchmark.memory_limit)),
            ("training", (f"{__package__}.epoch_runner", features)),
        ):
            measurement = measure_module(*command)
            parts[part]["seconds"].append(measurement.wall_s)
            parts[part]["cpu_s"].append(measurement.cpu_s)
            parts[part]["peak_mib"].append(measurement.peak_mib)
    progress("scaling", len(benchmark.factors), len(benchmark.factors))
    build, training = parts["build"], parts["training"]
    return {
        "settings": asdict(benchmark),
        "machine": describe_machine(),
        "rows": rows,
        "seconds": [a + b for a, b in zip(build["seconds"], training["seconds"], strict=True)],
        "peak_mib": [max(a, b) for a, b in zip(build["peak_mib"], training["peak_mib"], strict=True)],
        **parts,
    }
