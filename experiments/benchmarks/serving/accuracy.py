"""What rounding costs in accuracy: a run's test week with 8-bit vectors, and with bfloat16 products."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.benchmarks.serving.interleaved import SkippedError
from experiments.runtime.run_layout import log_of_run, package_run
from experiments.serving_checks.replay import replay
from features.inputs.tables import InputTables
from ranking.run import is_finished, load_run
from serving.package.generations import VECTORS, current_generation, generation_folder
from serving.package.manifest import MODEL, PackageManifest, TableType
from serving.packaging.build_package import PackageOptions
from serving.packaging.logged_requests import LoggedImpressions, spread
from serving.scoring.arithmetic import Arithmetic, has_bfloat16, with_arithmetic
from serving.scoring.predictor import Predictor
from serving.scoring.programs import called, open_module

#: Not a type of vectors, but of the numbers that are multiplied.
BFLOAT16 = "bfloat16 products"

#: Type of the product vectors, and what multiplies matrices; others are compared with the first.
_ROUNDINGS: dict[str, tuple[TableType, Arithmetic]] = {
    "float16": ("float16", "torch"),
    "int8": ("int8", "torch"),
    BFLOAT16: ("float16", "bfloat16"),
}


def compare_types(
    run_folder: Path, folder: Path, *, limit: int | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """AUC, log loss, largest difference and bytes by rounding; offline numbers are of the same impressions.

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
    for name, (table_type, arithmetic) in _ROUNDINGS.items():
        if arithmetic == "bfloat16" and not has_bfloat16():
            continue
        progress(f"replaying the test week in {name}")
        package = folder / f"accuracy-{name}"
        # The rows of the program do not matter for its scores, and the uncompiled model needs no minute.
        options = PackageOptions(tables=table_type, backend="eager")
        package_run(run_folder, package, data=log, options=options)
        manifest = PackageManifest.read(package)
        logged = LoggedImpressions(run.feature_set, InputTables.open(log), context=manifest.context)
        predictor = Predictor.load(package)
        module = open_module(package / MODEL, predictor.model.shape)
        predictor.live.scorer = predictor.live.scorer.with_program(
            called(with_arithmetic(module, arithmetic))
        )
        result = replay(
            logged,
            spread(logged.groups(), limit),
            logged.offline_probabilities(run_folder),
            predictor.score_many,
        )
        vectors = generation_folder(package, current_generation(package)) / VECTORS / "product"
        found[name] = {
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
    if BFLOAT16 in found:
        found["auc_change_bfloat16"] = found[BFLOAT16]["auc"] - found["float16"]["auc"]
    return found
