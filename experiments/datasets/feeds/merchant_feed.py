"""Google Merchant Center feeds: tab-separated text, or XML (RSS 2.0 and Atom), plain or .gz.

Attributes are those of Google's product data specification. The aisle is the first level of `product_type`
(else of `google_product_category`) at which products differ. `price` is the regular price; `sale_price` stays
a further column. HTML is taken out of titles and descriptions.
"""

import csv
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast
from xml.etree import ElementTree

from experiments.datasets.feeds.catalogue import FeedProduct, FeedSummary, Variants, write_catalogue
from experiments.datasets.feeds.feed_texts import category_path, text_of_html
from features.inputs.tables import InputError

_NEEDED = ("id", "title")
_FURTHER = (
    "sale_price",
    "availability",
    "condition",
    "color",
    "size",
    "gender",
    "age_group",
    "material",
    "gtin",
)


def import_merchant_feed(
    source: Path, out: Path, *, variants: Variants = "keep", currency: str | None = None
) -> FeedSummary:
    """Write the products of a Merchant Center feed to the folder `out`; see `write_catalogue`.

    Raises:
        InputError: the file is none, breaks off, or an entry has no id; names file and line or entry.
    """
    entries = (_product(attributes, place) for place, attributes in _entries(source))
    return write_catalogue(
        source, out, entries, feed="Google Merchant Center", variants=variants, currency=currency
    )


def _entries(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Each entry's place and attributes, under their names without `g:`; blank ones are left out."""
    if not path.is_file():
        raise InputError(
            f"{path} is not a file; give a Merchant Center feed (.tsv, .txt or .xml, also as .gz)"
        )
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            start = stream.read(512).lstrip(b"\xef\xbb\xbf \t\r\n")
            stream.seek(0)
            yield from _xml(path, cast(BinaryIO, stream)) if start.startswith(b"<") else _lines(path)
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError, csv.Error, ElementTree.ParseError) as error:
        raise InputError(f"{path} cannot be read to its end ({error}); export it again") from error


def _lines(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, delimiter="\t")
        names = [_name(field) for field in next(rows, [])]
        missing = [name for name in _NEEDED if name not in names]
        if missing:
            raise InputError(
                f"{path} line 1: the header must name {' and '.join(_NEEDED)}, parted by tabs, but "
                f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not in it"
            )
        for fields in rows:
            if not any(fields):
                continue
            place = f"{path} line {rows.line_num}"
            if len(fields) > len(names):
                raise InputError(f"{place} has {len(fields)} fields, but the header names {len(names)}")
            yield place, _filled(zip(names, fields, strict=False))


def _xml(path: Path, stream: BinaryIO) -> Iterator[tuple[str, dict[str, str]]]:
    count = 0
    for _, element in ElementTree.iterparse(stream, events=("end",)):
        if _name(_local(element.tag)) not in ("item", "entry"):
            continue
        count += 1
        pairs = [(_name(_local(child.tag)), "".join(child.itertext())) for child in element]
        # of attributes that come several times, as additional images do, the first counts
        yield f"{path} entry {count}", _filled(reversed(pairs))
        element.clear()


def _filled(pairs: "Iterator[tuple[str, str]] | zip[tuple[str, str]]") -> dict[str, str]:
    return {name: value.strip() for name, value in pairs if value.strip()}


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _name(field: str) -> str:
    """`g:Image Link` is `image_link`."""
    return field.strip().lower().removeprefix("g:").replace(" ", "_")


def _product(attributes: dict[str, str], place: str) -> FeedProduct:
    if "id" not in attributes:
        raise InputError(f"{place} has no id; every product of the feed needs one")
    category = category_path(
        attributes.get("product_type", "") or attributes.get("google_product_category", "")
    )
    return FeedProduct(
        place=place,
        product_id=attributes["id"],
        title=text_of_html(attributes.get("title", "")) or None,
        description=text_of_html(attributes.get("description", "")) or None,
        price=attributes.get("price"),
        brand=attributes.get("brand"),
        category=category,
        image_url=attributes.get("image_link"),
        group=attributes.get("item_group_id"),
        further={name: attributes[name] for name in _FURTHER if name in attributes},
    )
