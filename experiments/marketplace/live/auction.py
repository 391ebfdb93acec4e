"""A generalised second price auction by expected value, and who is first where something is explored.

Rank is bid times score. A click costs the rank of the next ad divided by one's own score: the least bid that
would have kept the position (Edelman, Ostrovsky and Schwarz 2007).

Shapes: S searches, K candidates of a search.
"""

from dataclasses import dataclass

import numpy as np

from experiments.marketplace.live.advertisers import RESERVE
from experiments.marketplace.world.catalog import BoolArray, FloatArray, IntArray

#: Below it a score is no click probability that a second price could be divided by.
_LEAST_SCORE = 1e-6


@dataclass(frozen=True)
class Auction:
    """Candidates in order, the best first.

    Attributes:
        place_SK: candidates of each search in the order of the auction.
        price_SK: what a click on each of them costs, in this order.
        entered_S: how many candidates took part; what comes after them in `place_SK` did not.
        greedy_S: the candidate of the highest rank, -1 where none took part.
        propensity_S: chance with which `place_SK[:, 0]` was first; 0 where none took part.
        chance_SK: chance with which each of `place_SK` was at its position; 0 for those who stayed out.
    """

    place_SK: IntArray
    price_SK: FloatArray
    entered_S: IntArray
    greedy_S: IntArray
    propensity_S: FloatArray
    chance_SK: FloatArray


def hold_auction(
    bid_SK: FloatArray,
    score_SK: FloatArray,
    *,
    explore: float = 0.0,
    explored_S: BoolArray | None = None,
    choice_S: FloatArray | None = None,
    order_SK: FloatArray | None = None,
) -> Auction:
    """Order the candidates of each search.

    Args:
        bid_SK: bids below `RESERVE` stay out.
        explore: share of searches whose first position is drawn uniformly from those that take part.
        explored_S: whether this search is one of them; None if none is.
        choice_S: which candidate comes first there, in [0, 1); the others follow in their order.
        order_SK: random numbers by which a whole explored slate is ordered, instead of a first ad alone. Each
            of n entrants is then at each position with chance 1 / n, and all pay the reserve price.

    Two ads that bid 1 and score .5 and .2: the first pays .2 / .5 = .4, the second the reserve price.
    """
    enters_SK = bid_SK >= RESERVE
    score_SK = np.maximum(score_SK, _LEAST_SCORE)
    rank_SK = np.where(enters_SK, bid_SK * score_SK, -np.inf)
    entered_S = enters_SK.sum(axis=1)
    greedy_S = np.where(entered_S > 0, rank_SK.argmax(axis=1), -1)
    first_S = greedy_S
    greedy_SK = np.argsort(-rank_SK, axis=1, kind="stable")
    explored_S = np.zeros(len(bid_SK), bool) if explored_S is None else explored_S & (entered_S > 0)
    if order_SK is not None:
        drawn_SK = explored_S[:, None] & enters_SK
        rank_SK = np.where(drawn_SK, order_SK, rank_SK)
        first_S = np.where(entered_S > 0, rank_SK.argmax(axis=1), -1)
    elif explored_S.any():
        assert choice_S is not None, "an explored search needs a choice"
        wanted_S = np.minimum((choice_S * entered_S).astype(np.int64), np.maximum(entered_S - 1, 0))
        # The candidate that has so many entrants before it.
        chosen_S = ((np.cumsum(enters_SK, axis=1) - 1 == wanted_S[:, None]) & enters_SK).argmax(axis=1)
        first_S = np.where(explored_S, chosen_S, greedy_S)
        rows = np.flatnonzero(explored_S)
        rank_SK[rows, first_S[rows]] = np.inf
    place_SK = np.argsort(-rank_SK, axis=1, kind="stable")
    ordered_SK = np.take_along_axis(rank_SK, place_SK, axis=1)
    own_bid_SK = np.take_along_axis(bid_SK, place_SK, axis=1)
    next_SK = np.hstack([ordered_SK[:, 1:], np.full((len(bid_SK), 1), -np.inf)])
    price_SK = np.maximum(next_SK / np.take_along_axis(score_SK, place_SK, axis=1), RESERVE)
    price_SK = np.minimum(price_SK, np.maximum(own_bid_SK, RESERVE))  # rounding never costs more than the bid
    if order_SK is None:
        price_SK[explored_S, 0] = RESERVE
    else:
        price_SK[explored_S] = RESERVE
    chance_S = explore / np.maximum(entered_S, 1)
    return Auction(
        place_SK=place_SK,
        price_SK=price_SK,
        entered_S=entered_S,
        greedy_S=greedy_S,
        propensity_S=np.where(
            entered_S > 0, np.where(first_S == greedy_S, 1 - explore + chance_S, chance_S), 0.0
        ),
        chance_SK=_chances(place_SK, greedy_SK, entered_S, explore=explore, whole=order_SK is not None),
    )


def _chances(
    place_SK: IntArray, greedy_SK: IntArray, entered_S: IntArray, *, explore: float, whole: bool
) -> FloatArray:
    """Chance of each candidate to be at the position where it is.

    Of a whole slate all n entrants have the same chance at a position. Where the first ad alone is drawn, an
    ad keeps its position if one before it was drawn, and moves down by one if one behind it was.
    """
    position_K = np.arange(place_SK.shape[1])
    many_S1 = np.maximum(entered_S, 1)[:, None]
    own_SK = place_SK == greedy_SK
    if whole:
        chance_SK = explore / many_S1 + np.where(own_SK, 1 - explore, 0.0)
    else:
        before_SK = np.roll(greedy_SK, 1, axis=1)
        moved_SK = (place_SK == before_SK) & (position_K > 0)
        chance_SK = np.where(own_SK, 1 - explore + explore * position_K / many_S1, 0.0)
        chance_SK += np.where(moved_SK, explore * (many_S1 - position_K) / many_S1, 0.0)
        chance_SK[:, 0] = explore / many_S1[:, 0] + np.where(own_SK[:, 0], 1 - explore, 0.0)
    return np.where(position_K < entered_S[:, None], chance_SK, 0.0)
