"""A miniature data folder for tests of encoders: shapes of a colour, with titles, pictures and grades."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from embeddings.catalog.tokenizer import TextTokenizer

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "pink")
SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")
BRANDS = ("Acme", "Borvo", "Celto", "Dunwa", "Elmiri")
AISLES = ("Round", "Angular", "Angular", "Lines", "Round", "Lines")
RGB = {
    "red": (200, 30, 30),
    "green": (30, 150, 50),
    "blue": (30, 60, 200),
    "yellow": (230, 210, 30),
    "purple": (130, 40, 160),
    "orange": (240, 130, 20),
    "black": (20, 20, 20),
    "pink": (240, 140, 180),
}
FIRST_ID = 100


def colour_and_shape(product: int) -> tuple[str, str]:
    """Facts of the product at a position; the first 24 products are 24 different pairs."""
    return COLOURS[product % 8], SHAPES[(product + product // 8) % 6]


def title_of(product: int) -> str:
    colour, shape = colour_and_shape(product)
    series = f" Series {product // 24}" if product >= 24 else ""
    return f"{BRANDS[product % 5]} {colour.title()} {shape.title()}{series}"


def write_small_catalog(
    folder: Path,
    *,
    products: int = 24,
    side: int = 32,
    seed: int = 0,
    without_title: Collection[int] = (),
    without_image: Collection[int] = (),
) -> Path:
    """Write products.parquet, images/*.png and relevance.parquet; return `folder`.

    Product i has the id 100 + i, a title such as "Acme Red Circle", and a noisy picture of that shape in that
    colour, `side` pixels square. Queries are "red circle": grade 2 if both match, 1 if only the shape does,
    else 0, for every query of a product and every product.
    """
    generator = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    facts = [colour_and_shape(product) for product in range(products)]
    images: list[str | None] = []
    for product, (colour, shape) in enumerate(facts):
        name = None if product in without_image else f"images/{FIRST_ID + product}.png"
        if name is not None:
            draw_shape(colour, shape, side=side, generator=generator).save(folder / name, compress_level=1)
        images.append(name)
    table = {
        "product_id": pa.array(range(FIRST_ID, FIRST_ID + products), pa.int64()),
        "title": pa.array(
            [None if product in without_title else title_of(product) for product in range(products)],
            pa.string(),
        ),
        "aisle": [AISLES[SHAPES.index(shape)] for _, shape in facts],
        "image": pa.array(images, pa.string()),
    }
    pq.write_table(pa.table(table), folder / "products.parquet")
    graded = [
        (f"{colour} {shape}", FIRST_ID + product, 0 if shape != found[1] else 1 + (colour == found[0]))
        for colour, shape in sorted(set(facts))
        for product, found in enumerate(facts)
    ]
    relevance = {
        "query": [query for query, _, _ in graded],
        "product_id": pa.array([product for _, product, _ in graded], pa.int64()),
        "grade": pa.array([grade for _, _, grade in graded], pa.int8()),
        "source": ["human"] * len(graded),
    }
    pq.write_table(pa.table(relevance), folder / "relevance.parquet")
    return folder


def small_tokenizer(*, products: int = 48, vocab_size: int = 200) -> TextTokenizer:
    """A tokenizer that knows all words of the titles and queries."""
    return TextTokenizer.train(
        [title_of(product) for product in range(products)], vocab_size=vocab_size, min_frequency=1
    )


def draw_shape(colour: str, shape: str, *, side: int, generator: np.random.Generator) -> Image.Image:
    """A noisy picture; each call differs, so no two files are equal."""
    canvas = Image.new("RGB", (side, side), (255, 255, 255))
    pen, fill = ImageDraw.Draw(canvas), RGB[colour]
    low, high = side * 0.2, side * 0.8
    third, middle = side / 8, side / 2
    if shape == "circle":
        pen.ellipse((low, low, high, high), fill=fill)
    elif shape == "square":
        pen.rectangle((low, low, high, high), fill=fill)
    elif shape == "triangle":
        pen.polygon([(middle, low), (high, high), (low, high)], fill=fill)
    elif shape == "cross":
        pen.rectangle((low, middle - third, high, middle + third), fill=fill)
        pen.rectangle((middle - third, low, middle + third, high), fill=fill)
    elif shape == "ring":
        pen.ellipse((low, low, high, high), outline=fill, width=max(2, side // 10))
    else:
        pen.rectangle((low, middle - third, high, middle + third), fill=fill)
    noise = generator.integers(-12, 13, (side, side, 3))
    return Image.fromarray(np.clip(np.asarray(canvas) + noise, 0, 255).astype(np.uint8))
