"""The order of a reply."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.wire.reply import best_first


def test_scores_of_2_5_5_tenths_have_the_order_1_2_0() -> None:
    assert best_first(np.array([0.2, 0.5, 0.5], np.float32)).tolist() == [1, 2, 0]


@given(st.lists(st.floats(0, 1, width=32), min_size=1))
def test_the_order_is_a_permutation_by_falling_score_and_keeps_ties(scores: list[float]) -> None:
    order = best_first(np.array(scores, np.float32)).tolist()
    assert order == sorted(range(len(scores)), key=lambda position: (-scores[position], position))
