"""Retrain without the features that cost next to nothing, and see what AUC, size and latency change.

Features are chosen by their permutation importance on the *validation* days; AUC is then reported on the test
days, which chose nothing. Features that are each dispensable may not be so together: the retrained AUC tells.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.importance.measure import measure
from experiments.importance.model_features import Feature, counter_sides, features_of
from experiments.importance.result import Selection, SelectionSide
from experiments.importance.run_parts import MeasureOptions
from experiments.runtime.environment import environment
from experiments.statistics.intervals import paired_difference
from features.artifacts import atomic_folder, atomic_write_json
from features.batches.batch import Batch
from features.feature_set import FeatureSet, Manifest
from features.progress import Progress, silent
from ranking.model import RankerConfig
from ranking.run import Run, RunConfig, execute_run, is_finished, load_run, run_config
from ranking.train import TrainingProgress

_CHOSEN_ON = "validation"
_REQUEST_ROWS = 100
_TIMED_REQUESTS = 300


def select_and_retrain(
    folders: Sequence[Path],
    options: MeasureOptions,
    *,
    threshold: float,
    out: Path,
    progress: Progress = silent,
) -> Selection:
    """Drop every feature whose importance lies below `threshold`, train each seed again, compare.

    Kept whatever their importance: ids that the server replaces by a constant (the position: without it, its
    effect would be credited to the products), and the best id if all would go.

    Args:
        threshold: in AUC; mean over the runs.
        out: receives the narrowed feature set and the new runs; finished ones are used again.

    Raises:
        ValueError: no feature lies below the threshold.
    """
    configs = [run_config(folder) for folder in folders]
    feature_set = FeatureSet.open(configs[0].features)
    manifest, ranker = feature_set.manifest, configs[0].ranker
    out.mkdir(parents=True, exist_ok=True)
    report = measure(
        folders,
        replace(options, split=_CHOSEN_ON, methods=("permutation",), slices=False, pairs=0),
        command="",
        parts=out / "parts",
        scratch=out,
        progress=progress,
    )
    importance = {entry.name: entry.mean for entry in report.ranked()}
    dropped = dispensable(manifest, ranker, importance, threshold=threshold)
    if not dropped:
        raise ValueError(
            f"no feature costs less than {threshold:g} AUC on the {_CHOSEN_ON} days; the least important is "
            f"{min(importance, key=lambda name: importance[name])!r} ({min(importance.values()):.2g})"
        )
    names = tuple(feature.name for feature in dropped)
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]
    folder = out / f"without-{len(names)}-{digest}"
    narrow = folder / "features"
    if not (narrow / "manifest.json").exists():
        write_narrow(feature_set, dropped, narrow)
    new_folders = [
        _retrained(config, narrow, dropped, folder / f"seed-{config.seed}", progress) for config in configs
    ]
    kept = tuple(name for name in importance if name not in set(names))
    before_ms, after_ms = _latencies(load_run(folders[0]), load_run(new_folders[0]))
    before = _side(folders, len(importance), before_ms)
    after = _side(new_folders, len(kept), after_ms)
    difference = paired_difference(_metric(new_folders, "auc"), _metric(folders, "auc"))
    return Selection(
        threshold=threshold,
        chosen_on=_CHOSEN_ON,
        dropped=names,
        kept=kept,
        before=before,
        after=after,
        auc_difference=difference.mean,
        auc_low=difference.low,
        auc_high=difference.high,
        seeds=tuple(config.seed for config in configs),
        sentence=_sentence(before, after, difference.mean, difference.low, difference.high),
    )


def dispensable(
    manifest: Manifest, ranker: RankerConfig, importance: dict[str, float], *, threshold: float
) -> list[Feature]:
    """Features below the threshold that may be dropped."""
    fixed = {feature.name for feature in manifest.config.sparse if feature.serving_value is not None}
    features = [feature for feature in features_of(manifest, ranker) if not feature.pairs]
    found = [
        feature for feature in features if importance[feature.name] < threshold and feature.name not in fixed
    ]
    ids = [feature for feature in features if feature.sparse]
    if all(feature in found for feature in ids):
        found.remove(max(ids, key=lambda feature: importance[feature.name]))
    return found


def _narrowed(config: RunConfig, features: Path, dropped: Sequence[Feature]) -> RunConfig:
    semantic = config.ranker.semantic
    if semantic is not None:
        gone = {i for feature in dropped for i in feature.entities}
        semantic = semantic.narrowed([name for i, name in enumerate(semantic.entities) if i not in gone])
    return config.model_copy(
        update={
            "variant": f"{config.variant}_selected",
            "features": features,
            "ranker": config.ranker.model_copy(update={"semantic": semantic}),
        }
    )


def _retrained(
    config: RunConfig, features: Path, dropped: Sequence[Feature], folder: Path, progress: Progress
) -> Path:
    def on_step(done: TrainingProgress, total_steps: int) -> None:
        progress(f"seed {config.seed}: training without {len(dropped)} features", done.step, total_steps)

    if not is_finished(folder):
        execute_run(
            _narrowed(config, features, dropped),
            folder,
            environment=environment(),
            resume=True,
            on_step=on_step,
        )
    return folder


def _metric(folders: Sequence[Path], name: str) -> list[float]:
    return [float(_json(folder / "metrics.json")["test"][name]) for folder in folders]


def _side(folders: Sequence[Path], features: int, latency_ms: float) -> SelectionSide:
    parameters = int(_json(folders[0] / "run.json")["parameters"])
    return SelectionSide(
        features=features,
        auc=float(np.mean(_metric(folders, "auc"))),
        logloss=float(np.mean(_metric(folders, "log_loss"))),
        parameters=parameters,
        megabytes=parameters * 4 / 2**20,
        latency_ms=latency_ms,
    )


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


@torch.no_grad()
def _latencies(before: Run, after: Run) -> tuple[float, float]:
    """Median milliseconds to score 100 rows, both models in turn so that both see the same machine."""
    batches: list[tuple[Run, Batch]] = []
    for run in (before, after):
        run.ranker.eval()
        batches.append((run, next(iter(run.loader("test", batch_size=_REQUEST_ROWS)))))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(_TIMED_REQUESTS):
        for (run, batch), taken in zip(batches, times, strict=True):
            started = time.perf_counter()
            run.ranker(batch.dense_BF, batch.sparse, batch.semantic)
            taken.append(1000 * (time.perf_counter() - started))
    return float(np.median(times[0])), float(np.median(times[1]))


def _sentence(
    before: SelectionSide, after: SelectionSide, mean: float, low: float | None, high: float | None
) -> str:
    interval = "" if low is None or high is None else f" [{low:+.4f}, {high:+.4f}]"
    return (
        f"Retrained with {after.features} of {before.features} features, test AUC is {after.auc:.4f} instead "
        f"of {before.auc:.4f} ({mean:+.4f}{interval}), the model {after.megabytes:.1f} instead of "
        f"{before.megabytes:.1f} MB, and 100 rows take {after.latency_ms:.2f} instead of "
        f"{before.latency_ms:.2f} ms."
    )


def narrow_manifest(manifest: Manifest, dropped: Collection[Feature]) -> Manifest:
    """The manifest without the columns of `dropped`.

    Counter keys of which no column is left go from the feature config; others keep all their windows there,
    since counters are configured by key and window, not one by one.

    Raises:
        ValueError: no id feature would be left.
    """
    columns = {
        manifest.dense_columns[i] for feature in dropped for i in feature.dense
    }  # with the `_missing` companions
    ids = {manifest.sparse_columns[i].name for feature in dropped for i in feature.sparse}
    sparse_columns = tuple(column for column in manifest.sparse_columns if column.name not in ids)
    if not sparse_columns:
        raise ValueError("a ranker needs at least one id feature; keep one")
    dense_columns = tuple(name for name in manifest.dense_columns if name not in columns)
    config = manifest.config
    sides = counter_sides(config.counters)
    counters = config.counters
    if counters is not None:
        keys = tuple(
            key
            for key in counters.keys
            if any(name in sides and _key_of(name) == key for name in dense_columns)
        )
        counters = counters.model_copy(update={"keys": keys}) if keys else None
    return manifest.model_copy(
        update={
            "config": config.model_copy(
                update={
                    "dense": tuple(f for f in config.dense if f.name in dense_columns),
                    "sparse": tuple(f for f in config.sparse if f.name not in ids),
                    "counters": counters,
                }
            ),
            "dense_columns": dense_columns,
            "sparse_columns": sparse_columns,
            "transforms": {n: t for n, t in manifest.transforms.items() if n not in columns},
            "checksums": {
                name: checksum
                for name, checksum in manifest.checksums.items()
                if name not in {f"vocabularies/{dropped_id}.parquet" for dropped_id in ids}
            },
        }
    )


def _key_of(column: str) -> str:
    """The key of a counter column: `query_product_ctr_7d` is of `query_product`, not of `query`."""
    return column.rsplit("_", 2)[0]


def write_narrow(feature_set: FeatureSet, dropped: Collection[Feature], folder: Path) -> FeatureSet:
    """Write the narrowed feature set; row files are hard links where the file system allows it."""
    manifest = narrow_manifest(feature_set.manifest, dropped)
    with atomic_folder(folder, ours=lambda found: (found / "manifest.json").exists()) as temporary:
        for name in manifest.checksums:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(feature_set.folder / name, temporary / name)
            except OSError:
                shutil.copyfile(feature_set.folder / name, temporary / name)
        atomic_write_json(temporary / "manifest.json", manifest.model_dump(mode="json"))
    return FeatureSet.open(folder)
