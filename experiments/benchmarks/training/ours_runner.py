"""Our ranker on the Criteo-like rows, run as a process of its own like the peers.

The loop reads Parquet through our loader (the peers' loops start from arrays in memory) and takes the steps
of `ranking.train`; evaluations and checkpoints are left out, as they are for the peers.
"""

from collections import deque
from dataclasses import asdict
from typing import cast

import torch

from embeddings.training.precision import Precision
from experiments.benchmarks.training.peers import protocol
from experiments.benchmarks.training.step_profile import profile_steps
from experiments.benchmarks.training.training_steps import training_steps
from features.feature_set import FeatureSet
from ranking.metrics import roc_auc
from ranking.model import RankerConfig
from ranking.optimizer import OptimizerConfig
from ranking.train import TrainingConfig

RANKER = RankerConfig(
    embedding_dim=protocol.EMBEDDING_DIM,
    cross_layers=protocol.CROSS_LAYERS,
    deep_widths=protocol.DEEP_WIDTHS,
    top_widths=(),
    semantic=None,
)


#: Chosen on another draw of the generator (seed 77): one pass over 900,000 rows is 220 steps, too short for
#: the default rates (experiments/LOG.md).
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, embedding_learning_rate=0.3, warmup_steps=20, final_share=1.0)


def main() -> None:
    """Train one epoch and print the outcome."""
    request = protocol.read_request()
    torch.set_num_threads(request.threads)
    config = TrainingConfig(
        batch_size=request.batch_size,
        max_epochs=1,
        id_dropout=0.0,  # the peers have none
        optimizer=OPTIMIZER,
        precision=cast(Precision, request.precision),
    )
    feature_set = FeatureSet.open(request.data)
    with training_steps(feature_set, request.train, RANKER, config, seed=request.seed) as steps:
        loop = protocol.measure(steps.training.rows, steps.epoch)
        auc = roc_auc(*steps.scores("test"))
        ready = [batch for batch, _ in zip(steps.training, range(request.step_batches), strict=False)]
        step = protocol.measure(sum(len(batch) for batch in ready), lambda: steps.take(ready))
        profile = profile_steps(lambda: steps.take(ready), steps=len(ready))
        loader = protocol.measure(steps.training.rows, lambda: deque(steps.training, maxlen=0))
        profile |= {"rows": request.batch_size, "loader": asdict(loader)}
        libraries = ("torch", "torchrec", "fbgemm-gpu-cpu", "numpy")
        protocol.report(
            loop, step, auc, steps.ranker, libraries, precision=request.precision, profile=profile
        )


if __name__ == "__main__":
    main()
