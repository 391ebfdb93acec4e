"""Batches a second of one feature set, in a process of its own.

`python -m experiments.benchmarks.features.loader_runner FEATURES SECONDS` prints the rows, processor seconds
and wall seconds of whole epochs: shuffled, in stored order, and shuffled with purchase histories.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.training.peers.protocol import measure
from features.batches.loader import BatchLoader
from features.batches.pretrained_rows import PurchaseBags, SemanticRows
from features.feature_set import FeatureSet

BATCH_SIZE = 8192


def main() -> None:
    """Measure FEATURES for SECONDS in each way."""
    torch.set_num_threads(1)
    feature_set = FeatureSet.open(Path(sys.argv[1]))
    seconds = float(sys.argv[2])
    loaders = {
        "shuffled": BatchLoader(feature_set, "train", batch_size=BATCH_SIZE, shuffle_seed=0),
        "stored_order": BatchLoader(feature_set, "train", batch_size=BATCH_SIZE),
        "shuffled_with_history": BatchLoader(
            feature_set, "train", batch_size=BATCH_SIZE, shuffle_seed=0, semantic=all_known(feature_set)
        ),
    }
    manifest = feature_set.manifest
    result: dict[str, Any] = {name: _epochs(loader, seconds) for name, loader in loaders.items()}
    result["columns"] = len(manifest.dense_columns) + len(manifest.sparse_columns)
    result["rows"] = loaders["shuffled"].rows
    print(json.dumps(result))


def _epochs(loader: BatchLoader, seconds: float) -> list[dict[str, float]]:
    """Whole epochs after one to warm up the page cache, at least three."""
    _read_all(loader)
    epochs: list[dict[str, float]] = []
    while len(epochs) < 3 or sum(epoch["wall_s"] for epoch in epochs) < seconds:
        cost = measure(loader.rows, lambda: _read_all(loader))
        epochs.append(
            {
                "rows_per_s": cost.rows / cost.wall_s,
                "rows_per_cpu_s": cost.rows / cost.cpu_s,
                "wall_s": cost.wall_s,
            }
        )
    return epochs


def _read_all(loader: BatchLoader) -> None:
    rows = sum(len(batch) for batch in loader)
    assert rows == loader.rows, "the loader lost rows"


def all_known(feature_set: FeatureSet) -> SemanticRows:
    """As if every product and every query had a pretrained vector: the longest bags there can be."""
    manifest = feature_set.manifest
    history = manifest.config.history
    product_P = np.arange(1, manifest.num_products + 1)
    assert history is not None, "the benchmark's features have histories"
    purchases = PurchaseBags(
        feature_set.history_product_index(),
        feature_set.history_next_same_product(),
        product_P,
        cap=history.cap,
        deduplicate=history.deduplicate,
    )
    return SemanticRows(product_P, np.arange(1, manifest.num_queries + 1), purchases)


if __name__ == "__main__":
    main()
