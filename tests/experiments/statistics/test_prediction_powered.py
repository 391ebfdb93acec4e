"""Prediction-powered means: limits that cover, against a bootstrap of whole groups, and the two ends."""

import numpy as np
import pytest

from experiments.statistics.intervals import Interval
from experiments.statistics.prediction_powered import GroupSums, prediction_powered_mean


def drawn(rng: np.random.Generator, *, noise: float = 0.3, shift: float = 0.0) -> GroupSums:
    """60 groups with 2 to 8 labelled rows, all but ten of them and 200 more with others; the mean is 0.5.

    Rows of a group have a level in common, which labels and predictions share: no row counts as a whole one.
    """
    level_G = rng.normal(0, 0.4, 260)
    labelled_G = np.where(np.arange(260) < 60, rng.integers(2, 9, 260), 0)
    others_G = np.where(np.arange(260) >= 10, rng.integers(5, 16, 260), 0)
    sums = np.zeros((3, 260))
    for group in range(260):
        truth = 0.5 + level_G[group] + rng.normal(0, 0.3, labelled_G[group])
        other_truth = 0.5 + level_G[group] + rng.normal(0, 0.3, others_G[group])
        predicted = 0.9 * truth + rng.normal(0, noise, len(truth)) + 0.2
        other_predicted = 0.9 * other_truth + rng.normal(0, noise, len(other_truth)) + 0.2 + shift
        sums[:, group] = truth.sum(), predicted.sum(), other_predicted.sum()
    return GroupSums(labelled_G, sums[0], sums[1], others_G, sums[2])


def width(interval: Interval) -> float:
    assert interval.low is not None
    assert interval.high is not None
    return interval.high - interval.low


def covers(interval: Interval, value: float) -> bool:
    return interval.low is not None and interval.high is not None and interval.low <= value <= interval.high


def test_limits_cover_the_mean_as_often_as_they_say_and_are_narrower() -> None:
    rng = np.random.default_rng(0)
    found = [prediction_powered_mean(drawn(rng)) for _ in range(400)]
    for kind in ("powered", "labels_alone"):
        covered = np.mean([covers(getattr(one, kind), 0.5) for one in found])
        assert 0.92 < covered < 0.98, kind
    assert 0.92 < np.mean([covers(one.shift, 0) for one in found]) < 0.98
    narrower = np.mean([width(one.powered) / width(one.labels_alone) for one in found])
    assert narrower < 0.75


def test_limits_are_those_of_a_bootstrap_of_whole_groups() -> None:
    rng = np.random.default_rng(1)
    sums = drawn(rng)
    found = prediction_powered_mean(sums)
    means = []
    for _ in range(4000):
        rows = rng.integers(0, 260, 260)
        labelled, others = sums.labelled_G[rows].sum(), sums.others_G[rows].sum()
        gap = sums.predicted_G[rows].sum() / labelled - sums.other_predicted_G[rows].sum() / others
        means.append(sums.label_G[rows].sum() / labelled - found.tuning * gap)
    low, high = np.quantile(means, [0.025, 0.975])
    assert width(found.powered) == pytest.approx(high - low, rel=0.1)


def test_the_tuning_of_independent_rows_is_that_of_the_paper() -> None:
    """Covariance of label and prediction / (variance of predictions * (1 + n / N)), rows one by one."""
    rng = np.random.default_rng(2)
    n, others = 300, 1500
    label_N = rng.normal(size=n)
    predicted_N = 0.5 * label_N + rng.normal(size=n)
    other_N = rng.normal(0, predicted_N.std(), others)
    other_N = (other_N - other_N.mean()) / other_N.std() * predicted_N.std()
    zeros_N, zeros_M = np.zeros(n), np.zeros(others)
    found = prediction_powered_mean(
        GroupSums(
            np.repeat([1, 0], [n, others]),
            np.concatenate([label_N, zeros_M]),
            np.concatenate([predicted_N, zeros_M]),
            np.repeat([0, 1], [n, others]),
            np.concatenate([zeros_N, other_N]),
        )
    )
    expected = np.cov(label_N, predicted_N, ddof=0)[0, 1] / (predicted_N.var() * (1 + n / others))
    assert found.tuning == pytest.approx(expected)
    mean = label_N.mean() - expected * (predicted_N.mean() - other_N.mean())
    assert found.powered.mean == pytest.approx(mean)
    assert found.labels_alone.mean == pytest.approx(label_N.mean())


@pytest.mark.parametrize("sign", [0.0, -1.0])
def test_predictions_that_say_nothing_or_the_opposite_change_nothing(sign: float) -> None:
    sums = drawn(np.random.default_rng(3))
    useless = GroupSums(
        sums.labelled_G,
        sums.label_G,
        sign * sums.predicted_G + sums.labelled_G,
        sums.others_G,
        sign * sums.other_predicted_G + sums.others_G,
    )
    found = prediction_powered_mean(useless)
    assert found.tuning == 0
    assert found.powered == found.labels_alone


def test_another_population_shows_in_the_shift() -> None:
    found = prediction_powered_mean(drawn(np.random.default_rng(4), shift=0.5))
    assert found.shift.low is not None
    assert found.shift.low > 0


def test_one_group_of_labels_has_no_limits_and_none_is_refused() -> None:
    one = GroupSums(
        np.array([3, 0]), np.array([1.0, 0]), np.array([1.0, 0]), np.array([0, 2]), np.array([0, 1.0])
    )
    assert prediction_powered_mean(one).powered.low is None
    none = GroupSums(np.zeros(2, int), np.zeros(2), np.zeros(2), np.ones(2, int), np.ones(2))
    with pytest.raises(ValueError, match="got 0 and 2"):
        prediction_powered_mean(none)
