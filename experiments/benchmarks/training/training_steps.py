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
from features.feature_set import FeatureSet
from ranking.model import Ranker, RankerConfig, RankerInputs, build_ranker
from ranking.prediction import predict
from ranking.train import RankerLoop, TrainingConfig


@dataclass(frozen=True)
class TrainingSteps:
    """An untrained ranker without semantic tables, its loader and the loop that trains it."""

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
        return predict(self.ranker, loader, device=torch.device("cpu"))


@contextmanager
def training_steps(
    feature_set: FeatureSet,
    split: str,
    ranker_config: RankerConfig,
    config: TrainingConfig,
    *,
    seed: int,
) -> Iterator[TrainingSteps]:
    """Set up a run on `split`; its TensorBoard scalars go to a folder that is removed in the end."""
    manifest = feature_set.manifest
    ranker = build_ranker(
        ranker_config,
        RankerInputs(
            dense_features=len(manifest.dense_columns),
            sparse_rows={column.name: column.rows for column in manifest.sparse_columns},
            vectors={},
        ),
        seed=seed,
        embedding_learning_rate=config.optimizer.embedding_learning_rate,
    )
    training = BatchLoader(
        feature_set, split, batch_size=config.batch_size, shuffle_seed=seed, id_dropout=config.id_dropout
    )
    unused = BatchLoader(feature_set, "test", batch_size=config.batch_size)
    with TemporaryDirectory() as folder, TrainingLog(Path(folder)) as log:
        cpu = torch.device("cpu")
        loop = RankerLoop(ranker, config, training, unused, Path(folder), cpu, None, log)
        yield TrainingSteps(ranker, training, feature_set, loop)
