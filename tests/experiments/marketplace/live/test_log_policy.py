"""The log's policy goes on in auctions: the same order, and what it shows is as relevant as the log."""

import numpy as np
import pytest

from experiments.marketplace.config import Candidates, MarketplaceConfig
from experiments.marketplace.generate import live_seed, make_world
from experiments.marketplace.live.auction import hold_auction
from experiments.marketplace.live.log_policy import log_policy_scores
from experiments.marketplace.live.marketplace import LiveMarketplace


@pytest.mark.parametrize("preset", ["mixed", "retrieval"])
def test_bids_times_scores_have_the_order_of_the_log(preset: Candidates) -> None:
    config = MarketplaceConfig.preset("tiny", preset, seed=7, images=False)
    market = LiveMarketplace(make_world(config), searches_per_day=2000, clicks_per_search=0.3)
    demand = market.demand(config.days)
    score_SK = log_policy_scores(market.world, demand, luck=0)
    rng = np.random.default_rng(live_seed(config, 0, demand.day, "log policy"))
    order_SK = market.world.slates.order(demand.product_SK, demand.grade_SK, rng)
    bid_SK = np.where(demand.product_SK >= 0, market.advertisers.bid_P[demand.product_SK], 0.0)
    auction = hold_auction(bid_SK, score_SK)
    plays_SK = score_SK > 0
    for search in range(200):
        playing = np.flatnonzero(plays_SK[search])
        # Bids are cut at both ends, which only moves ads whose weight is out of bounds.
        inside = playing[(bid_SK[search, playing] > 0.05) & (bid_SK[search, playing] < 5.0)]
        expected = inside[np.argsort(-order_SK[search, inside])]
        shown = [place for place in auction.place_SK[search].tolist() if place in set(inside.tolist())]
        assert shown == expected.tolist()
    assert (plays_SK.sum(axis=1) <= (demand.size_S if preset == "mixed" else 12)).all()
    # As relevant as the log; in `mixed` a little less, as slots that the log leaves empty are filled here.
    slates = market.world.slates.show(demand.asked.query_S, np.random.default_rng(0))
    room_SK = np.arange(score_SK.shape[1]) < np.minimum(demand.size_S, plays_SK.sum(axis=1))[:, None]
    shown_grades = np.take_along_axis(demand.grade_SK, auction.place_SK, axis=1)[room_SK]
    assert shown_grades.mean() == pytest.approx(slates.grade_N.mean(), abs=0.1)
