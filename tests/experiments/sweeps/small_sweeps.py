"""Small sweeps that really train: two variants over a random log, and all that they read."""

from pathlib import Path

import numpy as np

from embeddings.embedding_table import EmbeddingTable
from experiments.sweeps.sweep import SweepConfig
from features.feature_set import FeatureSet
from features.offline.build import build
from features.schema import SplitConfig
from tests.features.small_logs import CONFIG, random_tables, write_tables

RANKER = {"embedding_dim": 4, "cross_layers": 1, "deep_widths": [8], "top_widths": [8]}
TRAINING = {
    "batch_size": 50,
    "max_epochs": 2,
    "evaluations_per_epoch": 1,
    "precision": "float32",
    "optimizer": {"learning_rate": 0.01},
}
HISTORY = {"entities": ["product", "history"], "widths": [8]}


def sweep_config(folder: Path = Path("data"), **changed: object) -> SweepConfig:
    """DCN against purchase history, two seeds, over `folder`/features and `folder`/products."""
    content: dict[str, object] = {
        "name": "small",
        "seeds": [3, 1],
        "features": folder / "features",
        "product_table": folder / "products",
        "ranker": RANKER,
        "training": TRAINING,
        "variants": {
            "dcn": {},
            "dcn_p_sim_history": {"title": "With history", "ranker": {"semantic": HISTORY}},
        },
    }
    return SweepConfig.model_validate(content | changed)


def write_inputs(folder: Path) -> Path:
    """A whole feature set (worker processes compare its checksums) and vectors of its products."""
    data = write_tables(folder / "data", random_tables(5, impressions=600))
    config = CONFIG.model_copy(update={"split": SplitConfig(validation_days=2, test_days=2)})
    build(data, folder / "features", config, buckets=1, threads=1, memory_limit="200MB")
    ids = FeatureSet.open(folder / "features").catalog_ids()
    vectors = np.random.default_rng(0).normal(size=(len(ids), 8)).astype(np.float32)
    EmbeddingTable.write(
        folder / "products",
        ids=ids,
        vectors_ND=vectors,
        encoder_id="random",
        kind="product",
        normalised=False,
    )
    return folder
