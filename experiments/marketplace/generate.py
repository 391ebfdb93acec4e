"""Generate a simulated marketplace: products, queries, graders, users, then the log day by day.

Memory is that of products, queries and users plus one day of the log, however long the log is. Each part
has its own child of the seed, so that leaving out images, for one, changes no other part, and both presets
of a seed have the same products, queries, grades and users.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from experiments.marketplace.config import LogConfig, MarketplaceConfig
from experiments.marketplace.days.purchases import OrderSimulator, sorted_by_time
from experiments.marketplace.days.searches import SearchSimulator, match_pools, promotions
from experiments.marketplace.days.slates import SLATE_SIZES, AuctionSlates, MixedSlates, Slates
from experiments.marketplace.facts import LogFacts
from experiments.marketplace.tables import (
    LogWriter,
    write_products,
    write_queries,
    write_relevance,
    write_users,
)
from experiments.marketplace.world.catalog import BoolArray, Catalog, IntArray, Shelf, make_catalog
from experiments.marketplace.world.graders import FactsJudge, Judge, Labels, label_pairs
from experiments.marketplace.world.package_images import write_images
from experiments.marketplace.world.pools import ProductPools
from experiments.marketplace.world.queries import Queries, SearchTraffic, make_queries
from experiments.marketplace.world.retrieval import retrieve
from experiments.marketplace.world.shoppers import PurchaseMemory, Shoppers, make_shoppers
from features.artifacts import atomic_folder, atomic_write_json, json_file_has
from features.columns.clock import DAY_US
from features.progress import Progress, silent

DESCRIPTION = "marketplace.json"

# Positions in the seed's list of children; never renumber, or every marketplace changes.
_CATALOG, _QUERIES, _MATCHES, _LABELS, _SHOPPERS, _DAYS, _PROMOTIONS, _IMAGES, _RETRIEVAL, _LIVE = range(10)

LivePart = Literal["advertisers", "demand", "orders", "log policy"]
#: Likewise never to be put in another order.
LIVE_PARTS: tuple[LivePart, ...] = get_args(LivePart)


def generate(config: MarketplaceConfig, out: Path, *, progress: Progress = silent) -> dict[str, Any]:
    """Write a marketplace to the folder `out` and return its summary (also in `out/marketplace.json`).

    Equal configs give equal tables. The folder appears when all of it is there; an error or an interrupt
    leaves nothing. Only an older marketplace or an empty folder is replaced.

    Args:
        progress: called with (stage, done, total).

    Raises:
        FileExistsError: `out` holds something that is not a marketplace.
    """
    with atomic_folder(out, ours=is_marketplace) as folder:
        progress("products", 0, 1)
        world = make_world(config)
        catalog, queries, shoppers, judge = world.catalog, world.queries, world.shoppers, world.judge
        progress("products", 1, 1)
        labels = label_pairs(config, catalog, queries, world.matches, child_seed(config, _LABELS))
        write_queries(folder, catalog, queries)
        write_relevance(folder, catalog, queries, labels)
        facts = write_log(
            folder, config, catalog, queries, shoppers, world.slates, judge, queries.kind_Q, progress
        )

        images: list[str | None] = [None] * catalog.num_products
        if config.images:
            images = write_images(folder, catalog, config.image_pixels, child_seed(config, _IMAGES), progress)
        write_products(folder, catalog, images)
        summary = _summary(catalog, queries, shoppers, labels, facts) | world.retrieval
        describe(folder, config, summary)
    return summary


@dataclass(frozen=True)
class World:
    """An invented shop before its first day: what its configuration and seed decide."""

    config: MarketplaceConfig
    catalog: Catalog
    queries: Queries
    matches: ProductPools
    shoppers: Shoppers
    slates: Slates
    judge: Judge
    #: What is known of the retrieval; nothing in the preset mixed, which has none.
    retrieval: dict[str, Any]


def make_world(config: MarketplaceConfig) -> World:
    """Products, queries and shoppers; the same for the same configuration and seed."""
    catalog = make_catalog(config, child_seed(config, _CATALOG))
    queries = make_queries(config, catalog, child_seed(config, _QUERIES))
    matches = match_pools(catalog, queries, np.random.default_rng(child_seed(config, _MATCHES)))
    slates, retrieval = _slates(config, catalog, queries, matches)
    return World(
        config=config,
        catalog=catalog,
        queries=queries,
        matches=matches,
        shoppers=make_shoppers(config, catalog, child_seed(config, _SHOPPERS)),
        slates=slates,
        judge=FactsJudge(queries, catalog),
        retrieval=retrieval,
    )


def write_log(
    folder: Path,
    config: LogConfig,
    catalog: Shelf,
    queries: SearchTraffic,
    shoppers: Shoppers,
    slates: Slates,
    judge: Judge,
    kind_Q: IntArray | None,
    progress: Progress,
) -> LogFacts:
    """Write impressions and purchases and the truth of both, day by day, and return what was counted."""
    facts = LogFacts(
        config, num_products=catalog.num_products, num_queries=queries.num_queries, kind_Q=kind_Q
    )
    orders = OrderSimulator(config, catalog, shoppers)
    searches = SearchSimulator(config, catalog, queries, shoppers, slates, judge)
    with LogWriter(folder, catalog, queries) as log:
        _simulate_days(config, catalog, shoppers, orders, searches, facts, log, progress)
    write_users(folder, shoppers)
    return facts


def describe(folder: Path, config: LogConfig, summary: dict[str, Any], **more: Any) -> None:
    """Write what `is_marketplace` recognises: the configuration and the measured facts."""
    content = {
        "simulated": True,
        **more,
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
        "summary": summary,
    }
    atomic_write_json(folder / DESCRIPTION, content)


def is_marketplace(folder: Path) -> bool:
    """Whether `generate` wrote this folder."""
    return json_file_has(folder / DESCRIPTION, "simulated")


def _slates(
    config: MarketplaceConfig, catalog: Catalog, queries: Queries, matches: ProductPools
) -> tuple[Slates, dict[str, Any]]:
    """What decides the ads of a search in this preset, and what is known of its retrieval."""
    if config.candidates == "mixed":
        return MixedSlates(catalog, queries, matches), {}
    retrieved = retrieve(catalog, queries, np.random.default_rng(child_seed(config, _RETRIEVAL)))
    slates = AuctionSlates(catalog, retrieved.pools(catalog), FactsJudge(queries, catalog))
    return slates, {"retrieval": retrieved.summary(queries)}


def _simulate_days(
    config: LogConfig,
    catalog: Shelf,
    shoppers: Shoppers,
    orders: OrderSimulator,
    searches: SearchSimulator,
    facts: LogFacts,
    log: LogWriter,
    tell: Progress,
) -> None:
    memory = PurchaseMemory(shoppers.num_users)
    pending = None  # conversions that fall on the next day
    slate_size = float(np.dot(SLATE_SIZES, np.arange(1, len(SLATE_SIZES) + 1)))
    total_days = config.history_days + config.days
    for done, day in enumerate(range(-config.history_days, config.days)):
        rng = np.random.default_rng(child_seed(config, _DAYS, done))
        day_start_us = midnight_us(config, day)
        parts = [orders.orders(day, day_start_us, memory, rng)] + ([pending] if pending else [])
        if day >= 0:
            if facts.searches:
                slate_size = facts.impressions / facts.searches
            target = round(config.impressions * (day + 1) / config.days) - facts.impressions
            count = max(1, round(target / slate_size))
            promoted_P = promoted_products(config, catalog, day)
            rows = searches.impressions(day, day_start_us, count, memory, rng, promoted_P)
            log.impressions(rows)
            facts.add_impressions(rows, count, day)
            parts.append(searches.conversions(rows, day, rng))
        bought = sorted_by_time(*parts)
        ends = day_start_us + DAY_US if day < config.days - 1 else np.iinfo(np.int64).max
        today = int(np.searchsorted(bought.time_us_N, ends))
        pending = bought.rows(slice(today, None))
        bought = bought.rows(slice(0, today))
        log.purchases(bought)
        facts.add_purchases(bought)
        memory.add(bought.user_N, bought.product_N, day)
        tell("days", done + 1, total_days)


def midnight_us(config: LogConfig, day: int) -> int:
    """When a day begins; day 0 is the first one with impressions."""
    start = datetime(config.start.year, config.start.month, config.start.day, tzinfo=UTC)
    return int(start.timestamp()) * 1_000_000 + day * DAY_US


def promoted_products(config: LogConfig, catalog: Shelf, day: int) -> BoolArray:
    """Which products cost less in the week of a day."""
    return promotions(catalog, np.random.default_rng(child_seed(config, _PROMOTIONS, day // 7)))


def _summary(
    catalog: Catalog, queries: Queries, shoppers: Shoppers, labels: Labels, facts: LogFacts
) -> dict[str, Any]:
    right_L = labels.grade_L == labels.true_grade_N[labels.pair_L]
    return {
        "products": catalog.num_products,
        "users": shoppers.num_users,
        "queries": queries.num_queries,
        "labels": len(labels.grade_L),
        "label_shares": grade_shares(labels.grade_L),
        "true_label_shares": grade_shares(labels.true_grade_N),
        "human_label_accuracy": float(right_L[labels.by_human_L].mean()),
        "llm_label_accuracy": float(right_L[~labels.by_human_L].mean()),
        "new_product_share": float((catalog.available_from_P >= 0).mean()),
        **facts.summary(),
    }


def grade_shares(grade_N: IntArray) -> list[float]:
    """Shares of grades 0, 1, 2."""
    return [round(float(share), 5) for share in np.bincount(grade_N, minlength=3) / len(grade_N)]


def child_seed(config: LogConfig, part: int, *index: int) -> np.random.SeedSequence:
    """The seed of one part of the world or the log."""
    return np.random.SeedSequence(config.seed, spawn_key=(part, *index))


def live_seed(config: LogConfig, luck: int, day: int, part: LivePart) -> np.random.SeedSequence:
    """The seed of one part of a day after the log; other `luck` is another future of the same world."""
    return child_seed(config, _LIVE, luck, day, LIVE_PARTS.index(part))
