"""What a checkpoint holds of a ranker: its weights without the frozen pretrained tables.

A copy of those per checkpoint would only cost disk: the run names their EmbeddingTables in config.json and
holds their fingerprints in inputs.json.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from embeddings.training.checkpoint import CheckpointError
from embeddings.training.ranks import Ranks
from ranking.embedding_collection import PooledEmbeddings
from ranking.model import Ranker

#: The part of a checkpoint that has the weights.
WEIGHTS = "model"


def ranker_weights(ranker: Ranker) -> dict[str, Tensor]:
    """State of the ranker without its frozen tables. On several ranks, tables are ShardedTensors."""
    frozen = tuple(
        f"{name}."
        for name, module in ranker.named_modules()
        if isinstance(module, PooledEmbeddings) and module.frozen
    )
    return {name: value for name, value in ranker.state_dict().items() if not name.startswith(frozen)}


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
    copy_weights(own, weights)


def copy_weights(own: dict[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into those of the same names; of a ShardedTensor, into the rows that lie here."""
    with torch.no_grad():
        for name, value in own.items():
            if not isinstance(value, ShardedTensor):
                value.copy_(weights[name])
                continue
            for shard in value.local_shards():
                starts, sizes = shard.metadata.shard_offsets, shard.metadata.shard_sizes
                rows = tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
                shard.tensor.copy_(weights[name][rows])


def whole_weights(ranker: Ranker, ranks: Ranks) -> dict[str, Tensor]:
    """`ranker_weights` as one process has them, on the first rank; the others must call it and get none."""
    whole: dict[str, Tensor] = {}
    for name, value in ranker_weights(ranker).items():
        if not isinstance(value, ShardedTensor):
            whole[name] = value
            continue
        gathered = torch.empty(value.size(), device=_device_of(value)) if ranks.first else None
        value.gather(dst=0, out=gathered)
        if gathered is not None:
            whole[name] = gathered.cpu()
    return whole if ranks.first else {}


def _device_of(tensor: ShardedTensor) -> torch.device:
    """Where this process exchanges its shards."""
    return torch.device("cuda" if dist.get_backend(tensor._process_group) == "nccl" else "cpu")
