"""Which products look alike: the same picture, or the same title but for its size.

Contrastive training takes other products as negatives. A size variant or a duplicate is none, and calling it
one keeps image-text matching from converging (seen with duplicate captions in ALBEF and BLIP).

Shapes: P products.
"""

import re
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embeddings.catalog.images import OutsideImage
from embeddings.catalog.titles import normalise_text
from features.artifacts import sha256_of

_NUMBER = r"\d+(?:\.\d+)?"
_UNIT = (
    r"(?:fl(?:uid)? )?(?:oz|ounces?)|lbs?|pounds?|m?g|gr|grams?|kgs?|kilos?|kilograms?|[mcd]?l|"
    r"lit(?:er|re)s?|millilit(?:er|re)s?|gals?|gallons?|qts?|quarts?|pts?|pints?|ct|counts?|pks?|packs?|pcs?|pieces?|"
    r"bottles?|cans?|rolls?|sheets?|bags?|box(?:es)?|pairs?|mm|cm|m|in|inch(?:es)?|ft|feet|foot|yds?|yards?"
)
#: On text of `normalise_text`: "12 x 330 ml", "8 oz", "pack of 6", "6 pack", "2 x 4 in", "family size".
_SIZE = re.compile(
    rf"\b(?:(?:packs?|case|box|set|bag|bundle) of {_NUMBER}|"
    rf"(?:{_NUMBER} (?:(?:{_UNIT}) )?(?:x|by) )*{_NUMBER} (?:{_UNIT})|"
    rf"(?:family|party|value|travel|king|jumbo) (?:size|pack))\b"
)


def groups_of_lookalikes(
    titles: Sequence[str], image_paths: Sequence[Path | OutsideImage | None]
) -> npt.NDArray[np.int64]:
    """The group of each product [P]: the position of the first product that it looks like, through any chain.

    Two products look alike when their picture files hold the same bytes, when their normalised titles are
    equal, or when those are equal once sizes and pack counts are taken out ("Cola 330 ml", "Cola, 6 x 1 l").
    Products without a title and a picture look like no other. Only pictures of equal file size are read.
    """
    parent = list(range(len(titles)))

    def root(product: int) -> int:
        while parent[product] != product:
            parent[product] = parent[parent[product]]
            product = parent[product]
        return product

    first_with: dict[Hashable, int] = {}
    for product, key in _keys(titles, image_paths):
        first, second = root(first_with.setdefault(key, product)), root(product)
        parent[max(first, second)] = min(first, second)
    return np.fromiter(map(root, range(len(parent))), np.int64, len(parent))


def without_size(title: str) -> str:
    """A title in normal form without sizes and pack counts: "Cola Zero, 6 x 330ml" is "cola zero"."""
    return " ".join(_SIZE.sub(" ", normalise_text(title)).split())


def _keys(
    titles: Sequence[str], image_paths: Sequence[Path | OutsideImage | None]
) -> Iterable[tuple[int, tuple[str, str]]]:
    for product, title in enumerate(titles):
        plain = normalise_text(title)
        if plain:
            # A title that is all size ("500 g") keeps it; else it would equal every other such title.
            yield product, ("title", without_size(title) or plain)
    yield from ((product, ("picture", digest)) for product, digest in _picture_digests(image_paths))


def _picture_digests(image_paths: Sequence[Path | OutsideImage | None]) -> Iterable[tuple[int, str]]:
    """SHA-256 of pictures that may have a twin; a missing file has none."""
    by_length: dict[int, dict[Path, list[int]]] = {}
    lengths: dict[Path, int | None] = {}
    for product, path in enumerate(image_paths):
        if not isinstance(path, Path):
            continue
        if path not in lengths:
            lengths[path] = path.stat().st_size if path.is_file() else None
        length = lengths[path]
        if length is not None:
            by_length.setdefault(length, {}).setdefault(path, []).append(product)
    for products_of in by_length.values():
        for path, products in products_of.items():
            alone = len(products_of) == 1
            digest = str(path) if alone else sha256_of(path)
            yield from ((product, digest) for product in products)
