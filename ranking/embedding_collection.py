"""Embedding tables inside the model: torchrec collections, trainable (fused optimizer) and frozen.

Two invariants, both learned from silent failures of torchrec 1.8 (docs/decisions/0002):
every table is MEAN-pooled with one dtype, and pooled outputs are selected by key, never by position.

Shapes: B impressions, K keys, D embedding width, E = sum of the widths of all keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import Proxy
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor


@dataclass(frozen=True)
class TableSpec:
    """One embedding table and the keys that read it (the product table serves candidate and history)."""

    name: str
    rows: int
    dim: int
    keys: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.dim % 4 or not 4 <= self.dim <= 1024:
            raise ValueError(
                f"table {self.name!r} is {self.dim} wide; fbgemm takes multiples of 4 from 4 to 1024 "
                "(wider ones come back as zeros on CUDA)"
            )


def trainable_collection(
    tables: Sequence[TableSpec],
    *,
    learning_rate: float,
    init_scale: float | None,
    generator: torch.Generator,
    device: torch.device,
) -> FusedEmbeddingBagCollection:
    """Tables whose row-wise Adagrad runs inside the backward pass: no dense gradients, no second copy.

    Args:
        init_scale: entries start uniform in +-init_scale; None takes 1/sqrt(dim), so that bags have unit
            length on average and cosines mean something from the first step.
    """
    collection = FusedEmbeddingBagCollection(
        tables=_configs(tables),
        optimizer_type=RowWiseAdagrad,
        optimizer_kwargs={"lr": learning_rate, "eps": 1e-8},
        device=device,
    )
    for table in tables:
        weight = collection.embedding_bags[table.name].weight
        scale = init_scale if init_scale is not None else (3.0 / table.dim) ** 0.5
        values = torch.empty(weight.shape).uniform_(-scale, scale, generator=generator)
        with torch.no_grad():
            weight.copy_(values)
    return collection


def frozen_collection(
    tables: Sequence[TableSpec], vectors: dict[str, NDArray[np.floating]], *, device: torch.device
) -> EmbeddingBagCollection:
    """Pretrained tables: no gradient, no optimizer state.

    Args:
        vectors: for each table name its rows [rows, dim]; row 0 is the missing vector, all zeros.
    """
    collection = EmbeddingBagCollection(tables=_configs(tables), device=device)
    for table in tables:
        weight = collection.embedding_bags[table.name].weight
        if tuple(weight.shape) != vectors[table.name].shape:
            raise ValueError(
                f"table {table.name!r} is {tuple(weight.shape)}, its vectors {vectors[table.name].shape}"
            )
        with torch.no_grad():
            weight.copy_(torch.from_numpy(np.array(vectors[table.name], dtype=np.float32)))
        weight.requires_grad_(False)
    return collection


class PooledEmbeddings(nn.Module):
    """A collection and the order in which its keys are wanted.

    Attributes:
        frozen: whether nothing trains the tables.
    """

    def __init__(
        self, collection: FusedEmbeddingBagCollection | EmbeddingBagCollection, keys: Sequence[str]
    ) -> None:
        super().__init__()
        self.collection = collection
        self.keys = tuple(keys)
        self.frozen = not any(parameter.requires_grad for parameter in collection.parameters())
        width = {
            key: table.embedding_dim
            for table in collection.embedding_bag_configs()
            for key in table.feature_names
        }
        self._widths = [width[key] for key in keys]
        # modules, since torchrec's pipeline traces this one and what it calls around a spread collection
        self._pick = _Pick(self.keys)
        self._join = _Join(self.keys)

    def forward(self, rows: KeyedJaggedTensor) -> list[Tensor]:
        """K mean-pooled bags, each [B, D]; an empty bag is zeros."""
        if _is_empty(rows):
            return [torch.zeros(0, width, device=rows.device()) for width in self._widths]
        picked: list[Tensor] = self._pick(self.collection(rows))
        return picked

    def joined(self, rows: KeyedJaggedTensor) -> Tensor:
        """The same bags side by side [B, E]; no copy if the collection has them in this order."""
        if _is_empty(rows):
            return torch.zeros(0, sum(self._widths), device=rows.device())
        joined: Tensor = self._join(self.collection(rows))
        return joined

    def vectors(self, key: str, rows: KeyedJaggedTensor) -> tuple[Tensor, Tensor]:
        """Vectors [L, D] in all bags of `key`, not pooled and without gradient, and each bag's length [B]."""
        bag = rows[key]
        return self.table(key).index_select(0, bag.values()), bag.lengths()

    def table(self, key: str) -> Tensor:
        """The table [rows, D] that `key` reads, without gradient."""
        configs = self.collection.embedding_bag_configs()
        name = next(table.name for table in configs if key in table.feature_names)
        return self.collection.embedding_bags[name].weight.detach()


def _is_empty(rows: KeyedJaggedTensor) -> bool:
    """Whether this is a batch of none, on which fbgemm fails; what is traced stands for batches of some."""
    return not isinstance(rows, Proxy) and rows.stride() == 0


class _Pick(nn.Module):
    """The bags of some keys, in their order."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        super().__init__()
        self.keys = keys

    def forward(self, pooled: KeyedTensor) -> list[Tensor]:
        # one split: K slices would each pad their gradient to the width of all keys in the backward pass
        by_key = pooled.to_dict()
        return [by_key[key] for key in self.keys]


class _Join(_Pick):
    """The same bags side by side; no copy if they are so already."""

    def forward(self, pooled: KeyedTensor) -> Tensor:  # type: ignore[override]
        if tuple(pooled.keys()) == self.keys:
            joined: Tensor = pooled.values()
            return joined
        return torch.cat(super().forward(pooled), dim=1)


def _configs(tables: Sequence[TableSpec]) -> list[EmbeddingBagConfig]:
    return [
        EmbeddingBagConfig(
            name=table.name,
            num_embeddings=table.rows,
            embedding_dim=table.dim,
            feature_names=list(table.keys),
            pooling=PoolingType.MEAN,  # torchrec's default is SUM
        )
        for table in tables
    ]
