"""One training epoch of a small ranker over a feature set on one thread, in a process of its own.

`python -m experiments.benchmarks.features.epoch_runner FEATURES`. The model is small so that reading and
batching weigh as much as they can.
"""

import sys
from pathlib import Path

import torch

from experiments.benchmarks.training.training_steps import training_steps
from features.feature_set import FeatureSet
from ranking.model import RankerConfig
from ranking.train import TrainingConfig

RANKER = RankerConfig(embedding_dim=8, cross_layers=1, deep_widths=(32,), top_widths=(), semantic=None)
TRAINING = TrainingConfig(batch_size=4096, max_epochs=1)


def main() -> None:
    """Train one epoch on FEATURES."""
    torch.set_num_threads(1)
    feature_set = FeatureSet.open(Path(sys.argv[1]))
    with training_steps(feature_set, "train", RANKER, TRAINING, seed=0) as steps:
        steps.epoch()


if __name__ == "__main__":
    main()
