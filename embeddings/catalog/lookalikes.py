"""Which products look alike: the same picture, or the same title but for its size.

Contrastive training takes other products as negatives. A size variant or a duplicate is none, and calling it
one keeps image-text matching from converging (seen with duplicate captions in ALBEF and BLIP).

Shapes: P products.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embeddings.catalog.groups import connected_groups
from embeddings.catalog.images import OutsideImage
from embeddings.catalog.titles import normalise_text
from features.artifacts import sha256_of

_NUMBER = r"\d+(?:\.\d+)?"
#: "1/2" and "1 1/2", as `_readable` writes them.
_FRACTION = r"(?:\d+ )?\d+ over \d+"
_QUANTITY = rf"(?:{_FRACTION}|{_NUMBER})"
#: Lengths in which a thing itself is measured; those below say how much of it there is.
_MEASURE = r"mm|cm|in|inch(?:es)?"
_UNIT = (
    r"(?:fl(?:uid)? )?(?:oz|ounces?)|lbs?|pounds?|m?g|gr|grams?|kgs?|kilos?|kilograms?|[mcd]?l|"
    r"lit(?:er|re)s?|millilit(?:er|re)s?|gals?|gallons?|qts?|quarts?|pts?|pints?|ct|counts?|pks?|packs?|pcs?|pieces?|"
    rf"bottles?|cans?|rolls?|sheets?|bags?|box(?:es)?|pairs?|{_MEASURE}|m|ft|feet|foot|yds?|yards?"
)
#: On text of `_readable`: "12 x 330 ml", "8 oz", "pack of 6", "6 pack", "2 x 4 in", "family size". A number
#: after "no" is a name ("No 5 pack of 2"), and "2 in" before a number no inches ("2 in 1").
_SIZE = re.compile(
    rf"\b(?<!\bno )(?<!\bnr )(?<!\bnumber )(?<!\d\.)(?<!over )(?:"
    rf"(?:packs?|case|box|set|bag|bundle) of {_NUMBER}|"
    rf"(?:{_QUANTITY} (?:(?:{_UNIT}) )?(?:x|by) )*{_QUANTITY} (?!in \d)(?:{_UNIT})|"
    rf"(?:family|party|value|travel|king|jumbo) (?:size|pack))\b"
)
#: What stays of such a size: a lone measure, or fractions in one, name the product ("drill bit 1/2 in").
_LONE_MEASURE = re.compile(rf"{_QUANTITY} (?:{_MEASURE})")
_FRACTION_OF_LENGTH = re.compile(rf"{_FRACTION} (?:{_MEASURE}|m|ft|feet|foot|yds?|yards?)\b")

_FRACTION_SIGN = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞])")
_APOSTROPHE = re.compile(r"(?<=[^\W\d_])['’](?=[^\W\d_])")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DECIMAL_COMMA = re.compile(r"(?<=\d),(?=\d)")
_SLASH = re.compile(r"(?<=\d)\s*[/⁄]\s*(?=\d)")
_NUMBER_SIGN = re.compile(r"(?:#|\bn\s*°)\s*(?=\d)", re.IGNORECASE)


def groups_of_lookalikes(
    titles: Sequence[str], image_paths: Sequence[Path | OutsideImage | None]
) -> npt.NDArray[np.int64]:
    """The group of each product [P]: the position of the first product that it looks like, through any chain.

    Two products look alike when their picture files hold the same bytes, when their normalised titles are
    equal, or when those are equal once sizes and pack counts are taken out ("Cola 330 ml", "Cola, 6 x 1 l").
    Products without a title and a picture look like no other. Only pictures of equal file size are read.
    """
    return connected_groups(len(titles), _keys(titles, image_paths))


def without_size(title: str) -> str:
    """A title in normal form without sizes and pack counts: "Cola Zero, 6 x 330ml" is "cola zero".

    Numbers that name the product stay: "2 in 1", "No 5", and a measure of the thing itself, as of a drill bit
    ("10 mm", "1/2 in"). Measures of several sides are a size ("30 x 40 cm"), but for fractions.
    """
    return " ".join(_SIZE.sub(_naming_part, _readable(title)).split())


def _naming_part(size: re.Match[str]) -> str:
    if _LONE_MEASURE.fullmatch(size[0]):
        return size[0]
    return f" {' '.join(_FRACTION_OF_LENGTH.findall(size[0]))} "


def _readable(title: str) -> str:
    """`normalise_text` that keeps what signs say about numbers: "0,33 l", "1,000", "1/2", "#5", "5 L'Eau"."""
    text = unicodedata.normalize("NFKC", _FRACTION_SIGN.sub(" ", title))
    text = _APOSTROPHE.sub("", text)
    text = _DECIMAL_COMMA.sub(".", _THOUSANDS.sub("", text))
    return normalise_text(_NUMBER_SIGN.sub(" no ", _SLASH.sub(" over ", text)))


def _keys(
    titles: Sequence[str], image_paths: Sequence[Path | OutsideImage | None]
) -> Iterable[tuple[int, tuple[str, str]]]:
    for product, title in enumerate(titles):
        plain = _readable(title)
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
