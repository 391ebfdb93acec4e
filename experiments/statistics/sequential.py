"""Intervals for those who look every day: they hold at all looks together, whenever one stops.

The normal mixture of H. Robbins, "Statistical methods related to the law of the iterated logarithm", 1970
(https://doi.org/10.1214/aoms/1177696786), as asymptotic confidence sequence: I. Waudby-Smith, D. Arbour,
R. Sinha, E. H. Kennedy and A. Ramdas, "Time-uniform central limit theory and asymptotic confidence
sequences" (https://arxiv.org/abs/2103.06476); as a test it is the mSPRT of R. Johari, P. Koomen, L. Pekelis
and D. Walsh, "Always valid inference" (https://arxiv.org/abs/1512.04922).

An estimate with standard error s at information I = 1 / s^2 differs from the true effect by S / I, where S
has variance I. For an effect drawn from a normal distribution of standard deviation `scale`, the likelihood
ratio

    M = (1 + r)^(-1/2) exp(S^2 / (2 I) * r / (1 + r)),    r = scale^2 * I,

starts at 1 and is a martingale while estimates gain information as sums of independent parts do, so it
exceeds 1 / error at any time with probability `error` at most (Ville). Solved for S / I that is an interval
of `mixture_critical` standard errors. Each look needs as large a sample as a plain interval.
"""

import math

#: At this r the interval is narrowest for an error of 5 %. With the effect that a plan for 80 % power is
#: made for as `scale`, r is 7.85 at its end.
BEST_RATIO = 8.2


def mixture_critical(ratio: float, *, error: float = 0.05) -> float:
    """Standard errors to each side of an estimate that hold at all looks together.

    Args:
        ratio: r, squared `scale` over squared standard error; `scale` is chosen before the first look.

    Returns:
        3.04 at its best, where a plain interval has 1.96; infinity without any information.

    >>> round(mixture_critical(8.2), 2)
    3.04
    """
    if not ratio > 0:
        return math.inf
    if math.isinf(ratio):  # no noise at all
        return 0.0
    return math.sqrt((1 + 1 / ratio) * math.log((1 + ratio) / error**2))
