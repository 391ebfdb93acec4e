"""Bins of equal mass, by a slow count; records of this version and of the one before."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from serving.package.training_record import (
    RecordInManifest,
    TrainingRecord,
    WatchedColumn,
    bins_of,
    edges_of,
)


def column(**changes: object) -> WatchedColumn:
    given = {"name": "price", "by": "candidate", "kind": "dense", "column": "price", "mean": 0.5}
    return WatchedColumn.model_validate(
        {**given, "edges": (0.0, 1.0), "shares": (0.2, 0.3, 0.5), "errors": (0.1, 0.1, 0.1), **changes}
    )


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=200))
def test_every_value_is_in_one_bin_and_the_bins_are_those_of_a_slow_count(values: list[float]) -> None:
    values_N = np.array(values, np.float32)
    edges = edges_of(values_N)
    open_edges = [-math.inf, *edges, math.inf]
    slow = [
        sum(low < value <= high for value in values_N.astype(float)) for low, high in pairwise(open_edges)
    ]
    assert np.bincount(bins_of(values_N, edges), minlength=len(slow)).tolist() == slow


def test_a_feature_with_three_values_gets_no_more_bins_than_values_and_one_for_what_is_beyond() -> None:
    assert edges_of(np.array([0.0, 1, 2] * 50)).tolist() == [0, 1, 2]


def test_bins_refuse_nan_and_nothing() -> None:
    for values_N in (np.array([]), np.array([1.0, np.nan])):
        with pytest.raises(ValueError, match="finite"):
            edges_of(values_N)


def test_a_column_has_as_many_shares_and_errors_as_bins() -> None:
    for wrong in ({"edges": (0.0,)}, {"edges": (1.0, 0.0)}, {"errors": (0.1,)}):
        with pytest.raises(ValueError, match=r"edges bound|as many errors"):
            column(**wrong)


def test_a_record_survives_json_and_one_that_counted_impressions_is_none() -> None:
    read = TypeAdapter(RecordInManifest)
    record = TrainingRecord(requests=1, candidates=2, groups=1, columns=(column(),))
    assert read.validate_json(record.model_dump_json()) == record
    earlier = {"rows": 9, "scores": {"edges": [0.5], "shares": [0.5, 0.5]}, "features": {}}
    assert read.validate_python(earlier) is None
    with pytest.raises(ValueError, match="columns"):
        read.validate_python({"columns": 3})
