"""Off-policy estimates of simulated first positions: unbiased, and of the clicks they say."""

from datetime import date

import numpy as np
import pyarrow as pa
import pytest

from experiments.abtest.offline.evaluation import evaluate
from experiments.abtest.offline.simulated_log import (
    UNIFORM,
    calibrated,
    decisions_of,
    first_best,
)
from experiments.abtest.simulated.day_files import Asked, PlayedDay, decision_table
from experiments.abtest.simulated.settings import CONTROL, POLICIES, TREATMENT
from experiments.marketplace.config import MarketplaceConfig
from experiments.marketplace.generate import make_world
from experiments.marketplace.live.draws import uniform
from experiments.marketplace.live.marketplace import LiveMarketplace, Twin
from experiments.marketplace.world.shoppers import PurchaseMemory
from experiments.statistics.off_policy import DOUBLY_ROBUST, IPS, SNIPS

EXPLORE = 0.5
REPEATS = 80


def played_tables(repeats: int) -> list[pa.Table]:
    """The same searches with other luck each time: other explored ads, other clicks."""
    world = make_world(MarketplaceConfig.preset("tiny", seed=7, images=False))
    markets = [
        LiveMarketplace(world, searches_per_day=500, clicks_per_search=0.4, luck=luck)
        for luck in range(repeats)
    ]
    demand = markets[0].demand(markets[0].first_day)
    memory = PurchaseMemory(world.shoppers.num_users)
    truth_SK = markets[0].first_probabilities(demand, memory)
    search_S1, place_1K = np.arange(len(demand))[:, None], np.arange(truth_SK.shape[1])[None, :]
    noise_SK = uniform(5, "score", search_S1, place_1K)
    # Float32, as served scores are.
    scores = {CONTROL: noise_SK, TREATMENT: 0.5 * truth_SK + 0.5 * noise_SK}
    scores = {name: score_SK.astype(np.float32).astype(np.float64) for name, score_SK in scores.items()}
    variant_S = np.full(len(demand), CONTROL)
    tables = []
    for market in markets:
        twins = {name: Twin(scores[name], memory) for name in POLICIES}
        none_S = dict.fromkeys(POLICIES, np.zeros(len(demand), bool))
        found = PlayedDay(
            demand=demand,
            asked=Asked(scores, none_S, dict.fromkeys(POLICIES, np.ones(len(demand)))),
            played=market.play(demand, twins, variant_S, explore=EXPLORE),
            bought={},
            variant_S=variant_S,
            variant_U=np.full(world.shoppers.num_users, CONTROL),
            first_probability_SK=truth_SK,
        )
        tables.append(decision_table(world, found, date(2024, 3, 8)))
    return tables


@pytest.fixture(scope="module")
def tables() -> list[pa.Table]:
    return played_tables(REPEATS)


def test_estimates_of_every_target_are_unbiased(tables: list[pa.Table]) -> None:
    found = [evaluate(decisions_of(table, policy=CONTROL)) for table in tables]
    for target in (CONTROL, TREATMENT, UNIFORM):
        truth = found[0].source.truth[target]
        for method in (IPS, DOUBLY_ROBUST, SNIPS):
            # Budgets end at other moments, so the truth moves a little, too.
            error_R = np.array(
                [one.values[target].estimates[method].mean - one.source.truth[target] for one in found]
            )
            assert abs(error_R.mean()) < 3.5 * error_R.std(ddof=1) / np.sqrt(REPEATS), (target, method)
            held = np.mean(
                [
                    one.values[target].estimates[method].low  # type: ignore[operator]
                    <= one.source.truth[target]
                    <= one.values[target].estimates[method].high
                    for one in found
                ]
            )
            assert held >= 0.85, (target, method)
        assert truth > 0
    truths = found[0].source.truth
    assert truths[TREATMENT] > 1.1 * truths[CONTROL]
    weights = [one.values[TREATMENT].mean_weight.mean for one in found]
    assert np.mean(weights) == pytest.approx(1, abs=3.5 * np.std(weights) / np.sqrt(REPEATS))


def test_the_order_of_estimates_is_the_order_of_the_truth(tables: list[pa.Table]) -> None:
    found = [evaluate(decisions_of(table, policy=CONTROL)) for table in tables[:20]]
    lifts = [one.lifts[TREATMENT][DOUBLY_ROBUST].mean for one in found]
    true_lift = found[0].true_lifts[TREATMENT]
    assert np.mean(lifts) == pytest.approx(true_lift, abs=4 * np.std(lifts) / np.sqrt(20))
    assert np.mean(np.array(lifts) > 0) > 0.8


def test_logged_chances_are_those_of_the_auctions_rule(tables: list[pa.Table]) -> None:
    for row in tables[0].to_pylist()[:200]:
        value = np.array(row["bids"]) * np.array(row["control_scores"])
        best, count = int(value.argmax()), len(value)
        explored = EXPLORE / count
        expected = explored + (1 - EXPLORE if row["action"] == best else 0)
        assert row["propensity"] == pytest.approx(expected)
        assert len(row["product_ids"]) == count == len(row["true_probabilities"])


def test_first_best_is_the_first_of_the_highest() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 6, 100)
    start_N = np.cumsum(sizes) - sizes
    row_C = np.repeat(np.arange(100), sizes)
    value_C = rng.integers(0, 3, len(row_C)).astype(np.float64)
    slow = [
        start + int(np.argmax(value_C[start : start + size]))
        for start, size in zip(start_N, sizes, strict=True)
    ]
    assert first_best(value_C, row_C, start_N).tolist() == slow


def test_the_reward_model_never_saw_the_clicks_of_the_consumer_it_judges() -> None:
    rng = np.random.default_rng(1)
    count = 2000
    score_C = rng.uniform(0.05, 0.9, count)
    row_C = done_N = np.arange(count)
    unit_N = rng.integers(0, 50, count)
    reward_N = (rng.random(count) < 0.5 * score_C).astype(np.float64)
    before_C = calibrated(score_C, row_C, done_N, reward_N, unit_N)
    assert abs(before_C.mean() - reward_N.mean()) < 0.02
    changed_N = np.where(unit_N == 4, 1.0, reward_N)
    after_C = calibrated(score_C, row_C, done_N, changed_N, unit_N)
    np.testing.assert_array_equal(after_C[unit_N == 4], before_C[unit_N == 4])
    assert not np.array_equal(after_C[unit_N == 5], before_C[unit_N == 5])
