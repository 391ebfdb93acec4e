"""One batch of impressions, as the ranker takes it.

Shapes: B impressions, F dense features, S sparse features (one id each).
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

#: Keys of `Batch.semantic`, in this order.
SEMANTIC_KEYS = ("product", "query", "history")


@dataclass(frozen=True)
class Batch:
    """B impressions.

    Attributes:
        dense_BF: transformed dense features, float32.
        sparse: embedding-table rows, S keys of B bags with one row each.
        semantic: rows of the pretrained tables under the keys `SEMANTIC_KEYS`. A bag is empty where the
            vector is missing or the user purchased nothing. Empty altogether (B = 0 bags a key) where the
            loader was given no tables.
        clicked_B: 1.0 or 0.0.
        row_B: position of each impression in its split, int64.
    """

    dense_BF: Tensor
    sparse: KeyedJaggedTensor
    semantic: KeyedJaggedTensor
    clicked_B: Tensor
    row_B: Tensor

    def __len__(self) -> int:
        return int(self.clicked_B.shape[0])

    def to(self, device: torch.device) -> Self:
        """The same batch on `device`."""
        return type(self)(
            dense_BF=self.dense_BF.to(device, non_blocking=True),
            sparse=self.sparse.to(device, non_blocking=True),
            semantic=self.semantic.to(device, non_blocking=True),
            clicked_B=self.clicked_B.to(device, non_blocking=True),
            row_B=self.row_B,
        )


def one_id_each(keys: list[str], rows_SB: Tensor) -> KeyedJaggedTensor:
    """S features with exactly one id per impression, from rows [S, B] (key-major, as in torchrec)."""
    return KeyedJaggedTensor(
        keys=keys,
        values=rows_SB.reshape(-1),
        lengths=torch.ones(rows_SB.numel(), dtype=torch.int32),
    )


def bags(keys: list[str], values: list[Tensor], lengths: list[Tensor]) -> KeyedJaggedTensor:
    """Features with any number of ids; one (values, lengths) pair a key."""
    return KeyedJaggedTensor(keys=keys, values=torch.cat(values), lengths=torch.cat(lengths))
