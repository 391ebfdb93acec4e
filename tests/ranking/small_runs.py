"""A small built feature set with embedding tables and many row groups, for tests of loading and training."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from embeddings.embedding_table import EmbeddingTable
from features.feature_set import FeatureSet
from features.offline.build import build
from features.schema import SplitConfig
from ranking.model import RankerConfig, SemanticConfig
from ranking.run import RunConfig
from ranking.train import TrainingConfig
from tests.features.small_logs import CONFIG, random_tables, write_tables

ROW_GROUP = 37
SMALL_CONFIG = CONFIG.model_copy(update={"split": SplitConfig(validation_days=2, test_days=2)})


def small_data(folder: Path, *, impressions: int = 1200) -> None:
    """`folder`/features (row groups of ROW_GROUP rows, so that pools and seams occur) and two tables."""
    data = write_tables(folder / "data", random_tables(5, impressions=impressions))
    build(data, folder / "features", SMALL_CONFIG, buckets=2, threads=1, memory_limit="200MB")
    feature_set = FeatureSet.open(folder / "features")
    for split in ("train", "validation", "test"):
        for path in feature_set.split_files(split):
            pq.write_table(pq.read_table(path), path, row_group_size=ROW_GROUP)
    rng = np.random.default_rng(0)
    for kind, name, ids in (
        ("product", "products", feature_set.catalog_ids()),
        ("query", "queries", feature_set.queries()),
    ):
        known = ids[1:]  # the first has no vector
        vectors = rng.normal(size=(len(known), 8)).astype(np.float32)
        EmbeddingTable.write(
            folder / name, ids=known, vectors_ND=vectors, encoder_id="random", kind=kind, normalised=False
        )


def open_small(folder: Path) -> FeatureSet:
    """The feature set; its files differ from their checksums since the row groups were cut."""
    return FeatureSet.open(folder / "features", verify=False)


def run_config(folder: Path, *, seed: int = 1, history: bool = True, **training: object) -> RunConfig:
    entities = ("product", "query", "history") if history else ("product", "query")
    return RunConfig(
        variant="small",
        seed=seed,
        features=folder / "features",
        product_table=folder / "products",
        query_table=folder / "queries",
        ranker=RankerConfig(
            embedding_dim=4,
            cross_layers=1,
            deep_widths=(8,),
            top_widths=(8,),
            dropout=0.1,
            semantic=SemanticConfig(entities=entities, widths=(8,)),
        ),
        training=TrainingConfig.model_validate(
            {
                "batch_size": 50,
                "max_epochs": 2,
                "evaluations_per_epoch": 2,
                "precision": "float32",
                **training,
            }
        ),
    )
