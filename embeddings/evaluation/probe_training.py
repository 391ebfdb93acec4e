"""A small classifier on frozen features: split of rows, training with early stopping, prediction.

Shapes: N rows, F features, C classes, H hidden width, M rows of one part of a split.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, field_validator
from torch import nn

from features.artifacts import StrictModel

IntArray = npt.NDArray[np.integer]
FloatArray = npt.NDArray[np.float32]

TEST_SHARE = 0.2
#: Of the 80 % that are left; it decides when to stop.
VALIDATION_SHARE = 0.1


class ProbeConfig(StrictModel):
    """How probes are trained, before and after alike; the paper gives none of these."""

    #: Each seed draws its own rows, split, first weights and order of batches.
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2, 3, 4)
    #: Width of the hidden layer of the aisle probe.
    hidden_dim: Annotated[int, Field(ge=1)] = 256
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    learning_rate: Annotated[float, Field(gt=0)] = 5e-3
    batch_rows: Annotated[int, Field(ge=1)] = 512
    max_epochs: Annotated[int, Field(ge=1)] = 100
    #: Epochs without a lower validation loss until training stops; the weights of the lowest are kept.
    patience: Annotated[int, Field(ge=1)] = 4
    #: Pairs that one seed draws once half of the irrelevant are dropped; the paper has 40,752 in all.
    max_pairs: Annotated[int, Field(ge=1)] = 20_000

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"seeds must be distinct and not negative, got {seeds}")
        return seeds


@dataclass(frozen=True, eq=False)
class ProbeSplit:
    """Disjoint row numbers: trained on, watched for early stopping, measured."""

    train_M: IntArray
    validation_M: IntArray
    test_M: IntArray


def split_rows(class_N: IntArray, *, rng: np.random.Generator, group_N: IntArray | None = None) -> ProbeSplit:
    """20 % test, 8 % validation, the rest training, each within one row of that share in every class.

    Rows of one group stay together: then a group counts to the class of its first row, and shares hold only
    as far as groups are small. Without groups each row is its own, and a class of 5 rows has one in the test.
    """
    if group_N is None:
        group_N = np.arange(len(class_N))
    _, first_G, group_N = np.unique(group_N, return_index=True, return_inverse=True)
    class_G, rows_G = class_N[first_G], np.bincount(group_N, minlength=len(first_G))
    order_G = np.lexsort((rng.permutation(len(first_G)), class_G))
    class_G, rows_G = class_G[order_G], rows_G[order_G]
    through_G = np.cumsum(rows_G)
    start_G = np.searchsorted(class_G, class_G, side="left")
    end_G = np.searchsorted(class_G, class_G, side="right") - 1
    before_class_G = through_G[start_G] - rows_G[start_G]
    # The middle of a group in its class, as a share of the rows of the class.
    middle_G = (through_G - rows_G / 2 - before_class_G) / (through_G[end_G] - before_class_G)
    part_G = np.empty(len(order_G), np.int8)
    part_G[order_G] = np.digitize(middle_G, [TEST_SHARE, TEST_SHARE + VALIDATION_SHARE * (1 - TEST_SHARE)])
    part_N = part_G[group_N]
    test_M, validation_M, train_M = (np.flatnonzero(part_N == part) for part in range(3))
    return ProbeSplit(train_M=train_M, validation_M=validation_M, test_M=test_M)


@dataclass(frozen=True, eq=False)
class FittedProbe:
    """A trained classifier's answers on the test rows."""

    predicted_M: IntArray
    #: The epoch with the lowest validation loss, from 1.
    epoch: int


def fit_and_predict(
    train: tuple[FloatArray, IntArray],
    validation: tuple[FloatArray, IntArray],
    test_MF: FloatArray,
    *,
    classes: int,
    hidden_dim: int | None,
    config: ProbeConfig,
    seed: int,
) -> FittedProbe:
    """Train on features and classes, stop early, predict the test rows.

    With `hidden_dim` the paper's aisle classifier (linear, ReLU, dropout, linear), else that of relevance
    (dropout, linear). Features are standardised by the training rows, so neither the length nor the offset
    of the vectors decides how fast a probe learns. The global generator is not touched.
    """
    mean_F, sd_F = train[0].mean(axis=0), train[0].std(axis=0)
    scale_F = np.where(
        sd_F > 1e-6 * max(float(sd_F.max()), 1e-30), sd_F, np.inf
    )  # constant features say nothing

    def standardised(features_MF: FloatArray) -> torch.Tensor:
        return torch.from_numpy(((features_MF - mean_F) / scale_F).astype(np.float32))

    features_MF, class_M = standardised(train[0]), torch.from_numpy(train[1].astype(np.int64))
    watched_MF, watched_M = standardised(validation[0]), torch.from_numpy(validation[1].astype(np.int64))
    # Two generators: then vectors of another width, which need more weights, still meet the same batches.
    rng, order_rng = np.random.default_rng((seed, 0)), np.random.default_rng((seed, 1))
    network = _network(features_MF.shape[1], classes, hidden_dim=hidden_dim, dropout=config.dropout, rng=rng)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, fused=True)
    best_loss, best_epoch, best_state = float("inf"), 0, network.state_dict()
    for epoch in range(1, config.max_epochs + 1):
        network.train()
        for rows_B in torch.from_numpy(order_rng.permutation(len(class_M))).split(config.batch_rows):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(features_MF[rows_B]), class_M[rows_B]).backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            loss = float(nn.functional.cross_entropy(network(watched_MF), watched_M))
        if loss < best_loss:
            best_loss, best_epoch = loss, epoch
            best_state = {name: value.clone() for name, value in network.state_dict().items()}
        elif epoch - best_epoch >= config.patience:
            break
    network.load_state_dict(best_state)
    with torch.no_grad():
        predicted_M = network(standardised(test_MF)).argmax(dim=1).numpy()
    return FittedProbe(predicted_M=predicted_M, epoch=best_epoch)


class ByteDropout(nn.Module):
    """Dropout that draws a byte for each value: torch's own took two thirds of the time of a probe on a CPU.

    Its rate is that asked for, to the nearest 1/256; what is kept is divided by the share kept.
    """

    def __init__(self, rate: float, *, rng: np.random.Generator) -> None:
        super().__init__()
        self._dropped_bytes = min(round(rate * 256), 255)
        self._rng = rng

    def forward(self, values_BF: torch.Tensor) -> torch.Tensor:
        if not self.training or not self._dropped_bytes:
            return values_BF
        drawn_BF = self._rng.integers(0, 256, size=tuple(values_BF.shape), dtype=np.uint8)
        kept_BF = torch.from_numpy(drawn_BF >= self._dropped_bytes)
        return values_BF * kept_BF * (256 / (256 - self._dropped_bytes))


def _network(
    features: int, classes: int, *, hidden_dim: int | None, dropout: float, rng: np.random.Generator
) -> nn.Sequential:
    if hidden_dim is None:
        return nn.Sequential(ByteDropout(dropout, rng=rng), _linear(features, classes, rng))
    return nn.Sequential(
        _linear(features, hidden_dim, rng),
        nn.ReLU(),
        ByteDropout(dropout, rng=rng),
        _linear(hidden_dim, classes, rng),
    )


def _linear(inputs: int, outputs: int, rng: np.random.Generator) -> nn.Linear:
    """A linear layer whose first weights come from `rng`, uniform within 1 / sqrt(inputs) as torch's are."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    bound = inputs**-0.5
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias):
            values = rng.uniform(-bound, bound, size=tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))
    return layer
