"""A generated data folder for measuring encoders: texts and pictures of realistic sizes, without meaning.

Names of consumer goods have about 9 words, searches about 3; each product is graded for a few dozen queries.
Words follow Zipf's law and are made of syllables, so that WordPiece splits rare ones. Pictures are JPEG files
larger than the encoder's image, as a shop's are, so that reading one costs what it costs there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from embeddings.catalog.tokenizer import TextTokenizer
from embeddings.encoders.config import Size
from embeddings.stages.runs import VOCABULARY
from features.artifacts import atomic_folder
from features.progress import Progress, silent

_SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnprstvwz" for vowel in "aeiou"]
_WORDS = 4_000
#: Words of a title: log-normal with this median and spread, between the bounds.
_TITLE_MEDIAN, _TITLE_SPREAD, _TITLE_BOUNDS = 9.0, 0.4, (2, 30)
_QUERY_BOUNDS = (1, 6)
_AISLES = 20
#: Queries graded for a product: highly relevant, moderately relevant, irrelevant.
_GRADED = (6, 3, 12)
_PICTURE_SIDE = 480
_SHAPES = 12


@dataclass(frozen=True)
class CatalogSize:
    """How much is generated."""

    products: int
    queries: int


def write_products(folder: Path, size: CatalogSize, *, seed: int, progress: Progress = silent) -> Path:
    """Write products.parquet, relevance.parquet and images/ to `folder`, whole or not at all; return it."""
    generator = np.random.default_rng(seed)
    words = _words(generator)
    titles = list(_texts(generator, words, _title_lengths(generator, size.products)))
    query_lengths = np.clip(1 + generator.poisson(1.8, size.queries), *_QUERY_BOUNDS)
    # A number makes each text its own: equal ones would be one query, and lookalike products one group.
    queries = [f"{text} {number}" for number, text in enumerate(_texts(generator, words, query_lengths))]
    with atomic_folder(folder) as target:
        (target / "images").mkdir()
        names = [f"images/{product}.jpg" for product in range(size.products)]
        for product, name in enumerate(names):
            _picture(generator).save(target / name, quality=85)
            progress("encoders: pictures", product + 1, size.products)
        products = {
            "product_id": pa.array(range(size.products), pa.int64()),
            "title": [f"{title} {product}" for product, title in enumerate(titles)],
            "aisle": [f"aisle {product % _AISLES}" for product in range(size.products)],
            "image": names,
        }
        pq.write_table(pa.table(products), target / "products.parquet")
        pq.write_table(_relevance(generator, queries, size.products), target / "relevance.parquet")
    return folder


def full_size_tokenizer(texts: list[str], size: Size) -> TextTokenizer:
    """A tokenizer of these texts with as many ids as the size has with real ones.

    Ids beyond the learned pieces are never used, but their embeddings cost memory and optimizer time.
    """
    tokens = TextTokenizer.train(texts, vocab_size=VOCABULARY[size]).tokens
    unused = [f"[unused{number}]" for number in range(VOCABULARY[size] - len(tokens))]
    return TextTokenizer.from_vocabulary([*tokens, *unused])


def _words(generator: np.random.Generator) -> list[str]:
    """Distinct words of one to four syllables."""
    found: dict[str, None] = {}
    while len(found) < _WORDS:
        found["".join(generator.choice(_SYLLABLES, int(generator.integers(1, 5))))] = None
    return list(found)


def _title_lengths(generator: np.random.Generator, count: int) -> np.ndarray:
    drawn = generator.lognormal(np.log(_TITLE_MEDIAN), _TITLE_SPREAD, count)
    return np.clip(drawn.round().astype(int), *_TITLE_BOUNDS)


def _texts(generator: np.random.Generator, words: list[str], lengths: np.ndarray) -> Iterator[str]:
    share = 1 / np.arange(1, len(words) + 1)
    share /= share.sum()
    for length in lengths:
        yield " ".join(generator.choice(words, int(length), p=share))


def _picture(generator: np.random.Generator) -> Image.Image:
    canvas = Image.new("RGB", (_PICTURE_SIDE, _PICTURE_SIDE), (255, 255, 255))
    pen = ImageDraw.Draw(canvas)
    corners = np.sort(generator.integers(0, _PICTURE_SIDE, (_SHAPES, 2, 2)), axis=1)
    colours = generator.integers(0, 256, (_SHAPES, 3))
    for number, (corner, colour) in enumerate(zip(corners.reshape(-1, 4).tolist(), colours, strict=True)):
        draw = pen.ellipse if number % 2 else pen.rectangle
        draw(tuple(corner), fill=tuple(colour.tolist()))
    return canvas


def _relevance(generator: np.random.Generator, queries: list[str], products: int) -> pa.Table:
    per_product = min(sum(_GRADED), len(queries))
    grades = np.repeat([2, 1, 0], _GRADED)[:per_product]
    chosen = np.concatenate(
        [generator.choice(len(queries), per_product, replace=False) for _ in range(products)]
    )
    rows = products * per_product
    return pa.table(
        {
            "query": pa.array(queries).take(pa.array(chosen)),
            "product_id": np.repeat(np.arange(products), per_product),
            "grade": pa.array(np.tile(grades, products), pa.int8()),
            "source": ["llm"] * rows,
        }
    )
