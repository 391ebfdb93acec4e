"""What 8-bit vectors cost in accuracy: a trained run's test week, replayed through packages of both types."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.benchmarks.serving.interleaved import SkippedError
from experiments.runtime.run_layout import log_of_run, package_run
from experiments.serving_checks.replay import replay
from features.inputs.tables import InputTables
from ranking.run import is_finished, load_run
from serving.package.generations import VECTORS, current_generation, generation_folder
from serving.package.manifest import PackageManifest, TableType
from serving.packaging.build_package import PackageOptions
from serving.packaging.logged_requests import LoggedImpressions, spread
from serving.scoring.predictor import Predictor

_TYPES: tuple[TableType, ...] = ("float16", "int8")


def compare_types(
    run_folder: Path, folder: Path, *, limit: int | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """AUC, log loss, largest difference and bytes by type; offline numbers are of the same impressions.

    Args:
        limit: logged requests that are replayed, spread over the test week; None for all.

    Raises:
        SkippedError: `run_folder` is not a finished run with pretrained vectors.
    """
    if not is_finished(run_folder):
        raise SkippedError(f"{run_folder} is not a finished run; `make demo` makes it")
    run = load_run(run_folder)
    if run.config.ranker.semantic is None:
        raise SkippedError(f"{run_folder} reads no vectors")
    log = log_of_run(run_folder)
    found: dict[str, Any] = {}
    for table_type in _TYPES:
        progress(f"replaying the test week with {table_type} vectors")
        package = folder / f"accuracy-{table_type}"
        # The rows of the program do not matter for its scores, and the uncompiled model needs no minute.
        options = PackageOptions(tables=table_type, backend="eager")
        package_run(run_folder, package, data=log, options=options)
        manifest = PackageManifest.read(package)
        logged = LoggedImpressions(run.feature_set, InputTables.open(log), context=manifest.context)
        result = replay(
            logged,
            spread(logged.groups(), limit),
            logged.offline_probabilities(run_folder),
            Predictor.load(package).score_many,
        )
        vectors = generation_folder(package, current_generation(package)) / VECTORS / "product"
        found[table_type] = {
            "auc": result.auc_served,
            "log_loss": result.log_loss_served,
            "max_difference": result.max_difference,
            "mean_difference": result.mean_difference,
            "same_order": result.same_order,
            "product_vector_bytes": sum(path.stat().st_size for path in vectors.glob("vectors*.npy")),
        }
        found["offline"] = {"auc": result.auc_offline, "log_loss": result.log_loss_offline}
        found["impressions"] = result.impressions
    found["auc_change"] = found["int8"]["auc"] - found["float16"]["auc"]
    return found
