"""Real products and queries as the world of a simulated log: what is read of them, and what is invented.

Read are ids, titles, aisles, brands, prices and graded queries. Types, varieties and missing brands are made
of titles, so that what a simulated shopper likes can be read in real words. Invented are quality,
popularity, bids, launch days, the traffic of queries, and prices where there are none.

Shapes: P products, Q queries, T types, G graded pairs.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from embeddings.catalog.products import ProductCatalog
from embeddings.catalog.titles import normalise_text
from embeddings.relevance.grades import Grades, read_grades
from experiments.datasets.home_depot import derive_aisles
from experiments.marketplace.config import LogConfig
from experiments.marketplace.world.assortment import FLAGS
from experiments.marketplace.world.catalog import (
    LOG_PRICE_SD,
    FloatArray,
    IntArray,
    Shelf,
    draw_launch_days,
    draw_log_prices,
    draw_standing,
)
from experiments.marketplace.world.queries import SearchTraffic, zipf_traffic
from experiments.marketplace.world.shoppers import LIKED_TYPE_SHARES
from features.inputs.blanks import without_blanks
from features.inputs.tables import InputError, open_table
from features.progress import Progress, silent

#: With fewer products or graded queries a log says nothing about a ranker.
FEWEST_PRODUCTS = 100
FEWEST_QUERIES = 100
#: Aisles are the types that shoppers like if there are this many; else clusters of titles are.
FEWEST_AISLES = 2 * len(LIKED_TYPE_SHARES)
#: Beyond so many aisles the rarer ones are one type.
MOST_TYPES = 300
#: Without a column of brands, the first word of so many titles is one.
BRAND_TITLES = 5
#: A type has so many varieties, and each of them so many titles at least.
VARIETIES = 12
VARIETY_TITLES = 3
#: A word in this share of a type's titles names the type.
NAMES_TYPE_SHARE = 0.5
#: Median price where no price is known at all.
UNKNOWN_PRICE = 10.0
#: Log prices spread by this much within an invented type, brands and products together.
_LOG_PRICE_SPREAD = LOG_PRICE_SD * 2**0.5


@dataclass(frozen=True)
class RealCatalog(Shelf):
    """Real products; names are None for a product that has a brand or variety of its own."""

    titles: list[str]
    type_names: list[str]
    brand_names: list[str | None]
    variety_names: list[str | None]
    #: What the bits of `flags_P` stand for: words instead of the flags of invented products.
    styles: list[str]
    #: Whether products have a column aisle with anything in it.
    has_aisles: bool
    #: Where what shoppers like comes from, by "types" and "brands".
    sources: dict[str, str]
    #: Each image file that a product names within the folder of the catalogue; it need not exist.
    image_paths: list[Path]


@dataclass(frozen=True)
class RealWorld:
    """What people sell, ask for and graded; queries are in the order of `grades.queries`."""

    catalog: RealCatalog
    queries: SearchTraffic
    grades: Grades


def read_real_world(
    config: LogConfig, data: Path, seed: np.random.SeedSequence, *, progress: Progress = silent
) -> RealWorld:
    """Read products and relevance of a data folder, and invent what they do not say.

    Raises:
        InputError: a table or column is missing, or there are too few titles, products or graded queries.
        CatalogError, RelevanceError: ids or grades that cannot be used.
    """
    catalog_seed, traffic_seed = seed.spawn(2)
    progress("reading the catalogue", 0, 1)
    read = ProductCatalog.open(data)
    grades = read_grades(data)
    _check(data, read, grades)
    catalog = _make_catalog(config, data, read, np.random.default_rng(catalog_seed), progress)
    progress("reading the catalogue", 1, 1)
    anchor_Q = anchor_types(grades, catalog)
    # The order of writing decides the traffic, and that of the table is alphabetical.
    order = np.random.default_rng(traffic_seed).permutation(len(anchor_Q))
    traffic_Q = np.empty(len(order))
    traffic_Q[order] = zipf_traffic(anchor_Q[order], catalog.num_types, head_Q=np.zeros(len(order), bool))
    return RealWorld(catalog, SearchTraffic(grades.queries.to_pylist(), anchor_Q, traffic_Q), grades)


def anchor_types(grades: Grades, catalog: Shelf) -> IntArray:
    """The type that each query is about: that of its graded products, by the sum of 1 + 4 x grade."""
    key_G = grades.query_G.astype(np.int64) * catalog.num_types + catalog.type_P[grades.product_G]
    keys, place_G = np.unique(key_G, return_inverse=True)
    weight = np.bincount(place_G, weights=1.0 + 4.0 * grades.grade_G)
    query, kind = np.divmod(keys, catalog.num_types)
    best = np.lexsort((kind, -weight, query))
    first = np.flatnonzero(np.diff(query[best], prepend=-1))
    return kind[best][first].astype(np.int32)


def codes_or_own(names: Sequence[str | None]) -> tuple[IntArray, int]:
    """A number for each name and how many there can be; a missing one gets a number of its own.

    >>> codes_or_own(["b", None, "a", "b"])[0].tolist()
    [1, 3, 0, 1]
    """
    known = {name: code for code, name in enumerate(sorted({name for name in names if name is not None}))}
    codes = [len(known) + row if name is None else known[name] for row, name in enumerate(names)]
    return np.array(codes, np.int32), len(known) + len(names)


@dataclass(frozen=True)
class TitleWords:
    """What shoppers like in titles: words that part of a type's titles share, as "oak" or "white"."""

    #: The most frequent such word of each title; None without one.
    variety_P: list[str | None]
    #: The words that are varieties of most types, and which of them each title has, as a bit set.
    styles: list[str]
    style_bits_P: IntArray

    @classmethod
    def of(cls, words_P: Sequence[Sequence[str]], type_P: IntArray) -> "TitleWords":
        """Varieties are each type's `VARIETIES` most frequent words that do not name the type.

        The same word is the same variety in every type.
        """
        members_T: dict[int, list[int]] = {}
        for row, kind in enumerate(type_P.tolist()):
            members_T.setdefault(kind, []).append(row)
        variety_P: list[str | None] = [None] * len(words_P)
        types_of: Counter[str] = Counter()
        for members in members_T.values():
            count_of = Counter(word for row in members for word in words_P[row])
            most = NAMES_TYPE_SHARE * len(members)
            shared = [word for word, count in count_of.items() if VARIETY_TITLES <= count < most]
            best = sorted(shared, key=lambda word: (-count_of[word], word))[:VARIETIES]
            rank = {word: place for place, word in enumerate(best)}
            types_of.update(best)
            for row in members:
                named = [word for word in words_P[row] if word in rank]
                variety_P[row] = min(named, key=rank.__getitem__, default=None)
        styles = sorted(types_of, key=lambda word: (-types_of[word], word))[: len(FLAGS)]
        bit_of = {word: 1 << bit for bit, word in enumerate(styles)}
        bits = [sum(bit_of.get(word, 0) for word in set(words)) for words in words_P]
        return cls(variety_P, styles, np.array(bits, np.int32))


def title_brands(titles: Sequence[str]) -> list[str | None]:
    """The first word of each title where `BRAND_TITLES` titles begin with it; None elsewhere."""
    first = [next(iter(normalise_text(title).split()), "") for title in titles]
    count_of = Counter(first)
    return [
        word if word.isalpha() and word not in ENGLISH_STOP_WORDS and count_of[word] >= BRAND_TITLES else None
        for word in first
    ]


def _check(data: Path, read: ProductCatalog, grades: Grades) -> None:
    summary = read.summary()
    if summary.without_title == summary.products:
        raise InputError(
            f"products of {data}: none of the {summary.products:,} has a title, and queries are matched to "
            "titles; fill the column title"
        )
    report = grades.report
    if not report.pairs:
        raise InputError(
            f"relevance of {data} has no usable grade: of {report.rows:,} rows {report.other_source_rows:,} "
            f"have no source, {report.null_rows:,} lack a value, and "
            f"{report.unknown_product_rows:,} are of products that are not in products"
        )
    for found, fewest, what in (
        (summary.products, FEWEST_PRODUCTS, "products"),
        (len(grades.queries), FEWEST_QUERIES, "queries with a graded product of the catalogue"),
    ):
        if found < fewest:
            raise InputError(
                f"{data} has {found:,} {what}; a simulated log needs at least {fewest}, since a ranker "
                "learns nothing from fewer"
            )


def _make_catalog(
    config: LogConfig, data: Path, read: ProductCatalog, rng: np.random.Generator, progress: Progress
) -> RealCatalog:
    count = len(read)
    columns = open_table(data, "products", ["product_id"])
    wanted = [name for name in ("brand", "price") if name in columns.schema.names]
    extra = columns.to_table(columns=wanted)
    types, types_from = _types(read, progress)
    type_names = sorted(set(types))
    if len(type_names) < len(LIKED_TYPE_SHARES):
        raise InputError(
            f"titles of {data} fall into {len(type_names)} groups; shoppers need at least "
            f"{len(LIKED_TYPE_SHARES)} different kinds of products to like, so name {FEWEST_AISLES} aisles "
            "or more in the column aisle"
        )
    type_P = np.searchsorted(type_names, types).astype(np.int32)
    brands, brands_from = title_brands(read.titles), "first words of titles"
    if "brand" in wanted:
        filled = without_blanks(extra.column("brand").cast(pa.string()))
        if filled.null_count < count:
            brands, brands_from = filled.to_pylist(), "column brand"
    brand_P, num_brands = codes_or_own(brands)
    words_P = [
        {word for word in normalise_text(title).split() if word.isalpha() and len(word) > 2}
        - ENGLISH_STOP_WORDS
        - set(normalise_text(brand or "").split())
        for title, brand in zip(read.titles, brands, strict=True)
    ]
    words = TitleWords.of([sorted(found) for found in words_P], type_P)
    prices = np.full(count, np.nan)
    if "price" in wanted:
        try:
            prices = extra.column("price").cast(pa.float64()).to_numpy()
        except pa.ArrowInvalid as error:
            raise InputError(
                f"price of products in {data} must be a number: {error}; correct it, or leave the column out"
            ) from None
    price_P, log_relative_price_P = _prices(data, prices, type_P, draw_log_prices(brand_P, num_brands, rng))
    ids = read.ids.to_numpy(zero_copy_only=False)
    return RealCatalog(
        num_types=len(type_names),
        product_id_P=ids,
        type_P=type_P,
        brand_P=brand_P,
        variety_P=codes_or_own(words.variety_P)[0],
        flags_P=words.style_bits_P,
        price_P=price_P,
        log_relative_price_P=log_relative_price_P,
        **draw_standing(brand_P, num_brands, rng),
        available_from_P=draw_launch_days(config, count, rng).astype(np.int32),
        titles=read.titles,
        type_names=type_names,
        brand_names=brands,
        variety_names=words.variety_P,
        styles=words.styles,
        has_aisles=any(read.aisles),
        sources={"types": types_from, "brands": brands_from},
        image_paths=sorted({path for path in read.image_paths if isinstance(path, Path)}),
    )


def _types(read: ProductCatalog, progress: Progress) -> tuple[list[str], str]:
    """A type for each product, and where types come from."""
    size_of = Counter(read.aisles)
    if len(size_of) < FEWEST_AISLES:
        return derive_aisles(read.titles, progress=progress), "clusters of titles"
    kept = sorted(size_of, key=lambda aisle: (-size_of[aisle], aisle))[:MOST_TYPES]
    known = set(kept if len(kept) == len(size_of) else kept[:-1])
    return [aisle if aisle in known else "(other aisles)" for aisle in read.aisles], "column aisle"


def _prices(
    data: Path, known_P: FloatArray, type_P: IntArray, drawn_P: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Price of each product, and its log relative to the median of the type, as effects read it.

    Missing prices are the type's median times `exp(drawn_P)`. Real prices of one type may differ more than
    invented ones, as a cluster mixes small and large goods; effects read them scaled to the same spread.
    """
    wrong_P = (known_P < 0) | np.isinf(known_P)
    if wrong_P.any():
        raise InputError(
            f"price of products in {data} must be finite and not negative, got {known_P[wrong_P][0]:g}; "
            "correct it, or leave it null"
        )
    positive_P = known_P > 0
    overall = float(np.median(known_P[positive_P])) if positive_P.any() else UNKNOWN_PRICE
    median_T = np.full(int(type_P.max()) + 1, overall)
    for kind in np.unique(type_P[positive_P]).tolist():
        median_T[kind] = np.median(known_P[positive_P & (type_P == kind)])
    log_relative_P = np.where(positive_P, np.log(np.where(positive_P, known_P, 1.0) / median_T[type_P]), 0.0)
    spread = float(log_relative_P[positive_P].std()) if positive_P.any() else 0.0
    log_relative_P *= min(1.0, _LOG_PRICE_SPREAD / max(spread, 1e-12))
    missing_P = np.isnan(known_P)
    simulated_P = np.round(median_T[type_P] * np.exp(drawn_P), 2)
    return (
        np.where(missing_P, simulated_P, known_P),
        np.where(missing_P, drawn_P, log_relative_P),
    )
