"""Products of the simulated marketplace: their facts, and what title and package each reveal.

A product has one type, brand, variety, size and a set of flags. The *facts* drive grades, tastes and
clicks; the title and the package show subsets of them. Shapes: P products, T types, B brands.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.marketplace.config import LogConfig, MarketplaceConfig
from experiments.marketplace.world.assortment import FLAGS, Assortment, brand_names, load_assortment

IntArray = npt.NDArray[np.integer]
FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]

#: `product_id` of the first product; ids are dense from here, in no meaningful order.
FIRST_PRODUCT_ID = 1_000_000

# How often the title names a fact that the product has. The package always shows brand, variety (as its
# colour and mostly as text) and flags (badges); it never shows the size in words that the title uses.
TITLE_SHOWS_BRAND = 0.92
TITLE_SHOWS_VARIETY = 0.70
TITLE_SHOWS_FLAG = 0.65
TITLE_SHOWS_SIZE = 0.80
TITLE_USES_SYNONYM = 0.25
BRAND_COLUMN_FILLED = 0.95
DESCRIPTION_FILLED = 0.70
#: Spread of log prices between the brands of a shop, and again between the products of a brand.
LOG_PRICE_SD = 0.25

_PRAISE = ("Classic", "Premium", "Everyday", "Original", "Family Pack", "Finest", "Value", "Simply")
_DESCRIPTIONS = (
    "A {variety} {noun} for every day.",
    "{brand} {noun}, made with care.",
    "Our {noun} in {size}.",
    "Loved by families: {noun} by {brand}.",
    "Carefully selected {variety} quality.",
)


@dataclass(frozen=True)
class Shelf:
    """What a log needs of all products, invented or real; `flags_P` is a bit set over `FLAGS`.

    Products of one type, brand or variety have one number.
    """

    num_types: int
    #: Whole numbers, or strings as objects.
    product_id_P: npt.NDArray[Any]
    type_P: IntArray
    brand_P: IntArray
    variety_P: IntArray
    flags_P: IntArray
    price_P: FloatArray
    log_relative_price_P: FloatArray
    quality_P: FloatArray
    #: How much shoppers buy it, and how much its advertiser pays to show it.
    popularity_P: FloatArray
    ad_weight_P: FloatArray
    #: Day of the first impression period on which it can first be seen; negative: before it began.
    available_from_P: IntArray

    @property
    def num_products(self) -> int:
        return len(self.type_P)


@dataclass(frozen=True)
class Catalog(Shelf):
    """All invented products. `variety_P` and `brand_P` index shop-wide lists."""

    assortment: Assortment
    brands: tuple[str, ...]
    aisle_P: IntArray
    title_shows_brand_P: BoolArray
    title_shows_variety_P: BoolArray
    title_flags_P: IntArray
    titles: list[str]
    brand_column: list[str | None]
    descriptions: list[str | None]


def make_catalog(config: MarketplaceConfig, seed: np.random.SeedSequence) -> Catalog:
    """Draw `config.products` products. Every type has at least one that is there from the first day."""
    facts_seed, text_seed = seed.spawn(2)
    rng = np.random.default_rng(facts_seed)
    assortment = load_assortment()
    count, kinds = config.products, assortment.types

    share_T = rng.lognormal(0.0, 0.4, len(kinds))
    type_P = np.concatenate(
        [np.arange(len(kinds)), rng.choice(len(kinds), count - len(kinds), p=share_T / share_T.sum())]
    )
    available_from_P = draw_launch_days(config, count, rng)
    available_from_P[: len(kinds)] = -config.history_days
    order_P = rng.permutation(count)  # ids say nothing about type or age
    type_P, available_from_P = type_P[order_P], available_from_P[order_P]
    aisle_P = np.array([kind.aisle for kind in kinds])[type_P]

    brand_P, num_brands = _draw_brands(type_P, aisle_P, rng)
    variety_index = {variety: index for index, variety in enumerate(assortment.varieties)}
    variety_P = np.zeros(count, np.int32)
    flags_P = np.zeros(count, np.int32)
    for type_index, kind in enumerate(kinds):
        rows = np.flatnonzero(type_P == type_index)
        weights = 1.0 / np.arange(1, len(kind.varieties) + 1) ** 0.7
        choices = np.array([variety_index[variety] for variety in kind.varieties])
        variety_P[rows] = rng.choice(choices, len(rows), p=weights / weights.sum())
        for flag in kind.flags:
            flags_P[rows] |= np.where(rng.random(len(rows)) < 0.28, 1 << flag, 0).astype(np.int32)

    median_P = np.array([kind.median_price for kind in kinds])[type_P]
    price_P = np.round(median_P * np.exp(draw_log_prices(brand_P, num_brands, rng)), 2)
    price_P = np.maximum(price_P, 0.2)
    standing = draw_standing(brand_P, num_brands, rng)

    title_shows_brand_P = rng.random(count) < TITLE_SHOWS_BRAND
    title_shows_variety_P = rng.random(count) < TITLE_SHOWS_VARIETY
    shown_bits_PF = rng.random((count, len(FLAGS))) < TITLE_SHOWS_FLAG
    title_flags_P = flags_P & (shown_bits_PF @ (1 << np.arange(len(FLAGS)))).astype(np.int32)

    brands = tuple(brand_names()[:num_brands])
    titles, brand_column, descriptions = _write_texts(
        assortment,
        brands,
        type_P,
        brand_P,
        variety_P,
        title_flags_P,
        title_shows_brand_P,
        title_shows_variety_P,
        np.random.default_rng(text_seed),
    )
    return Catalog(
        num_types=len(kinds),
        assortment=assortment,
        brands=brands,
        product_id_P=FIRST_PRODUCT_ID + np.arange(count, dtype=np.int64),
        type_P=type_P.astype(np.int32),
        aisle_P=aisle_P.astype(np.int32),
        brand_P=brand_P.astype(np.int32),
        variety_P=variety_P,
        flags_P=flags_P,
        price_P=price_P,
        log_relative_price_P=np.log(price_P / median_P),
        **standing,
        available_from_P=available_from_P.astype(np.int32),
        title_shows_brand_P=title_shows_brand_P,
        title_shows_variety_P=title_shows_variety_P,
        title_flags_P=title_flags_P,
        titles=titles,
        brand_column=brand_column,
        descriptions=descriptions,
    )


def draw_launch_days(config: LogConfig, count: int, rng: np.random.Generator) -> IntArray:
    """Launch days of `count` products: most were there before the first purchase."""
    return np.where(
        rng.random(count) < config.new_product_share,
        rng.integers(0, config.days, count),
        -config.history_days,
    )


def draw_log_prices(brand_P: IntArray, num_brands: int, rng: np.random.Generator) -> FloatArray:
    """Log of each price relative to the median of its type: a level of the brand, and the product's own."""
    level_B = rng.normal(0.0, LOG_PRICE_SD, num_brands)
    return level_B[brand_P] + rng.normal(0.0, LOG_PRICE_SD, len(brand_P))


def draw_standing(brand_P: IntArray, num_brands: int, rng: np.random.Generator) -> dict[str, FloatArray]:
    """Quality, popularity and weight in the auction, by the names of their fields in `Shelf`."""
    count = len(brand_P)
    quality_P = 0.6 * rng.normal(size=num_brands)[brand_P] + 0.8 * rng.normal(size=count)
    popularity_P = np.exp(rng.normal(0.0, 1.0, count) + 0.3 * quality_P)
    ad_weight_P = popularity_P**0.5 * rng.lognormal(0.0, 0.9, count)
    return {"quality_P": quality_P, "popularity_P": popularity_P, "ad_weight_P": ad_weight_P}


def flag_names(flags: int) -> list[str]:
    """The flags of a bit set: `flag_names(0b101)` is ["organic", "sugar free"]."""
    return [flag for bit, flag in enumerate(FLAGS) if flags >> bit & 1]


def _draw_brands(type_P: IntArray, aisle_P: IntArray, rng: np.random.Generator) -> tuple[IntArray, int]:
    """Zipf over the brands of each aisle, in an order that differs by type.

    A brand makes several types of one aisle. The number of brands grows with the root of the products.
    """
    brand_P = np.zeros(len(type_P), np.int64)
    first = 0
    for aisle in range(int(aisle_P.max()) + 1):
        in_aisle = aisle_P == aisle
        brands_here = int(np.clip(1.6 * np.sqrt(in_aisle.sum()), 5, 240))
        for type_index in np.unique(type_P[in_aisle]):
            rows = np.flatnonzero(type_P == type_index)
            carriers = rng.permutation(brands_here)[: max(3, int(0.6 * brands_here))]
            weights = 1.0 / np.arange(1, len(carriers) + 1)
            brand_P[rows] = first + rng.choice(carriers, len(rows), p=weights / weights.sum())
        first += brands_here
    return brand_P, first


def _write_texts(
    assortment: Assortment,
    brands: tuple[str, ...],
    type_P: IntArray,
    brand_P: IntArray,
    variety_P: IntArray,
    title_flags_P: IntArray,
    shows_brand_P: BoolArray,
    shows_variety_P: BoolArray,
    rng: np.random.Generator,
) -> tuple[list[str], list[str | None], list[str | None]]:
    count = len(type_P)
    dice_PK = rng.random((count, 8))
    titles: list[str] = []
    brand_column: list[str | None] = []
    descriptions: list[str | None] = []
    for row in range(count):
        kind = assortment.types[type_P[row]]
        dice = dice_PK[row]
        brand, variety = brands[brand_P[row]], assortment.varieties[variety_P[row]]
        others = kind.names[1:]
        use_synonym = others and dice[0] < TITLE_USES_SYNONYM
        noun = others[int(dice[1] * len(others))] if use_synonym else kind.name
        size = kind.sizes[int(dice[2] * len(kind.sizes))]

        words = [brand] if shows_brand_P[row] else []
        if dice[3] < 0.3:
            words.append(_PRAISE[int(dice[3] / 0.3 * len(_PRAISE))])
        flags = flag_names(int(title_flags_P[row]))
        if dice[4] < 0.7:
            words += [flag.title() for flag in flags]
        if shows_variety_P[row]:
            words.append(variety.title())
        words.append(noun.title())
        if dice[4] >= 0.7:
            words += [flag.title() for flag in flags]
        title = " ".join(words)
        titles.append(f"{title}, {size}" if dice[5] < TITLE_SHOWS_SIZE else title)
        brand_column.append(brand if dice[6] < BRAND_COLUMN_FILLED else None)
        if dice[7] < DESCRIPTION_FILLED:
            template = _DESCRIPTIONS[int(dice[7] / DESCRIPTION_FILLED * len(_DESCRIPTIONS))]
            shown_variety = variety if shows_variety_P[row] else "fine"
            shown_brand = brand if shows_brand_P[row] else "us"
            text = template.format(variety=shown_variety, noun=noun, brand=shown_brand, size=size)
            descriptions.append(text)
        else:
            descriptions.append(None)
    return titles, brand_column, descriptions
