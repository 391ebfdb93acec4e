"""How well an AUC can be measured on a given number of clicks, before anything is trained."""

import math


def auc_standard_error(auc: float, clicks: int, others: int) -> float:
    """Standard error of an AUC by Hanley and McNeil (1982), for `clicks` clicked rows and `others` not.

    Of independent rows: rows of the same user make it larger. At AUC 0.5 it is that of the rank-sum
    statistic, sqrt((clicks + others + 1) / (12 clicks others)).

    Raises:
        ValueError: one of both classes is empty, or the AUC is not in (0, 1).
    """
    if not 0 < auc < 1 or clicks < 1 or others < 1:
        raise ValueError(f"needs an AUC in (0, 1) and rows of both classes, got {auc}, {clicks}, {others}")
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (clicks - 1) * (q1 - auc**2) + (others - 1) * (q2 - auc**2)
    return math.sqrt(variance / (clicks * others))
