"""Luck by counter: uniform, the same for the same keys, and nothing else."""

import numpy as np
from scipy.stats import kstest

from experiments.marketplace.live.draws import uniform

KEYS = np.arange(20_000)


def test_draws_are_uniform() -> None:
    drawn_N = uniform(3, "click", KEYS)
    assert drawn_N.min() >= 0
    assert drawn_N.max() < 1
    assert kstest(drawn_N, "uniform").pvalue > 0.001


def test_a_draw_does_not_depend_on_what_else_is_drawn() -> None:
    together_N = uniform(3, "click", KEYS, KEYS % 7)
    np.testing.assert_array_equal(uniform(3, "click", KEYS[500:600], KEYS[500:600] % 7), together_N[500:600])
    np.testing.assert_array_equal(uniform(3, "click", KEYS[::-1], KEYS[::-1] % 7), together_N[::-1])


def test_seed_purpose_and_every_key_count_and_so_does_their_order() -> None:
    drawn_N = uniform(3, "click", KEYS, 5)
    for other_N in (
        uniform(4, "click", KEYS, 5),
        uniform(3, "buy", KEYS, 5),
        uniform(3, "click", KEYS, 6),
        uniform(3, "click", KEYS + 1, 5),
        uniform(3, "click", 5, KEYS),
    ):
        assert (other_N == drawn_N).mean() < 0.001
        assert abs(np.corrcoef(drawn_N, other_N)[0, 1]) < 0.03
