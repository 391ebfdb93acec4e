"""One day of the live marketplace, played by twins: every consumer once with each policy.

The rules are those of docs/marketplace.md. What twins share (searches, candidates, left budgets, luck) is
drawn once; what a policy decides is what is shown, and what follows from that.

Shapes: S searches, K candidates of a search, N ads shown, A advertisers, P products.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from scipy.special import ndtri

from experiments.marketplace.config import MarketplaceConfig
from experiments.marketplace.days.clicks import click_delays_us, click_logits, click_terms, sigmoid
from experiments.marketplace.days.purchases import OrderSimulator, PurchaseRows, sorted_by_time
from experiments.marketplace.days.searches import CONVERSION_WAIT_US, SearchSimulator
from experiments.marketplace.days.slates import SLOTS, ShownAds
from experiments.marketplace.generate import DESCRIPTION, World, live_seed, make_world, midnight_us
from experiments.marketplace.live.advertisers import make_advertisers
from experiments.marketplace.live.auction import Auction, hold_auction
from experiments.marketplace.live.demand import Demand, draw_demand
from experiments.marketplace.live.draws import uniform
from experiments.marketplace.tables import FIRST_USER_ID
from experiments.marketplace.world.catalog import FIRST_PRODUCT_ID, BoolArray, FloatArray, IntArray
from experiments.marketplace.world.shoppers import PurchaseMemory
from features.columns.clock import DAY_US

#: What advertisers have left is counted so often.
BLOCK_US = 15 * 60 * 1_000_000


@dataclass(frozen=True)
class Twin:
    """What one policy brings to a day: its scores [S, K], and what its consumers bought before."""

    score_SK: FloatArray
    memory: PurchaseMemory


@dataclass(frozen=True)
class Shown:
    """Ads that one policy showed, in order of search and position, and what came of them.

    Attributes:
        search_N, place_N: which search, which of its candidates.
        price_N: what a click costs the advertiser.
        charged_N: what was paid: 0 without a click, less than the price where the budget ended.
        conversion_chance_N: chance that a click is followed by a purchase.
        propensity_N: chance with which the ad was at its position.
    """

    search_N: IntArray
    place_N: IntArray
    product_N: IntArray
    grade_N: IntArray
    position_N: IntArray
    price_N: FloatArray
    probability_N: FloatArray
    conversion_chance_N: FloatArray
    clicked_N: BoolArray
    click_time_us_N: IntArray
    bought_N: BoolArray
    purchase_time_us_N: IntArray
    charged_N: FloatArray
    propensity_N: FloatArray


@dataclass(frozen=True)
class Firsts:
    """How the first position of each search was decided: the candidate shown (-1 if none), and its chance."""

    place_S: IntArray
    greedy_S: IntArray
    propensity_S: FloatArray


@dataclass(frozen=True)
class Played:
    """One day of all twins.

    Attributes:
        bid_SK: what each candidate could bid, the same for all twins; below `RESERVE` it stayed out.
        left_A: what advertisers had left at midnight.
        given_away: clicks that were not paid in full.
    """

    shown: Mapping[str, Shown]
    firsts: Mapping[str, Firsts]
    bid_SK: FloatArray
    left_A: FloatArray
    given_away: int


class LiveMarketplace:
    """The days after a generated log. Holds no state but what the log left behind."""

    def __init__(
        self, world: World, *, searches_per_day: int, clicks_per_search: float, luck: int = 0
    ) -> None:
        """
        Args:
            clicks_per_search: in the log; what budgets are made for.
            luck: another number is other days of the same world.
        """
        self.world, self.luck, self.searches_per_day = world, luck, searches_per_day
        config, catalog = world.config, world.catalog
        self._simulator = SearchSimulator(
            config, catalog, world.queries, world.shoppers, world.slates, world.judge
        )
        self._orders = OrderSimulator(config, catalog, world.shoppers)
        self.advertisers = make_advertisers(
            catalog,
            clicks_per_day=clicks_per_search * searches_per_day,
            seed=live_seed(config, 0, 0, "advertisers"),
        )

    @classmethod
    def open(cls, folder: Path, *, searches_per_day: int | None = None, luck: int = 0) -> Self:
        """The world that `dashclip generate` wrote to `folder`.

        Raises:
            ValueError: it is none, or one on a real catalogue.
        """
        about = read_description(folder)
        config, log = MarketplaceConfig.model_validate(about["config"]), about["summary"]
        a_day = round(log["searches"] / config.days)
        return cls(
            make_world(config),
            searches_per_day=searches_per_day or max(1, a_day),
            clicks_per_search=log["ctr"] * log["impressions"] / log["searches"],
            luck=luck,
        )

    def with_luck(self, luck: int) -> Self:
        """The same world and advertisers with other luck; they share what they hold."""
        other = copy.copy(self)
        other.luck = luck
        return other

    @property
    def first_day(self) -> int:
        """The day after the log's last one."""
        return self.world.config.days

    def demand(self, day: int) -> Demand:
        """What is asked on a day."""
        return draw_demand(
            self.world, self._simulator, day=day, searches=self.searches_per_day, luck=self.luck
        )

    def play(
        self,
        demand: Demand,
        twins: Mapping[str, Twin],
        served_S: npt.NDArray[np.str_],
        *,
        explore: float = 0.0,
        whole_slates: bool = False,
    ) -> Played:
        """Hold all auctions of a day and draw what shoppers do.

        Args:
            served_S: name of the twin that was really served in each search: its clicks cost its advertisers.
            explore: share of searches whose first position is drawn.
            whole_slates: draw all positions of those searches, not the first alone.
        """
        day, advertisers = demand.day, self.advertisers
        search_S = np.arange(len(demand))
        user_S = demand.asked.user_S
        explored_S = self._luck("explore", user_S, day, search_S) < explore
        choice_S = self._luck("choice", user_S, day, search_S)
        order_SK = None
        if whole_slates:
            order_SK = np.zeros(demand.product_SK.shape)
            drawn = np.flatnonzero(explored_S)
            keys = (user_S[drawn, None], day, drawn[:, None], demand.product_SK[drawn])
            order_SK[drawn] = self._luck("order", *keys)
        advertiser_SK = advertisers.advertiser_P[demand.product_SK]
        left_A = advertisers.daily_budget_A.copy()
        full_bid_SK = np.where(demand.product_SK >= 0, advertisers.bid_P[demand.product_SK], 0.0)
        bid_SK = np.zeros_like(full_bid_SK)
        parts: dict[str, list[Shown]] = {name: [] for name in twins}
        auctions: dict[str, list[Auction]] = {name: [] for name in twins}
        given_away = 0
        for rows in _blocks(demand):
            bid_SK[rows] = np.minimum(full_bid_SK[rows], left_A[advertiser_SK[rows]])
            for name, twin in twins.items():
                auction = hold_auction(
                    bid_SK[rows],
                    twin.score_SK[rows],
                    explore=explore,
                    explored_S=explored_S[rows],
                    choice_S=choice_S[rows],
                    order_SK=None if order_SK is None else order_SK[rows],
                )
                auctions[name].append(auction)
                parts[name].append(self._answers(demand, rows.start, auction, twin.memory))
            served = [served_S[parts[name][-1].search_N] == name for name in twins]
            given_away += _charge(
                [parts[name][-1] for name in twins], served, advertisers.advertiser_P, left_A
            )
        return Played(
            shown={name: _joined(blocks) for name, blocks in parts.items()},
            firsts={name: _firsts(blocks) for name, blocks in auctions.items()},
            bid_SK=bid_SK,
            left_A=left_A,
            given_away=given_away,
        )

    def first_probabilities(self, demand: Demand, memory: PurchaseMemory) -> FloatArray:
        """True click probability [S, K] of each candidate at the first position; 0 where there is none."""
        search_N, place_N = np.nonzero(demand.product_SK >= 0)
        ads = ShownAds(
            search_N=search_N,
            product_N=demand.product_SK[search_N, place_N],
            grade_N=demand.grade_SK[search_N, place_N],
            position_N=np.ones(len(search_N), np.int8),
        )
        probability_SK = np.zeros(demand.product_SK.shape)
        probability_SK[search_N, place_N] = self._probabilities(demand, ads, memory)
        return probability_SK

    def purchases(self, demand: Demand, shown: Shown, memory: PurchaseMemory) -> PurchaseRows:
        """What all consumers of one policy buy on a day: orders, and what followed clicks on its ads."""
        rng = np.random.default_rng(live_seed(self.world.config, self.luck, demand.day, "orders"))
        orders = self._orders.orders(demand.day, demand.start_us, memory, rng)
        bought = np.flatnonzero(shown.bought_N)
        after_clicks = PurchaseRows(
            time_us_N=shown.purchase_time_us_N[bought],
            user_N=demand.asked.user_S[shown.search_N[bought]],
            product_N=shown.product_N[bought],
            quantity_N=np.ones(len(bought), np.int32),
        )
        return sorted_by_time(orders, after_clicks)

    def _answers(self, demand: Demand, first_search: int, auction: Auction, memory: PurchaseMemory) -> Shown:
        """What is shown in one block, and what shoppers do."""
        count = len(auction.entered_S)
        room_S = np.minimum(demand.size_S[first_search : first_search + count], auction.entered_S)
        row_N, slot_N = np.nonzero(np.arange(SLOTS) < room_S[:, None])
        search_N, place_N = row_N + first_search, auction.place_SK[row_N, slot_N]
        ads = ShownAds(
            search_N=search_N,
            product_N=demand.product_SK[search_N, place_N],
            grade_N=demand.grade_SK[search_N, place_N],
            position_N=(slot_N + 1).astype(np.int8),
        )
        probability_N = self._probabilities(demand, ads, memory)
        user_N = demand.asked.user_S[search_N]
        keys = (user_N, demand.day, search_N, ads.product_N)
        # ndtri(0) is no time at all.
        delay_us_N = click_delays_us(ndtri(np.maximum(self._luck("delay", *keys), 2.0**-53)))
        chance_N = self._simulator.conversion_chances(user_N, ads.grade_N, demand.day)
        clicked_N = self._luck("click", *keys) < probability_N
        shortest_us, longest_us = CONVERSION_WAIT_US
        wait_us_N = shortest_us + (self._luck("wait", *keys) * (longest_us - shortest_us)).astype(np.int64)
        click_time_us_N = demand.asked.time_us_S[search_N] + delay_us_N
        price_N = auction.price_SK[row_N, slot_N]
        return Shown(
            search_N=search_N,
            place_N=place_N,
            product_N=ads.product_N,
            grade_N=ads.grade_N,
            position_N=ads.position_N,
            price_N=price_N,
            probability_N=probability_N,
            conversion_chance_N=chance_N,
            clicked_N=clicked_N,
            click_time_us_N=click_time_us_N,
            bought_N=clicked_N & (self._luck("buy", *keys) < chance_N),
            purchase_time_us_N=click_time_us_N + wait_us_N,
            charged_N=price_N * clicked_N,
            propensity_N=auction.chance_SK[row_N, slot_N],
        )

    def _probabilities(self, demand: Demand, ads: ShownAds, memory: PurchaseMemory) -> FloatArray:
        model = self.world.config.clicks
        causes = self._simulator.causes(
            demand.asked, ads, demand.day, demand.start_us, memory, demand.promoted_P
        )
        return sigmoid(click_logits(model, click_terms(model, causes)))

    def _luck(self, purpose: str, *keys_N: IntArray | int) -> FloatArray:
        return uniform(self.world.config.seed, f"{self.luck} {purpose}", *keys_N)


def read_description(folder: Path) -> dict[str, Any]:
    """marketplace.json of an invented shop.

    Raises:
        ValueError: there is none, or one of a real catalogue.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise ValueError(f"{folder} has no {DESCRIPTION}: give a folder that `dashclip generate` wrote")
    about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "catalogue" in about:
        raise ValueError(
            f"{folder} is a log on a real catalogue ({about['catalogue']}); the live marketplace goes on in "
            "invented shops only: make one with `dashclip generate OUT` without --catalogue"
        )
    return about


def logged_purchases(world: World, folder: Path) -> PurchaseRows:
    """All purchases that a world's log holds, in order of time."""
    table = pq.read_table(folder / "purchases.parquet")
    time_us_N = table["timestamp"].cast("int64").to_numpy()
    return PurchaseRows(
        time_us_N=time_us_N,
        user_N=table["user_id"].to_numpy() - FIRST_USER_ID,
        product_N=table["product_id"].to_numpy() - FIRST_PRODUCT_ID,
        quantity_N=table["quantity"].to_numpy(),
    )


def memory_of_log(world: World, bought: PurchaseRows) -> PurchaseMemory:
    """What shoppers remember at the end of a world's log."""
    config = world.config
    memory = PurchaseMemory(world.shoppers.num_users)
    day_N = (bought.time_us_N - midnight_us(config, 0)) // DAY_US
    # What followed a click just before the last midnight belongs to the last day.
    day_N = np.minimum(day_N, config.days - 1)
    edges = np.searchsorted(day_N, np.arange(-config.history_days, config.days + 1))
    for day, (start, end) in enumerate(pairwise(edges), -config.history_days):
        memory.add(bought.user_N[start:end], bought.product_N[start:end], day)
    return memory


def _blocks(demand: Demand) -> list[slice]:
    """Searches of each quarter of an hour that has any."""
    edges_us = demand.start_us + np.arange(DAY_US // BLOCK_US + 1) * BLOCK_US
    edges = np.searchsorted(demand.asked.time_us_S, edges_us)
    return [slice(int(a), int(b)) for a, b in pairwise(edges) if b > a]


def _charge(parts: list[Shown], served: list[BoolArray], advertiser_P: IntArray, left_A: FloatArray) -> int:
    """Take what served clicks cost from what is left, in order of time.

    Prices and `left_A` are as of the beginning of the block; `charged_N` of the parts and `left_A` change.

    Returns:
        How many clicks were not paid in full.
    """
    rows = [np.flatnonzero(shown.clicked_N & mine_N) for shown, mine_N in zip(parts, served, strict=True)]
    part = np.concatenate([np.full(len(found), place) for place, found in enumerate(rows)])
    row = np.concatenate(rows)
    search = np.concatenate([shown.search_N[found] for shown, found in zip(parts, rows, strict=True)])
    product = np.concatenate([shown.product_N[found] for shown, found in zip(parts, rows, strict=True)])
    price = np.concatenate([shown.price_N[found] for shown, found in zip(parts, rows, strict=True)])
    advertiser = advertiser_P[product]
    order = np.lexsort((row, search, advertiser))
    part, row, price, advertiser = part[order], row[order], price[order], advertiser[order]
    before = np.cumsum(price) - price
    first = np.searchsorted(advertiser, advertiser)
    spent_before = before - before[first] if len(before) else before
    charged = np.clip(left_A[advertiser] - spent_before, 0.0, price)
    for place, shown in enumerate(parts):
        mine = part == place
        shown.charged_N[row[mine]] = charged[mine]
    np.subtract.at(left_A, advertiser, charged)
    np.maximum(left_A, 0.0, out=left_A)  # rounding
    return int((charged < price - 1e-9).sum())


def _joined(blocks: list[Shown]) -> Shown:
    return Shown(
        **{field.name: np.concatenate([getattr(b, field.name) for b in blocks]) for field in fields(Shown)}
    )


def _firsts(blocks: list[Auction]) -> Firsts:
    entered = np.concatenate([auction.entered_S for auction in blocks])
    first = np.concatenate([auction.place_SK[:, 0] for auction in blocks])
    return Firsts(
        place_S=np.where(entered > 0, first, -1),
        greedy_S=np.concatenate([auction.greedy_S for auction in blocks]),
        propensity_S=np.concatenate([auction.propensity_S for auction in blocks]),
    )
