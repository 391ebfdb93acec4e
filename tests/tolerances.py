"""How far a float32 result may lie from the exact one, from its arithmetic instead of by trial.

A kernel adds in an order of its own: AVX-512 keeps sixteen partial sums, AVX2 eight, plain code one, and a
fused multiply-add rounds once where two operations round twice. Each order gives another float32 number, and
none is the right one. In every order a sum of n rounded products is off by at most n units of rounding (half
an epsilon) times the sum of their absolute values (Higham, Accuracy and Stability of Numerical Algorithms,
section 3.1). A whole epsilon a term leaves room for the exp, log or square root around the sum.
"""

import math

import torch

FLOAT32_EPSILON = torch.finfo(torch.float32).eps  # 2 ** -23


def float32_error(terms: int, *, size: float = 1.0) -> float:
    """How far a float32 sum may lie from the exact one: epsilon * `terms` * `size`.

    A tolerance for one result; two float32 results, each with its own error, may be twice as far apart.

    Args:
        terms: how many numbers are added up, over all layers that the result went through.
        size: what the absolute values that are added come to; of a softmax, the largest logit, if above 1:
            the rounding of a logit is what its exp is off by, in relation to the exp.
    """
    return FLOAT32_EPSILON * terms * size


def float32_drift(terms: int, *, size: float = 1.0) -> float:
    """How far apart two float32 results of a network may lie: 3 * epsilon * sqrt(`terms`) * `size`.

    A network adds up hundreds of terms, and rounding errors of either sign cancel: of n of them, six units of
    rounding times sqrt(n) are exceeded once in 3e7 (Higham and Mary, A New Approach to Probabilistic Rounding
    Error Analysis, 2019). `float32_error` assumes that no two cancel and would let mistakes in the fifth
    decimal pass.

    Args:
        terms: the terms of the sums that stand one after another on the longest way through the network.
        size: how large the result is; 1 for a unit vector.
    """
    return 3 * FLOAT32_EPSILON * math.sqrt(terms) * size
