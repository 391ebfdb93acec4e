"""Shares of counts, as people write them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.inputs.shares import rounded_down


@given(st.integers(0, 1000), st.integers(0, 10**12))
def test_a_share_in_thousandths_is_exact(thousandths: int, count: int) -> None:
    assert rounded_down(thousandths / 1000, count) == thousandths * count // 1000


@pytest.mark.parametrize("share", [0.29, np.float64(0.29)])
def test_29_of_a_hundred_are_29(share: float) -> None:
    assert [rounded_down(share, count) for count in (0, 3, 99, 100, 101)] == [0, 0, 28, 29, 29]
