"""Which difference a test could show: the formulas by hand, and against clicks and scores drawn many times.

Shapes: R draws of a sample, P clicked rows, Q rows not clicked.
"""

import math

import numpy as np
import pytest

from experiments.statistics.intervals import Interval
from experiments.statistics.power import (
    STANDARD_ERRORS,
    auc_variance,
    detectable_by,
    detectable_difference,
    expected_sentence,
)
from ranking.metrics import roc_auc


def test_one_click_and_one_other_have_the_variance_of_a_coin():
    assert auc_variance(0.7, clicked=1, others=1) == pytest.approx(0.7 * 0.3)
    assert auc_variance(1.0, clicked=5, others=9) == pytest.approx(0)
    # auc 1/2: Q1 = Q2 = 1/3, so (1/4 + (2 - 1 + 3 - 1) / 12) / 6
    assert auc_variance(0.5, clicked=2, others=3) == pytest.approx((1 / 4 + 3 / 12) / 6)


def test_at_chance_the_variance_is_that_of_the_rank_sum():
    for clicked, others in ((1, 1), (3, 8), (200, 1_000)):
        by_ranks = (clicked + others + 1) / (12 * clicked * others)
        assert auc_variance(0.5, clicked=clicked, others=others) == pytest.approx(by_ranks)


@pytest.mark.parametrize(("clicked", "others", "auc"), [(12, 150, 0.6), (30, 30, 0.75), (60, 400, 0.85)])
def test_the_variance_is_that_of_aucs_of_scores_drawn_again_and_again(clicked, others, auc):
    """Exponential scores: a clicked one is the larger of the two with probability scale / (1 + scale)."""
    rng = np.random.default_rng(3)
    labels = np.repeat([1, 0], [clicked, others])
    aucs = []
    for _ in range(3000):
        scores = np.concatenate([rng.exponential(auc / (1 - auc), clicked), rng.exponential(1, others)])
        aucs.append(roc_auc(labels, scores))
    assert np.mean(aucs) == pytest.approx(auc, abs=0.005)
    assert np.var(aucs) == pytest.approx(auc_variance(auc, clicked=clicked, others=others), rel=0.12)


def test_a_difference_of_that_size_is_found_in_four_of_five_tests():
    """Two rankers that share most of what they know, compared on 1,000 drawn samples of 40 clicks."""
    rng = np.random.default_rng(5)
    clicked, others = 40, 500
    labels = np.repeat([1, 0], [clicked, others])
    first, second = [], []
    for _ in range(1000):
        shared = rng.exponential(np.where(labels, 7 / 3, 1.0))
        one, other = (shared * np.exp(rng.normal(0, 0.25, len(labels))) for _ in range(2))
        first.append(roc_auc(labels, one))
        second.append(roc_auc(labels, other))
    correlation = float(np.corrcoef(first, second)[0, 1])
    assert 0.8 < correlation < 0.99
    auc, difference_R = float(np.mean(first)), np.subtract(second, first)
    found = detectable_difference(clicked, clicked + others, auc=auc, correlation=correlation)
    assert found is not None
    limit = 1.959964 * difference_R.std()
    shifted_R = difference_R - difference_R.mean() + found
    assert np.mean(np.abs(shifted_R) > limit) == pytest.approx(0.8, abs=0.06)
    assert np.mean(np.abs(shifted_R - found / 2) > limit) < 0.4, "half of it is mostly missed"


def test_the_width_of_an_interval_says_the_same_as_its_standard_error():
    sd = 0.01
    interval = Interval(mean=0.0, low=-1.959964 * sd, high=1.959964 * sd)
    assert detectable_by(interval) == pytest.approx(STANDARD_ERRORS * sd, rel=1e-6)
    assert pytest.approx(1.959964 + 0.841621, abs=1e-6) == STANDARD_ERRORS
    assert detectable_by(Interval(mean=0.0, low=-0.01, high=0.03)) == pytest.approx(0.0286, abs=5e-5)
    assert detectable_by(Interval(mean=0.0, low=None, high=None)) is None


def test_four_times_the_sample_shows_half_the_difference():
    few, many = detectable_difference(50, 5_000), detectable_difference(200, 20_000)
    assert few is not None
    assert many is not None
    assert few / many == pytest.approx(2, rel=0.01)
    assert detectable_difference(50, 5_000, correlation=1.0) == 0
    expected = STANDARD_ERRORS * math.sqrt(0.2 * auc_variance(0.7, clicked=50, others=4_950))
    assert few == pytest.approx(expected)


@pytest.mark.parametrize(("clicked", "rows"), [(0, 10), (10, 10), (0, 0)])
def test_without_both_kinds_there_is_nothing_to_tell_apart(clicked, rows):
    assert detectable_difference(clicked, rows) is None
    assert "no AUC" in expected_sentence(clicked, rows)
    with pytest.raises(ValueError, match="impressions of both kinds are needed"):
        auc_variance(0.7, clicked=clicked, others=rows - clicked)


def test_the_sentence_names_clicks_and_what_is_assumed():
    said = expected_sentence(17, 2_811)
    assert said.startswith("17 of 2,811 test impressions were clicked")
    assert f"differ by about {detectable_difference(17, 2_811):.4f} or more" in said
    assert "correlation 0.9" in said
