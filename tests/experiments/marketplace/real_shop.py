"""A small shop of made-up words that stands for a real one: products, graded queries, images."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.marketplace.config import CatalogueConfig

AISLES = [f"aisle {letter}" for letter in "abcdefghijklmn"]
_NOUNS = "lamp drill faucet shelf carpet hose ladder mirror paint screw tile vanity heater grill"
NOUNS = tuple(_NOUNS.split())
COLOURS = ("white", "black", "oak", "steel", "brass")
BRANDS = ("Acme", "Bolt", "Corro", "Dunn")


def write_shop(
    folder: Path,
    *,
    products: int = 300,
    queries: int = 130,
    string_ids: bool = False,
    columns: tuple[str, ...] = ("aisle", "brand", "price", "image", "colour"),
    seed: int = 0,
) -> Path:
    """Write products.parquet and relevance.parquet; the last aisle has no graded query."""
    rng = np.random.default_rng(seed)
    kind_P = np.arange(products) % len(AISLES)
    colour_P = rng.integers(0, len(COLOURS), products)
    brand_P = rng.integers(0, len(BRANDS), products)
    titles = [
        f"{BRANDS[brand]} {COLOURS[colour]} {NOUNS[kind]} no {row}"
        for row, (brand, colour, kind) in enumerate(zip(brand_P, colour_P, kind_P, strict=True))
    ]
    ids = np.arange(products) * 7 + 11
    id_column = pa.array([f"sku-{number}" for number in ids]) if string_ids else pa.array(ids, pa.int64())
    names = [None if row % 9 == 0 else BRANDS[brand] for row, brand in enumerate(brand_P)]
    prices = [None if row % 5 == 0 else float(np.round(rng.uniform(2, 200), 2)) for row in range(products)]
    images = [f"photos/{row}.png" if row % 3 == 0 else None for row in range(products)]
    further = {
        "aisle": pa.array([AISLES[kind] for kind in kind_P]),
        "brand": pa.array(names),
        "price": pa.array(prices, pa.float64()),
        "image": pa.array(images, pa.string()),
        "colour": pa.array([COLOURS[colour] for colour in colour_P]),
    }
    (folder / "photos").mkdir(parents=True)
    for name in images[:30]:
        if name:
            (folder / name).write_bytes(b"pixels of " + name.encode())
    chosen = {name: further[name] for name in columns}
    pq.write_table(
        pa.table({"product_id": id_column, "title": titles, **chosen}), folder / "products.parquet"
    )

    rows = []
    for query in range(queries):
        kind = query % (len(AISLES) - 1)
        colour = int(rng.integers(len(COLOURS)))
        text = f"{COLOURS[colour]} {NOUNS[kind]} {query}"
        near = np.flatnonzero(kind_P == kind)
        for product in rng.choice(near, min(1 + query % 8, len(near)), replace=False):
            rows.append((text, product, 2 if colour_P[product] == colour else 1))
        rows.append((text, int(rng.integers(products)), 0))
    seen = {(text, product): grade for text, product, grade in reversed(rows)}
    relevance = {
        "query": [text for text, _ in seen],
        "product_id": id_column.take(pa.array([product for _, product in seen])),
        "grade": pa.array(list(seen.values()), pa.int8()),
        "source": ["human"] * len(seen),
        "annotator": [f"person {number % 3}" for number in range(len(seen))],
    }
    pq.write_table(pa.table(relevance), folder / "relevance.parquet")
    return folder


def tiny_log(candidates: str = "mixed", **changes: object) -> CatalogueConfig:
    """Six thousand impressions in 30 days."""
    size = {"users": 200, "impressions": 6_000, "days": 30, "seed": 7} | changes
    return CatalogueConfig.preset("tiny", candidates, **size)  # type: ignore[arg-type]
