"""Our permutation importance against Captum's on the same rows, features and permutations."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.importance.captum_comparison import captum_permutation
from experiments.importance.methods.perturbation import measure_exchanges, row_permutation
from experiments.importance.model_features import features_of
from experiments.importance.result import ALL
from experiments.importance.run_parts import layout_of
from experiments.importance.split_rows import open_split
from features.progress import Progress, silent
from ranking.run import load_run

_WARM_UP_FEATURES = 2


def compare_with_captum(
    folder: Path, *, split: str = "test", seed: int = 0, progress: Progress = silent
) -> dict[str, Any]:
    """CPU seconds of both for one permutation of every feature (without groups), and the largest difference.

    Processor time, since other work on the machine does not count in it. Ours is timed before and after the
    peer and averaged, so that a machine that slows down slows both.

    Returns:
        speedup, seconds_ours, seconds_captum, features, rows, largest_difference (in AUC), threads.
    """
    run = load_run(folder)
    layout = layout_of(run)
    features = features_of(run.feature_set.manifest, run.config.ranker)
    with open_split(run.feature_set, split) as rows:
        masks = {ALL: np.ones(len(rows), dtype=bool)}
        permutation = row_permutation(len(rows), seed=seed, repeat=0)

        def ours(count: int) -> tuple[float, list[float]]:
            started = time.process_time()
            measured = measure_exchanges(
                layout, rows, features[:count], permutations=[permutation], masks=masks
            )
            seconds = time.process_time() - started
            return seconds, [measured.values[f.key][ALL]["auc"][0] for f in features[:count]]

        def tell(calls: int) -> None:
            progress("Captum's FeaturePermutation", calls, len(features) + 1)

        ours(_WARM_UP_FEATURES)
        before, values = ours(len(features))
        started = time.process_time()
        naive_F = captum_permutation(
            run.ranker,
            rows,
            features,
            semantic=run.semantic.rows if run.semantic else None,
            permutation=permutation,
            progress=tell,
        )
        captum_seconds = time.process_time() - started
        after, _ = ours(len(features))
    seconds = (before + after) / 2
    return {
        "speedup": captum_seconds / seconds,
        "seconds_ours": seconds,
        "seconds_captum": captum_seconds,
        "features": len(features),
        "rows": len(permutation),
        "repeats": 1,
        "largest_difference": float(np.abs(np.array(values) - naive_F).max()),
        "threads": torch.get_num_threads(),
    }
