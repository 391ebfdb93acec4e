"""What a ranker is worth and how biased: the truth as scores is the yardstick."""

from dataclasses import fields

import numpy as np
import pytest

from experiments.abtest.loop.measures import OWN, TRAFFIC, asked_again, gini, measure
from experiments.marketplace.config import MarketplaceConfig
from experiments.marketplace.generate import make_world
from experiments.marketplace.live.demand import Demand
from experiments.marketplace.live.marketplace import LiveMarketplace
from experiments.marketplace.world.shoppers import PurchaseMemory
from features.columns.clock import DAY_US

CONFIG = MarketplaceConfig.preset("tiny", seed=7, images=False)


@pytest.fixture(scope="module")
def market() -> LiveMarketplace:
    return LiveMarketplace(make_world(CONFIG), searches_per_day=400, clicks_per_search=0.3)


def test_the_truth_as_scores_is_the_best_and_promises_what_is_clicked(market: LiveMarketplace) -> None:
    asked, memory = market.demand(CONFIG.days), PurchaseMemory(CONFIG.users)
    truth_SK = market.first_probabilities(asked, memory)
    found = measure(market, asked, truth_SK, memory)
    assert found.value == found.best
    for name in TRAFFIC:
        assert found.traffic[name].calibration == pytest.approx(1.0)
    noise_SK = np.random.default_rng(0).random(truth_SK.shape)
    chance = measure(market, asked, noise_SK, memory)
    assert chance.best == found.best
    assert chance.value.ctr < found.value.ctr
    for name in TRAFFIC:
        assert chance.traffic[name].auc < found.traffic[name].auc
    twice = measure(market, asked, np.minimum(2 * truth_SK, 1), memory)
    assert twice.traffic[OWN].calibration > 1.5


def test_the_same_searches_on_another_day_differ_in_the_clock_alone(market: LiveMarketplace) -> None:
    asked = market.demand(CONFIG.days)
    later = asked_again(asked, CONFIG.days + 7)
    assert later.day == CONFIG.days + 7
    assert later.start_us - asked.start_us == 7 * DAY_US
    np.testing.assert_array_equal(later.asked.time_us_S - asked.asked.time_us_S, 7 * DAY_US)
    for field in fields(Demand):
        if field.name not in ("day", "start_us", "asked"):
            np.testing.assert_array_equal(getattr(later, field.name), getattr(asked, field.name))
    np.testing.assert_array_equal(later.asked.query_S, asked.asked.query_S)


def test_gini_is_half_the_mean_difference_over_the_mean() -> None:
    counts = np.random.default_rng(1).poisson(3.0, 40).astype(float)
    slow = np.abs(counts[:, None] - counts).mean() / (2 * counts.mean())
    assert gini(counts) == pytest.approx(slow)
    assert gini(np.array([0.0, 0.0, 0.0, 8.0])) == pytest.approx(0.75)
