"""The training loop of `ranking.train` without its evaluations and checkpoints, for measuring."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from embeddings.training.run_log import TrainingLog
from features.batches.batch import Batch
from features.batches.loader import BatchLoader
from features.batches.pretrained_rows import SemanticRows
from features.feature_set import FeatureSet
from ranking.model import Ranker, RankerConfig, RankerInputs, build_ranker
from ranking.prediction import predict
from ranking.train import RankerLoop, TrainingConfig


@dataclass(frozen=True)
class TrainingSteps:
    """An untrained ranker, its loader and the loop that trains it."""

    ranker: Ranker
    training: BatchLoader
    feature_set: FeatureSet
    loop: RankerLoop

    def epoch(self) -> None:
        """Read one epoch and take a step with each batch."""
        self.take(self.training)

    def take(self, batches: Iterable[Batch]) -> None:
        """Take a step with each batch."""
        self.ranker.train()
        for batch in batches:
            self.loop.take_step(batch)

    def scores(self, split: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Clicks and logits of a split."""
        loader = BatchLoader(self.feature_set, split, batch_size=self.training.batch_size)
        return predict(self.ranker, loader, device=self.loop.device)


@contextmanager
def training_steps(
    feature_set: FeatureSet,
    split: str,
    ranker_config: RankerConfig,
    config: TrainingConfig,
    *,
    seed: int,
    device: torch.device | None = None,
    semantic: SemanticRows | None = None,
    vectors: dict[str, NDArray[np.floating]] | None = None,
) -> Iterator[TrainingSteps]:
    """Set up a run on `split`; its TensorBoard scalars go to a folder that is removed in the end.

    Args:
        semantic, vectors: rows of the pretrained tables and these themselves, if the ranker reads any.
    """
    device = device or torch.device("cpu")
    manifest = feature_set.manifest
    ranker = build_ranker(
        ranker_config,
        RankerInputs(
            dense_features=len(manifest.dense_columns),
            sparse_rows={column.name: column.rows for column in manifest.sparse_columns},
            vectors=vectors or {},
        ),
        seed=seed,
        embedding_learning_rate=config.optimizer.embedding_learning_rate,
        device=device,
    )
    training = BatchLoader(
        feature_set,
        split,
        batch_size=config.batch_size,
        semantic=semantic,
        shuffle_seed=seed,
        id_dropout=config.id_dropout,
    )
    unused = BatchLoader(feature_set, "test", batch_size=config.batch_size)
    with TemporaryDirectory() as folder, TrainingLog(Path(folder)) as log:
        loop = RankerLoop(ranker, config, training, unused, Path(folder), device, None, log)
        yield TrainingSteps(ranker, training, feature_set, loop)
