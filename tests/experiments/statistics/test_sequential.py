"""Sequential intervals: against numeric integration, and the error that they keep when looked at often."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from experiments.statistics.sequential import BEST_RATIO, mixture_critical


def test_the_interval_is_that_of_the_mixture_of_likelihood_ratios():
    """M by integrating the likelihood ratio over effects; it must be 1 / error at the limits."""
    scale, deviation, error = 0.3, 0.2, 0.05
    critical = mixture_critical((scale / deviation) ** 2, error=error)
    found = critical * deviation

    def weighed(effect: float) -> float:
        ratio = stats.norm.pdf(found, effect, deviation) / stats.norm.pdf(found, 0, deviation)
        return float(ratio * stats.norm.pdf(effect, 0, scale))

    mixture, _ = integrate.quad(weighed, -4, 4, points=[0, found])
    assert mixture == pytest.approx(1 / error, rel=1e-6)


def test_the_best_ratio_gives_the_narrowest_interval():
    ratios = np.exp(np.linspace(-4, 8, 2000))
    widths = [mixture_critical(ratio) for ratio in ratios]
    assert ratios[int(np.argmin(widths))] == pytest.approx(BEST_RATIO, rel=0.01)


def test_without_information_everything_is_possible_and_without_noise_one_value():
    assert mixture_critical(0.0) == math.inf
    assert mixture_critical(math.inf) == 0.0


def test_a_smaller_error_makes_it_wider_and_it_is_wider_than_a_plain_one():
    assert mixture_critical(8, error=0.01) > mixture_critical(8, error=0.05) > stats.norm.ppf(0.975)


def test_looking_after_every_observation_errs_no_more_than_promised_and_a_plain_interval_does():
    rng = np.random.default_rng(5)
    looks, runs = 400, 2000
    sums = rng.standard_normal((runs, looks)).cumsum(axis=1)
    counts = np.arange(1, looks + 1)
    errors_away = np.abs(sums) / np.sqrt(counts)
    critical = np.array([mixture_critical(BEST_RATIO * count / looks) for count in counts])
    assert (errors_away > critical).any(axis=1).mean() <= 0.05
    assert (errors_away > 1.96).any(axis=1).mean() > 0.3
