"""Shares that people write in a config, of whole counts."""

from fractions import Fraction


def rounded_down(share: float, count: int) -> int:
    """`share` of `count` as it is written in decimal, rounded down.

    In binary, .29 is a little less than it says, and .29 times 100 is 28.999...

    >>> rounded_down(0.29, 100), int(0.29 * 100), rounded_down(0.29, 99)
    (29, 28, 28)
    """
    exact = Fraction(repr(float(share)))
    return int(count) * exact.numerator // exact.denominator
