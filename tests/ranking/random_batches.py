"""Small random inputs of a ranker."""

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.batches.batch import SEMANTIC_KEYS, Batch, bags, one_id_each
from ranking.model import RankerConfig, RankerInputs, SemanticConfig

DIM = 8
SPARSE_ROWS = {"user": 30, "brand": 7, "device": 3}


def inputs(seed: int = 0) -> RankerInputs:
    rng = np.random.default_rng(seed)
    vectors = {"product": rng.normal(size=(21, DIM)), "query": rng.normal(size=(11, DIM))}
    for table in vectors.values():
        table /= np.linalg.norm(table, axis=1, keepdims=True)
        table[0] = 0
    return RankerInputs(3, SPARSE_ROWS, {name: v.astype(np.float32) for name, v in vectors.items()})


def batch(size: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def integers(high: int, shape: tuple[int, ...], low: int = 0) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)

    sparse = torch.stack([integers(rows, (size,)) for rows in SPARSE_ROWS.values()])
    lengths = [integers(2, (size,)), integers(2, (size,)), integers(6, (size,))]
    values = [
        integers(high, (int(length.sum()),), low=1).long()
        for high, length in zip((21, 11, 21), lengths, strict=True)
    ]
    return Batch(
        dense_BF=torch.randn(size, 3, generator=generator),
        sparse=one_id_each(list(SPARSE_ROWS), sparse),
        semantic=bags(list(SEMANTIC_KEYS), values, lengths),
        clicked_B=(torch.rand(size, generator=generator) < 0.3).float(),
        row_B=torch.arange(size),
    )


def row(of: Batch, i: int) -> Batch:
    """Row i as a batch of one."""
    return Batch(
        dense_BF=of.dense_BF[i : i + 1],
        sparse=_row_of(of.sparse, i),
        semantic=_row_of(of.semantic, i),
        clicked_B=of.clicked_B[i : i + 1],
        row_B=of.row_B[i : i + 1],
    )


def _row_of(features: KeyedJaggedTensor, i: int) -> KeyedJaggedTensor:
    bag = [features[key].to_dense()[i] for key in features.keys()]  # noqa: SIM118 - not a dict
    lengths = [torch.tensor([len(values)], dtype=torch.int32) for values in bag]
    return bags(features.keys(), bag, lengths)


SMALL = {"embedding_dim": 4, "cross_layers": 2, "deep_widths": (8,), "top_widths": (8,)}
RANKERS = {
    "dcn": RankerConfig(**SMALL),
    "dcn, low-rank cross": RankerConfig(**{**SMALL, "cross_rank": 3}),
    "product + query": RankerConfig(
        **SMALL, semantic=SemanticConfig(entities=("product", "query"), widths=(8,))
    ),
    "product + query + history": RankerConfig(**SMALL, semantic=SemanticConfig(widths=(8,))),
    "product + history": RankerConfig(
        **SMALL, semantic=SemanticConfig(entities=("product", "history"), widths=(8,))
    ),
    "history tiers": RankerConfig(**SMALL, semantic=SemanticConfig(widths=(8,), history_tiers=5)),
    "similarity": RankerConfig(**SMALL, semantic=SemanticConfig(reads="similarity")),
    "random tables": RankerConfig(**SMALL, semantic=SemanticConfig(initialisation="random", widths=(8,))),
}
