"""The click model: the log-odds of a click as a sum of named terms, and when a click comes.

Shapes: N impressions.
"""

from dataclasses import dataclass

import numpy as np

from experiments.marketplace.config import ClickModel
from experiments.marketplace.world.catalog import BoolArray, FloatArray, IntArray

#: A click comes this long after its impression at most, and one second at least.
LONGEST_CLICK_SECONDS = 30 * 60
_MEDIAN_CLICK_SECONDS = 15.0
_CLICK_SPREAD = 1.2


@dataclass(frozen=True)
class ClickCauses:
    """What a click depends on, one entry per impression."""

    grade_N: IntArray
    facets_found_N: IntArray
    taste_N: FloatArray
    quality_N: FloatArray
    price_sensitivity_N: FloatArray
    log_relative_price_N: FloatArray
    position_N: IntArray
    device_N: IntArray
    click_tendency_N: FloatArray
    hour_N: FloatArray
    bought_recently_N: BoolArray


def click_terms(model: ClickModel, causes: ClickCauses) -> dict[str, FloatArray]:
    """What each cause adds to the log-odds of a click, by the name of its coefficient in `ClickModel`.

    All but the intercept; docs/marketplace.md has one row for each.
    """
    grades = np.array([model.grade_0, model.grade_1, model.grade_2])
    # +1 at 20:00, -1 at 8:00.
    evening_N = np.cos(2 * np.pi * (causes.hour_N - 20.0) / 24.0)
    return {
        "grade": grades[causes.grade_N],
        "facet_match": model.facet_match * causes.facets_found_N,
        "taste": model.taste * causes.taste_N,
        "quality": model.quality * causes.quality_N,
        "relative_price": model.relative_price * causes.price_sensitivity_N * causes.log_relative_price_N,
        "positions": np.array(model.positions)[causes.position_N - 1],
        "devices": np.array(model.devices)[causes.device_N],
        "user": model.user * causes.click_tendency_N,
        "evening": model.evening * evening_N,
        "repeat_purchase": model.repeat_purchase * causes.bought_recently_N,
    }


def click_logits(model: ClickModel, terms: dict[str, FloatArray]) -> FloatArray:
    """Log-odds of a click, float64: the intercept plus all terms of `click_terms`.

    The first position of a grade 1 product at its usual price, average in all else, at 14:00 on the second
    device: `intercept + grade_1`.
    """
    logit_N: FloatArray = np.full(len(terms["grade"]), model.intercept)
    for term_N in terms.values():
        logit_N = logit_N + term_N
    return logit_N


def sigmoid(logit_N: FloatArray) -> FloatArray:
    """Probability of log-odds, without overflow; `sigmoid(0)` is one half."""
    return np.where(logit_N >= 0, 1.0, np.exp(np.minimum(logit_N, 0))) / (1.0 + np.exp(-np.abs(logit_N)))


def click_delays_us(normal_N: FloatArray) -> IntArray:
    """Microseconds from impression to click: log-normal, between one second and thirty minutes.

    Args:
        normal_N: standard normal draws; 0 is the median.
    """
    seconds_N = _MEDIAN_CLICK_SECONDS * np.exp(_CLICK_SPREAD * normal_N)
    return (np.clip(seconds_N, 1.0, LONGEST_CLICK_SECONDS) * 1e6).astype(np.int64)
