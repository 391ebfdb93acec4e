"""One batch of impressions, as the ranker takes it.

Shapes: B impressions, F dense features, S sparse features (one id each).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

#: Keys of `Batch.semantic`, in this order.
SEMANTIC_KEYS = ("product", "query", "history")


@dataclass(frozen=True)
class Batch(Pipelineable):
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

    def to(self, device: torch.device, non_blocking: bool = True) -> Self:
        """The same batch on `device`, but for `row_B`, which stays on the host.

        Nobody waits for the copy of a batch in pinned memory.
        """
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same batch in memory that a GPU reads while others compute."""
        return self._each(lambda part: part.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory until what `stream` has been asked for so far is done."""
        for part in (self.dense_BF, self.sparse, self.semantic, self.clicked_B):
            part.record_stream(stream)

    def _each(self, change: Callable[[Any], Any]) -> Self:
        return replace(
            self,
            dense_BF=change(self.dense_BF),
            sparse=change(self.sparse),
            semantic=change(self.semantic),
            clicked_B=change(self.clicked_B),
        )


def one_id_each(keys: list[str], rows_SB: Tensor) -> KeyedJaggedTensor:
    """S features with exactly one id per impression, from rows [S, B] (key-major, as in torchrec)."""
    return KeyedJaggedTensor(
        keys=keys,
        values=rows_SB.reshape(-1),
        lengths=torch.ones(rows_SB.numel(), dtype=torch.int32),
        length_per_key=[rows_SB.shape[1]] * len(keys),
    )


def bags(keys: list[str], values: list[Tensor], lengths: list[Tensor]) -> KeyedJaggedTensor:
    """Features with any number of ids; one (values, lengths) pair a key."""
    return KeyedJaggedTensor(
        keys=keys,
        values=torch.cat(values),
        lengths=torch.cat(lengths),
        length_per_key=[len(of_key) for of_key in values],  # else torchrec asks the device for it, and waits
    )
