"""The same feature build by DuckDB and by Spark: whether every byte is the same, and what each costs."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.benchmarks.features.build_runner import CONFIGS
from experiments.benchmarks.features.feature_logs import BUILD, LogSize, write_feature_logs
from experiments.benchmarks.measure import last_json, measure_module
from experiments.runtime.environment import describe_machine
from features.artifacts import atomic_write_json
from features.feature_set import FeatureSet
from features.progress import Progress
from features.schema import FeatureConfig

_SPARK = f"{__package__}.spark_runner"


@dataclass(frozen=True)
class SparkBenchmark:
    """Sizes of the comparison, where no tables are given, and what Spark works on."""

    impressions: int = 1_000_000
    purchases: int = 400_000
    master: str = "local[2]"
    #: Heap of Java; the Python workers come on top.
    driver_memory: str = "2g"
    seed: int = 0


def run_spark_benchmark(
    benchmark: SparkBenchmark,
    *,
    work: Path,
    data: Path | None = None,
    config: FeatureConfig | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Build the features of `data`, or of generated logs if None, both ways, and return `spark.json`.

    Args:
        config: of the features; that of the scaling benchmark if None.
    """
    generated = data is None
    if data is None:
        data = work / "spark_logs"
        size = LogSize(benchmark.impressions, benchmark.purchases)
        write_feature_logs(data, size, seed=benchmark.seed, progress=progress)
    work.mkdir(parents=True, exist_ok=True)
    settings = work / "config.json"
    atomic_write_json(settings, (config or CONFIGS["cached"]).model_dump(mode="json"))
    by_duckdb, by_spark = work / "features_duckdb", work / "features_spark"
    progress("features: DuckDB", 0, 2)
    duckdb = measure_module(BUILD, data, by_duckdb, settings)
    progress("features: Spark", 1, 2)
    spark = measure_module(_SPARK, data, by_spark, settings, benchmark.master, benchmark.driver_memory)
    progress("features: Spark", 2, 2)
    cost = last_json(spark)
    manifests = [FeatureSet.open(folder).manifest for folder in (by_duckdb, by_spark)]
    one, many = (manifest.model_dump(mode="json", exclude={"created"}) for manifest in manifests)
    return {
        "settings": {
            name: value
            for name, value in asdict(benchmark).items()
            if generated or name in ("master", "driver_memory")
        },
        "machine": describe_machine(),
        "identical": one == many,
        "files": len(one["checksums"]),
        "rows": one["data"]["impressions"],
        "purchases": one["data"]["purchases"],
        "columns": len(one["dense_columns"]) + len(one["sparse_columns"]),
        "duckdb": {"cpu_s": duckdb.cpu_s, "wall_s": duckdb.wall_s, "peak_mib": duckdb.peak_mib},
        "spark": {
            "cpu_s": cost["cpu_s"],
            "start_cpu_s": cost["start_cpu_s"],
            "wall_s": spark.wall_s,
            "peak_mib": spark.peak_mib,
        },
    }
