"""The standard error of an AUC that nobody has measured yet."""

import math

import numpy as np
import pytest

from experiments.statistics.power import auc_standard_error
from ranking.metrics import roc_auc


def test_at_chance_it_is_that_of_the_rank_sum():
    for clicks, others in ((1, 1), (3, 8), (200, 1_000)):
        by_ranks = math.sqrt((clicks + others + 1) / (12 * clicks * others))
        assert auc_standard_error(0.5, clicks, others) == pytest.approx(by_ranks)


def test_it_is_the_spread_over_drawn_samples():
    draw = np.random.default_rng(0)
    clicks, others = 30, 120
    clicked = np.repeat([1, 0], [clicks, others])
    # Exponential scores, of which the formula is exact: P(clicked above other) = 3 / (1 + 3) = 0.75.
    scores = draw.exponential(np.repeat([3.0, 1.0], [clicks, others]), (4_000, clicks + others))
    found = [roc_auc(clicked, row) for row in scores]
    assert np.mean(found) == pytest.approx(0.75, abs=0.005)
    assert auc_standard_error(0.75, clicks, others) == pytest.approx(np.std(found), rel=0.05)


def test_rows_of_one_class_have_none():
    with pytest.raises(ValueError, match="both classes"):
        auc_standard_error(0.7, 0, 10)
    with pytest.raises(ValueError, match=r"\(0, 1\)"):
        auc_standard_error(1.0, 3, 10)
