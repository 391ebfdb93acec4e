"""Bins of equal mass, by a slow count."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.package.training_record import Distribution, TrainingRecord, count_bins


def record(seed: int = 0, rows: int = 5_000) -> tuple[TrainingRecord, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    scores_N = random.beta(1, 8, rows).astype(np.float32)
    dense_NF = np.stack([random.normal(size=rows), random.integers(0, 3, rows)], axis=1).astype(np.float32)
    return TrainingRecord.of(scores_N, dense_NF, ["price", "clicks"]), scores_N, dense_NF


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=200))
def test_every_value_is_in_one_bin_and_the_bins_are_those_of_a_slow_count(values: list[float]) -> None:
    values_N = np.array(values, np.float32)
    distribution = Distribution.of(values_N)
    edges = [-math.inf, *distribution.edges, math.inf]
    slow = [sum(low < value <= high for value in values_N.astype(float)) for low, high in pairwise(edges)]
    assert count_bins(values_N, np.array(distribution.edges)).tolist() == slow
    assert distribution.shares == pytest.approx([count / len(values) for count in slow])


def test_a_feature_with_three_values_gets_no_more_bins_than_values() -> None:
    trained, _, _ = record()
    assert len(trained.features["clicks"].edges) == 3


def test_a_distribution_refuses_nan_and_nothing() -> None:
    for values_N in (np.array([]), np.array([1.0, np.nan])):
        with pytest.raises(ValueError, match="finite"):
            Distribution.of(values_N)


def test_a_record_survives_json() -> None:
    trained, _, _ = record()
    assert TrainingRecord.model_validate_json(trained.model_dump_json()) == trained
