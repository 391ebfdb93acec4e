"""What the tests of the losses share: unit vectors by seed, and sums written as loops."""

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

from embeddings.training.losses import unit_vectors

DIM = 8
TAU = 0.2
seeds = st.integers(0, 2**32 - 1)
temperatures = st.sampled_from([1e-6, 1e-3, 0.07, 1.0, 1e3])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(*shape: int, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
    return unit_vectors(torch.randn(*shape, generator=generator, dtype=dtype))


def dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def softmax_loop(logits: list[float]) -> list[float]:
    top = max(logits)
    total = sum(math.exp(logit - top) for logit in logits)
    return [math.exp(logit - top) / total for logit in logits]
