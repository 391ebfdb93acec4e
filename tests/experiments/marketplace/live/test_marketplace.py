"""The days after the log: luck, money, twins and what they buy."""

import copy
from pathlib import Path

import numpy as np
import pytest

from experiments.marketplace.config import Candidates, MarketplaceConfig
from experiments.marketplace.days.slates import SLOTS
from experiments.marketplace.generate import make_world, midnight_us
from experiments.marketplace.live.advertisers import RESERVE
from experiments.marketplace.live.demand import Demand
from experiments.marketplace.live.draws import uniform
from experiments.marketplace.live.marketplace import (
    LiveMarketplace,
    Twin,
    logged_purchases,
    memory_of_log,
)
from experiments.marketplace.world.catalog import FloatArray
from experiments.marketplace.world.shoppers import PurchaseMemory
from features.columns.clock import DAY_US
from tests.experiments.marketplace.conftest import Written

SEARCHES = 600


def open_market(candidates: Candidates = "mixed", **options: float) -> LiveMarketplace:
    # A tiny shop has three products of a type, too few for an auction among what was retrieved.
    config = MarketplaceConfig.preset("tiny", candidates, seed=7, products=2_000)
    settings = {"searches_per_day": SEARCHES, "clicks_per_search": 0.4, **options}
    return LiveMarketplace(make_world(config), **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["mixed", "retrieval"])
def market(request: pytest.FixtureRequest) -> LiveMarketplace:
    return open_market(request.param)


def nothing_bought(market: LiveMarketplace) -> PurchaseMemory:
    return PurchaseMemory(market.world.shoppers.num_users)


def random_scores(demand: Demand, seed: int) -> FloatArray:
    search = np.arange(len(demand))[:, None]
    return uniform(seed, "score", search, np.arange(demand.product_SK.shape[1])[None, :])


def test_candidates_are_more_than_a_slate_and_different(market: LiveMarketplace) -> None:
    demand = market.demand(market.first_day)
    found_S = (demand.product_SK >= 0).sum(axis=1)
    assert found_S.mean() > 1.5 * SLOTS
    for product_K in demand.product_SK[:50]:
        kept = product_K[product_K >= 0]
        assert len(set(kept.tolist())) == len(kept)


def test_demand_is_that_of_its_day_and_luck() -> None:
    one, same, other = open_market(), open_market(), open_market(luck=1)
    day = one.first_day
    np.testing.assert_array_equal(one.demand(day).product_SK, same.demand(day).product_SK)
    assert not np.array_equal(one.demand(day).asked.user_S, other.demand(day).asked.user_S)
    assert not np.array_equal(one.demand(day).asked.user_S, one.demand(day + 1).asked.user_S)
    np.testing.assert_array_equal(one.advertisers.daily_budget_A, other.advertisers.daily_budget_A)


def test_the_same_policy_twice_is_the_same_twice(market: LiveMarketplace) -> None:
    demand = market.demand(market.first_day)
    memory, score_SK = nothing_bought(market), random_scores(demand, 1)
    twins = {"a": Twin(score_SK, memory), "b": Twin(score_SK.copy(), copy.deepcopy(memory))}
    served_S = np.where(np.arange(len(demand)) % 2 == 0, "a", "b")
    played = market.play(demand, twins, served_S, explore=0.2)
    one, other = played.shown["a"], played.shown["b"]
    for name in ("product_N", "position_N", "price_N", "probability_N", "clicked_N", "bought_N"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_an_ad_at_one_position_has_one_luck_whoever_shows_it(market: LiveMarketplace) -> None:
    demand = market.demand(market.first_day)
    memory = nothing_bought(market)
    twins = {name: Twin(random_scores(demand, seed), memory) for name, seed in (("a", 1), ("b", 2))}
    played = market.play(demand, twins, np.full(len(demand), "a"))
    seen = {}
    for name, shown in played.shown.items():
        keys = zip(shown.search_N.tolist(), shown.product_N.tolist(), shown.position_N.tolist(), strict=True)
        seen[name] = dict(zip(keys, shown.clicked_N.tolist(), strict=True))
    both = seen["a"].keys() & seen["b"].keys()
    assert len(both) > 100
    assert len(seen["a"].keys() ^ seen["b"].keys()) > 100
    assert all(seen["a"][key] == seen["b"][key] for key in both)


def test_what_is_clicked_below_is_clicked_above(market: LiveMarketplace) -> None:
    demand = market.demand(market.first_day)
    memory = nothing_bought(market)
    twins = {name: Twin(random_scores(demand, seed), memory) for name, seed in (("a", 1), ("b", 2))}
    played = market.play(demand, twins, np.full(len(demand), "a"))
    seen = {}
    for name, shown in played.shown.items():
        keys = zip(shown.search_N.tolist(), shown.product_N.tolist(), strict=True)
        answers = zip(shown.position_N.tolist(), shown.clicked_N.tolist(), strict=True)
        seen[name] = dict(zip(keys, answers, strict=True))
    moved = [key for key in seen["a"].keys() & seen["b"].keys() if seen["a"][key][0] != seen["b"][key][0]]
    assert len(moved) > 100
    clicked_below = 0
    for key in moved:
        above, below = sorted((seen["a"][key], seen["b"][key]))
        clicked_below += below[1]
        assert above[1] or not below[1]
    assert clicked_below > 0


def test_who_knows_the_truth_wins_more_clicks_than_chance(market: LiveMarketplace) -> None:
    demand = market.demand(market.first_day)
    memory = nothing_bought(market)
    truth_SK = market.first_probabilities(demand, memory)
    twins = {"truth": Twin(truth_SK, memory), "chance": Twin(random_scores(demand, 1), memory)}
    shown = market.play(demand, twins, np.full(len(demand), "chance")).shown
    expected = {name: found.probability_N.sum() for name, found in shown.items()}
    assert expected["truth"] > 1.2 * expected["chance"]
    revenue = {name: (found.probability_N * found.price_N).sum() for name, found in shown.items()}
    assert revenue["truth"] > revenue["chance"]


def test_clicks_and_purchases_come_as_often_as_their_chances_say() -> None:
    market = open_market(searches_per_day=20_000)
    demand = market.demand(market.first_day)
    shown = market.play(
        demand, {"a": Twin(random_scores(demand, 1), nothing_bought(market))}, np.full(len(demand), "a")
    ).shown["a"]
    for happened, chance in (
        (shown.clicked_N, shown.probability_N),
        (shown.bought_N, shown.probability_N * shown.conversion_chance_N),
    ):
        sd = np.sqrt((chance * (1 - chance)).sum())
        assert abs(happened.sum() - chance.sum()) < 4 * sd
    assert not (shown.bought_N & ~shown.clicked_N).any()
    delay_us = (shown.click_time_us_N - demand.asked.time_us_S[shown.search_N])[shown.clicked_N]
    assert np.median(delay_us) == pytest.approx(15e6, rel=0.1)


def test_no_budget_is_exceeded_and_only_served_clicks_are_paid() -> None:
    market = open_market(searches_per_day=6_000, clicks_per_search=0.02)
    demand = market.demand(market.first_day)
    memory = nothing_bought(market)
    truth_SK = market.first_probabilities(demand, memory)
    twins = {"a": Twin(truth_SK, memory), "b": Twin(random_scores(demand, 2), memory)}
    served_S = np.where(np.arange(len(demand)) % 3 == 0, "a", "b")
    played = market.play(demand, twins, served_S)
    budget_A = market.advertisers.daily_budget_A
    paid_A = np.zeros(len(budget_A))
    for name, shown in played.shown.items():
        mine = served_S[shown.search_N] == name
        np.add.at(paid_A, market.advertisers.advertiser_P[shown.product_N[mine]], shown.charged_N[mine])
        assert (shown.charged_N <= shown.price_N).all()
        assert (shown.charged_N[~shown.clicked_N] == 0).all()
    np.testing.assert_allclose(paid_A, budget_A - played.left_A, atol=1e-9)
    assert (played.left_A >= 0).all()
    assert (played.left_A < RESERVE).sum() > 5, "no budget ended: this test shows nothing"
    # Whoever has nothing left is not shown any more.
    late = slice(int(0.95 * len(demand)), None)
    assert ((played.bid_SK[late] < RESERVE) & (demand.product_SK[late] >= 0)).any()
    shown = played.shown["a"]
    assert (played.bid_SK[shown.search_N, shown.place_N] >= RESERVE).all()
    assert (shown.price_N <= played.bid_SK[shown.search_N, shown.place_N]).all()


def test_a_purchase_changes_the_next_day_of_its_twin_alone() -> None:
    market = open_market(searches_per_day=4_000)
    day = market.first_day
    demand = market.demand(day)
    memory = {name: nothing_bought(market) for name in ("a", "b")}
    twins = {
        "a": Twin(market.first_probabilities(demand, memory["a"]), memory["a"]),
        "b": Twin(random_scores(demand, 2), memory["b"]),
    }
    played = market.play(demand, twins, np.full(len(demand), "a"))
    bought = {name: market.purchases(demand, shown, memory[name]) for name, shown in played.shown.items()}
    conversions = {name: int(shown.bought_N.sum()) for name, shown in played.shown.items()}
    assert conversions["a"] > conversions["b"]
    assert len(bought["a"].user_N) - conversions["a"] == len(bought["b"].user_N) - conversions["b"]
    assert (np.diff(bought["a"].time_us_N) >= 0).all()
    for name, rows in bought.items():
        memory[name].add(rows.user_N, rows.product_N, day)
    user_N, product_N = bought["a"].user_N, bought["a"].product_N
    window = market.world.config.history_days
    assert memory["a"].bought_recently(user_N, product_N, day + 1, window).mean() > 0.95
    assert memory["b"].bought_recently(user_N, product_N, day + 1, window).mean() < 0.95


def test_the_truth_at_the_first_position_is_what_is_drawn_there(market: LiveMarketplace) -> None:
    demand = market.demand(market.first_day)
    memory = nothing_bought(market)
    truth_SK = market.first_probabilities(demand, memory)
    shown = market.play(
        demand, {"a": Twin(random_scores(demand, 1), memory)}, np.full(len(demand), "a")
    ).shown["a"]
    first = shown.position_N == 1
    np.testing.assert_allclose(
        shown.probability_N[first], truth_SK[shown.search_N[first], shown.place_N[first]]
    )


def test_shoppers_remember_what_the_log_says(written: Written) -> None:
    world = make_world(written.config)
    bought = logged_purchases(world, written.folder)
    memory = memory_of_log(world, bought)
    day = written.config.days
    recent = bought.time_us_N >= midnight_us(written.config, day) - 84 * DAY_US
    last_N = np.flatnonzero(recent)[-200:]
    assert memory.bought_recently(bought.user_N[last_N], bought.product_N[last_N], day, 84).all()
    old_N = np.flatnonzero(bought.time_us_N < midnight_us(written.config, day - 90))
    again = {(u, p) for u, p in zip(bought.user_N[recent], bought.product_N[recent], strict=True)}
    never = [n for n in old_N if (bought.user_N[n], bought.product_N[n]) not in again]
    assert not memory.bought_recently(bought.user_N[never], bought.product_N[never], day, 84).any()


def test_a_folder_that_is_no_invented_shop_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dashclip generate"):
        LiveMarketplace.open(tmp_path)
    (tmp_path / "marketplace.json").write_text('{"simulated": true, "catalogue": "runs/home_depot"}')
    with pytest.raises(ValueError, match="real catalogue"):
        LiveMarketplace.open(tmp_path)


def test_a_world_goes_on_at_the_rate_of_its_log(written: Written) -> None:
    market = LiveMarketplace.open(written.folder)
    searches = written.summary["searches"] / written.config.days
    assert market.searches_per_day == pytest.approx(searches, abs=0.5)
    assert market.first_day == written.config.days
