"""The auction: by hand, beside a slow one, and the chances of exploration."""

import numpy as np
import pytest

from experiments.marketplace.live.advertisers import RESERVE
from experiments.marketplace.live.auction import hold_auction


def test_a_click_costs_the_rank_of_the_next_ad_divided_by_the_own_score() -> None:
    auction = hold_auction(np.array([[0.4, 1.0, 0.0]]), np.array([[0.5, 0.25, 0.9]]))
    np.testing.assert_array_equal(auction.place_SK[0], [1, 0, 2])
    np.testing.assert_allclose(auction.price_SK[0, :2], [0.4 * 0.5 / 0.25, RESERVE])
    assert auction.entered_S[0] == 2


def _slow(bids: list[float], scores: list[float]) -> list[tuple[int, float]]:
    """Candidates in order with their prices, one by one."""
    left = [k for k in range(len(bids)) if bids[k] >= RESERVE]
    order = sorted(left, key=lambda k: -bids[k] * scores[k])
    found = []
    for place, k in enumerate(order):
        price = RESERVE
        if place + 1 < len(order):
            after = order[place + 1]
            price = max(RESERVE, bids[after] * scores[after] / scores[k])
        found.append((k, price))
    return found


def test_it_equals_an_auction_held_one_by_one() -> None:
    rng = np.random.default_rng(0)
    bid_SK = np.where(rng.random((200, 9)) < 0.2, 0.0, rng.lognormal(-1, 0.6, (200, 9)))
    score_SK = rng.uniform(0.01, 0.9, (200, 9))
    auction = hold_auction(bid_SK, score_SK)
    for search in range(200):
        slow = _slow(bid_SK[search].tolist(), score_SK[search].tolist())
        entered = auction.entered_S[search]
        assert auction.place_SK[search, :entered].tolist() == [k for k, _ in slow]
        np.testing.assert_allclose(auction.price_SK[search, :entered], [price for _, price in slow])


@pytest.mark.parametrize("whole", [False, True])
def test_the_chance_of_a_position_is_how_often_an_ad_is_there_and_adds_up_to_one(whole: bool) -> None:
    rng = np.random.default_rng(3)
    count, explore = 60_000, 0.4
    bid_SK, score_SK = np.tile([0.4, 1.0, 0.0, 0.7], (count, 1)), np.tile([0.5, 0.25, 0.9, 0.1], (count, 1))
    auction = hold_auction(
        bid_SK,
        score_SK,
        explore=explore,
        explored_S=rng.random(count) < explore,
        choice_S=rng.random(count),
        order_SK=rng.random((count, 4)) if whole else None,
    )
    assert (auction.chance_SK[:, 3] == 0).all(), "the last place is that of the ad that stayed out"
    for position in range(3):
        total = 0.0
        for candidate in (0, 1, 3):
            there = auction.place_SK[:, position] == candidate
            chances = np.unique(auction.chance_SK[there, position])
            assert len(chances) <= 1
            total += chances.sum()
            if len(chances):
                assert there.mean() == pytest.approx(chances[0], abs=0.01)
        # An ad that cannot be at a position has no chance there, so that nothing is missing.
        assert total == pytest.approx(1.0)
    np.testing.assert_allclose(auction.chance_SK[:, 0], auction.propensity_S)


def test_a_slate_drawn_whole_costs_the_reserve_price_and_leaves_the_others_as_they_are() -> None:
    bid_SK, score_SK = np.tile([0.4, 1.0, 0.7], (2, 1)), np.tile([0.5, 0.25, 0.1], (2, 1))
    order_SK = np.array([[0.1, 0.2, 0.9], [0.0, 0.0, 0.0]])
    explored_S = np.array([True, False])
    auction = hold_auction(bid_SK, score_SK, explore=0.5, explored_S=explored_S, order_SK=order_SK)
    greedy = hold_auction(bid_SK, score_SK)
    assert auction.place_SK[0].tolist() == [2, 1, 0]
    assert (auction.price_SK[0] == RESERVE).all()
    np.testing.assert_array_equal(auction.place_SK[1], greedy.place_SK[1])
    np.testing.assert_array_equal(auction.price_SK[1], greedy.price_SK[1])


def test_nobody_pays_more_than_the_bid_or_less_than_the_reserve_price() -> None:
    rng = np.random.default_rng(1)
    bid_SK = np.maximum(rng.lognormal(-2, 1.0, (500, 6)), RESERVE)
    auction = hold_auction(
        bid_SK,
        rng.random((500, 6)) ** 4,
        explore=0.5,
        explored_S=rng.random(500) < 0.5,
        choice_S=rng.random(500),
    )
    assert (auction.price_SK <= np.take_along_axis(bid_SK, auction.place_SK, axis=1)).all()
    assert (auction.price_SK >= RESERVE).all()


@pytest.mark.parametrize("explore", [0.0, 0.3, 1.0])
def test_the_propensity_is_how_often_an_ad_comes_first(explore: float) -> None:
    rng = np.random.default_rng(2)
    count = 40_000
    bid_SK = np.tile([0.5, 0.0, 0.6, 0.7], (count, 1))
    score_SK = np.tile([0.2, 0.9, 0.3, 0.1], (count, 1))
    auction = hold_auction(
        bid_SK,
        score_SK,
        explore=explore,
        explored_S=rng.random(count) < explore,
        choice_S=rng.random(count),
    )
    first_S = auction.place_SK[:, 0]
    assert (auction.greedy_S == 2).all()
    for place, chance in ((0, explore / 3), (1, 0.0), (2, 1 - explore + explore / 3), (3, explore / 3)):
        assert (first_S == place).mean() == pytest.approx(chance, abs=0.01)
        if chance and (first_S == place).any():
            np.testing.assert_allclose(auction.propensity_S[first_S == place], chance)


def test_the_others_keep_their_order_behind_an_explored_ad() -> None:
    bid_SK, score_SK = np.array([[0.5, 0.4, 0.3]]), np.array([[0.5, 0.5, 0.5]])
    auction = hold_auction(
        bid_SK, score_SK, explore=1.0, explored_S=np.array([True]), choice_S=np.array([0.9])
    )
    assert auction.place_SK[0].tolist() == [2, 0, 1]
    np.testing.assert_allclose(auction.price_SK[0], [RESERVE, 0.4, RESERVE])


def test_a_search_that_nobody_can_pay_for_shows_nothing() -> None:
    auction = hold_auction(np.full((1, 3), RESERVE / 2), np.full((1, 3), 0.5), explore=1.0)
    assert auction.entered_S[0] == 0
    assert auction.greedy_S[0] == -1
    assert auction.propensity_S[0] == 0
