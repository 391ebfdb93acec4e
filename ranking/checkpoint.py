"""What a checkpoint holds of a ranker: its weights without the frozen pretrained tables.

A copy of those per checkpoint would only cost disk: the run names their EmbeddingTables in config.json and
holds their fingerprints in inputs.json.
"""

from pathlib import Path

import torch
from torch import Tensor

from embeddings.training.checkpoint import CheckpointError
from ranking.model import Ranker

#: The part of a checkpoint that has the weights.
WEIGHTS = "model"


def ranker_weights(ranker: Ranker) -> dict[str, Tensor]:
    """State of the ranker without its frozen tables."""
    frozen = {name for name, parameter in ranker.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in ranker.state_dict().items() if name not in frozen}


def load_ranker_weights(ranker: Ranker, weights: dict[str, Tensor], *, source: Path) -> None:
    """Copy weights into the ranker; every one must fit.

    Raises:
        CheckpointError: names or shapes differ.
    """
    own = ranker_weights(ranker)
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or unknown:
        raise CheckpointError(
            f"{source} is of another model: it lacks {missing[:3]} and has {unknown[:3]} besides; use the "
            "config.json that lies beside it"
        )
    for name, value in own.items():
        if value.shape != weights[name].shape:
            raise CheckpointError(
                f"{source}: {name} is {tuple(weights[name].shape)}, the model wants {tuple(value.shape)}; "
                "the feature set has changed since the run"
            )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(weights[name])
