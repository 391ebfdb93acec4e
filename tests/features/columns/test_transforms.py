"""Transforms learn mean and sd, and give finite numbers for anything."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.columns.transforms import (
    FAR_BEYOND,
    ExactMoments,
    Moments,
    Transform,
    from_signed_log,
    signed_log,
)


def test_the_training_mean_becomes_0_and_one_sd_above_it_1():
    transform = Transform(kind="standard", mean=10.0, sd=4.0)
    assert transform.apply(np.array([10.0, 14.0, 2.0])).tolist() == [0.0, 1.0, -2.0]


def test_a_null_becomes_the_training_mean():
    for kind in ("standard", "log"):
        assert Transform(kind=kind, mean=3.0, sd=2.0).apply(np.array([np.nan])).tolist() == [0.0]


def test_a_column_without_spread_becomes_zeros():
    transform = Transform(kind="standard", mean=5.0, sd=0.0)
    result = transform.apply(np.array([5.0, 6.0, np.nan, 1e300]))
    assert result.dtype == np.float32
    assert result.tolist() == [0.0, 0.0, 0.0, 0.0]


def test_the_log_keeps_the_sign_and_grows_by_one_for_each_factor_e():
    value = np.array([0.0, np.e - 1, -(np.e - 1), np.e**2 - 1])
    np.testing.assert_allclose(signed_log(value), [0.0, 1.0, -1.0, 2.0], atol=1e-12)


@given(st.floats(-1e9, 1e9))
def test_from_signed_log_is_the_way_back(value):
    assert from_signed_log(float(signed_log(np.array([value]))[0])) == pytest.approx(
        value, rel=1e-9, abs=1e-12
    )


def test_another_sign_or_order_of_size_than_in_training_is_unlike_it():
    value_N = np.array([0.0, -1e-9, 80.0, 80 * FAR_BEYOND, 80.1 * FAR_BEYOND, -1e308, np.nan])
    positive = Transform(kind="log", mean=2.0, sd=1.0, bounds=(0.5, 80.0))
    assert positive.unlike_training(value_N).tolist() == [False, True, False, False, True, True, False]
    signed = Transform(kind="standard", mean=2.0, sd=1.0, bounds=(-80.0, 3.0))
    assert signed.unlike_training(value_N).tolist() == [False, False, False, False, True, True, False]


def test_a_column_without_bounds_or_spread_takes_any_number():
    value_N = np.array([-1.0, 1e300])
    for transform in (
        Transform(kind="log", mean=2.0, sd=1.0),
        Transform(kind="log", mean=2.0, sd=0.0, bounds=(1.0, 1.0)),
    ):
        assert not transform.unlike_training(value_N).any()


@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=8), min_size=1, max_size=6))
def test_moments_in_parts_equal_those_of_the_whole(parts):
    moments = Moments()
    for part in parts:
        moments.add(np.array([*part, np.nan]))
    whole = np.concatenate([np.array(part, dtype=float) for part in parts])
    assert moments.missing == len(parts)
    assert moments.count == len(whole)
    if len(whole):
        assert moments.mean == pytest.approx(whole.mean(), rel=1e-9, abs=1e-6)
        assert moments.sd == pytest.approx(whole.std(), rel=1e-6, abs=1e-4)


def test_equal_values_have_a_standard_deviation_of_exactly_0():
    for moments in (Moments(), Moments()):
        moments.add(np.full(7, 0.1))
        moments.add(np.full(3, 0.1))
        assert moments.sd == 0.0
    exact = ExactMoments()
    exact.add(np.full(4, 0.1), np.array([1, 2, 3, 4]))
    assert exact.sd == 0.0
    assert exact.mean == pytest.approx(0.1, abs=1e-8)


SIZES = st.one_of(st.floats(-22, 22), st.floats(0, 1e12))


@given(st.lists(st.tuples(SIZES, st.integers(0, 50)), min_size=1, max_size=30), st.randoms())
def test_exact_moments_do_not_depend_on_the_order_of_the_parts(values, random):
    def gathered(pairs, parts):
        total = ExactMoments()
        for start in range(parts):
            part = ExactMoments()
            chosen = pairs[start::parts]
            part.add(np.array([v for v, _ in chosen]), np.array([w for _, w in chosen], dtype=np.int64))
            total.merge(part)
        return total.mean, total.sd

    shuffled = list(values)
    random.shuffle(shuffled)
    assert gathered(values, 1) == gathered(shuffled, 3)
    repeated = np.repeat([v for v, _ in values], [w for _, w in values])
    if len(repeated):
        mean, sd = gathered(values, 1)
        largest = np.abs(repeated).max()
        assert mean == pytest.approx(repeated.mean(), abs=1e-7, rel=1e-12)
        assert sd**2 == pytest.approx(repeated.var(), abs=1e-5 + 1e-12 * largest**2)


def test_exact_moments_of_billions_of_rows_do_not_overflow():
    moments = ExactMoments()
    moments.add(np.array([20.0, 0.0]), np.array([2**40, 2**40]))
    assert moments.mean == 10.0
    assert moments.sd == 10.0
