"""What decides who clicks: shares of the causes in the variance of the true log-odds of a click.

Shapes: N impressions of one day, G groups of causes.
"""

from typing import Any

import numpy as np

from experiments.marketplace.world.catalog import FloatArray, IntArray

#: Groups of the terms of `clicks.click_terms`.
GROUPS = {
    "relevance": ("grade", "facet_match"),
    "taste": ("taste",),
    "past_purchase": ("repeat_purchase",),
    "price": ("relative_price",),
    "quality": ("quality",),
    "position": ("positions",),
    "user": ("user",),
    "moment": ("devices", "evening"),
}


class LogitVariance:
    """Sums over all days, for the variance over impressions and the part of it within slates.

    The share of a group is the covariance of its terms with the log-odds, divided by the variance of the
    log-odds. So shares sum to one, and a group that works against the others has a negative one. Within
    slates, each term counts by its difference to the mean of its search: what all ads of a slate share, such
    as the user, cannot decide which of them is clicked.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sum_G = np.zeros(len(GROUPS))
        self._products_GG = np.zeros((len(GROUPS), len(GROUPS)))
        self._within_GG = np.zeros((len(GROUPS), len(GROUPS)))

    def add(self, terms: dict[str, FloatArray], position_N: IntArray) -> None:
        """Count impressions in order of search and position; every search has a position 1."""
        if not len(position_N):
            return
        groups = [sum(terms[name] for name in names) for names in GROUPS.values()]
        value_GN = np.array(groups, dtype=np.float64)
        self._count += len(position_N)
        self._sum_G += value_GN.sum(axis=1)
        self._products_GG += value_GN @ value_GN.T
        first = np.flatnonzero(position_N == 1)
        size = np.diff([*first, len(position_N)])
        mean_GS = np.add.reduceat(value_GN, first, axis=1) / size
        apart_GN = value_GN - np.repeat(mean_GS, size, axis=1)
        self._within_GG += apart_GN @ apart_GN.T

    def summary(self) -> dict[str, Any]:
        """Standard deviation of the log-odds and shares by group, over all impressions and within slates."""
        count = max(self._count, 1)
        mean_G = self._sum_G / count
        covariance_GG = self._products_GG / count - np.outer(mean_G, mean_G)
        within_GG = self._within_GG / count
        return {
            "sd": float(np.sqrt(covariance_GG.sum())),
            "shares": _shares(covariance_GG),
            "sd_within_slates": float(np.sqrt(within_GG.sum())),
            "shares_within_slates": _shares(within_GG),
        }


def _shares(covariance_GG: FloatArray) -> dict[str, float]:
    with_all_G = covariance_GG.sum(axis=1) / max(float(covariance_GG.sum()), 1e-12)
    return {group: round(float(share), 5) for group, share in zip(GROUPS, with_all_G, strict=True)}
