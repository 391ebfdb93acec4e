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
    """

    place_SK: IntArray
    price_SK: FloatArray
    entered_S: IntArray
    greedy_S: IntArray
    propensity_S: FloatArray


def hold_auction(
    bid_SK: FloatArray,
    score_SK: FloatArray,
    *,
    explore: float = 0.0,
    explored_S: BoolArray | None = None,
    choice_S: FloatArray | None = None,
) -> Auction:
    """Order the candidates of each search.

    Args:
        bid_SK: bids below `RESERVE` stay out.
        explore: share of searches whose first position is drawn uniformly from those that take part.
        explored_S: whether this search is one of them; None if none is.
        choice_S: which candidate comes first there, in [0, 1).

    Two ads that bid 1 and score .5 and .2: the first pays .2 / .5 = .4, the second the reserve price.
    """
    enters_SK = bid_SK >= RESERVE
    score_SK = np.maximum(score_SK, _LEAST_SCORE)
    rank_SK = np.where(enters_SK, bid_SK * score_SK, -np.inf)
    entered_S = enters_SK.sum(axis=1)
    greedy_S = np.where(entered_S > 0, rank_SK.argmax(axis=1), -1)
    first_S = greedy_S
    explored_S = np.zeros(len(bid_SK), bool) if explored_S is None else explored_S & (entered_S > 0)
    if explored_S.any():
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
    price_SK[explored_S, 0] = RESERVE
    chance_S = explore / np.maximum(entered_S, 1)
    return Auction(
        place_SK=place_SK,
        price_SK=price_SK,
        entered_S=entered_S,
        greedy_S=greedy_S,
        propensity_S=np.where(
            entered_S > 0, np.where(first_S == greedy_S, 1 - explore + chance_S, chance_S), 0.0
        ),
    )
