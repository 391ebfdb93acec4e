"""What ads bid and what their advertisers may spend a day; docs/marketplace.md has the rules.

Shapes: P products, A advertisers.
"""

from dataclasses import dataclass

import numpy as np

from experiments.marketplace.world.catalog import FloatArray, IntArray, Shelf

#: The least that a click costs, and that an ad may bid.
RESERVE = 0.05
_HIGHEST_BID = 5.0
_MEDIAN_BID = 0.40
_BUDGET_SPREAD = 0.75
_CLICKS_AT_LEAST = 4


@dataclass(frozen=True)
class Advertisers:
    """Bids of all ads, and the budgets of those who pay for them: the brands."""

    bid_P: FloatArray
    advertiser_P: IntArray
    daily_budget_A: FloatArray


def make_advertisers(catalog: Shelf, *, clicks_per_day: float, seed: np.random.SeedSequence) -> Advertisers:
    """Bids by auction weight; budgets by the share of the day's clicks that this weight would win."""
    weight_P = catalog.ad_weight_P
    bid_P = np.clip(_MEDIAN_BID * np.sqrt(weight_P / np.median(weight_P)), RESERVE, _HIGHEST_BID)
    advertiser_P = catalog.brand_P.astype(np.int64)
    count = int(advertiser_P.max()) + 1
    weight_A = np.bincount(advertiser_P, weights=weight_P, minlength=count)
    weighted_bid_A = np.bincount(advertiser_P, weights=weight_P * bid_P, minlength=count)
    highest_A = np.zeros(count)
    np.maximum.at(highest_A, advertiser_P, bid_P)
    # Clicks by share of weight, each at the mean bid.
    expected_A = clicks_per_day * weighted_bid_A / weight_A.sum()
    generosity_A = np.random.default_rng(seed).lognormal(0.0, _BUDGET_SPREAD, count)
    return Advertisers(
        bid_P=bid_P,
        advertiser_P=advertiser_P,
        daily_budget_A=np.maximum(expected_A * generosity_A, _CLICKS_AT_LEAST * highest_A),
    )
