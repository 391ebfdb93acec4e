"""Shopify's product export (CSV): a product is the rows of one handle, a row a variant or one more image.

Collapsed, a product's id is its handle. Kept apart, a variant's id is its SKU where every variant of the
export has one of its own, else the handle and the options (`mug/Blue/L`); its title carries the options. The
export names no currency. The aisle is the first level of the product category (else the type) at which
products differ.
"""

import csv
import gzip
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from experiments.datasets.feeds.catalogue import FeedProduct, FeedSummary, Variants, write_catalogue
from experiments.datasets.feeds.feed_texts import category_path, text_of_html
from features.inputs.tables import InputError

#: The columns that are read, under their names in older and newer exports, in lower case.
COLUMNS: dict[str, tuple[str, ...]] = {
    "handle": ("handle", "url handle"),
    "title": ("title",),
    "body": ("body (html)", "description"),
    "vendor": ("vendor",),
    "category": ("product category",),
    "type": ("type",),
    "tags": ("tags",),
    "status": ("status",),
    "sku": ("variant sku", "sku"),
    "price": ("variant price", "price"),
    "option1": ("option1 value",),
    "option2": ("option2 value",),
    "option3": ("option3 value",),
    "image": ("image src", "product image url"),
    "variant_image": ("variant image", "variant image url"),
}
_NEEDED = ("handle", "title", "price")
#: What Shopify writes as the option of a product without options.
_NO_OPTION = "Default Title"


def import_shopify(source: Path, out: Path, *, variants: Variants = "collapse") -> FeedSummary:
    """Write the products of a Shopify export to the folder `out`; see `write_catalogue`.

    Raises:
        InputError: the file is none, breaks off, or a row belongs to no product; names file and line.
    """
    entries = list(_variants(source))
    skus = [entry.further.get("sku") for entry in entries]
    if variants == "keep":
        by_sku = None not in skus and len(set(skus)) == len(skus)
        entries = [_apart(entry, by_sku=by_sku) for entry in entries]
    entries = [replace(entry, further=_without_options(entry)) for entry in entries]
    return write_catalogue(source, out, entries, feed="Shopify", variants=variants)


def _apart(entry: FeedProduct, *, by_sku: bool) -> FeedProduct:
    options = [
        value for name in ("option1", "option2", "option3") if (value := entry.further.get(name)) is not None
    ]
    sku = entry.further.get("sku")
    return replace(
        entry,
        product_id=sku if by_sku and sku is not None else "/".join([entry.product_id, *options]),
        title=" ".join([entry.title or "", *options]).strip() or None,
    )


def _without_options(entry: FeedProduct) -> dict[str, str | None]:
    return {name: value for name, value in entry.further.items() if not name.startswith("option")}


def _variants(path: Path) -> Iterator[FeedProduct]:
    """Every variant, with what only the first row of its product says."""
    products: dict[str, dict[str, str]] = {}
    with_variant: set[str] = set()
    for place, fields in _rows(path):
        handle = fields.get("handle")
        if handle is None:
            raise InputError(f"{place} has no handle, so it belongs to no product; export the file again")
        if handle not in products:
            if "title" not in fields:
                raise InputError(
                    f"{place}: the first row of {handle!r} has no title; the rows of a product must stay in "
                    "order"
                )
            products[handle] = fields
        is_variant = any(name in fields for name in ("price", "sku", "option1"))
        if not is_variant and (handle in with_variant or fields is not products[handle]):
            continue  # one more image
        with_variant.add(handle)
        first = products[handle]
        options = {
            name: fields[name]
            for name in ("option1", "option2", "option3")
            if fields.get(name, _NO_OPTION) != _NO_OPTION
        }
        further: dict[str, str | None] = {name: first[name] for name in ("tags", "status") if name in first}
        if "sku" in fields:
            further["sku"] = fields["sku"]
        yield FeedProduct(
            place=place,
            product_id=handle,
            title=text_of_html(first["title"]) or None,
            description=text_of_html(first.get("body", "")) or None,
            price=fields.get("price"),
            brand=first.get("vendor"),
            category=category_path(first.get("category", "") or first.get("type", "")),
            image_url=fields.get("variant_image") or first.get("image"),
            group=handle,
            further={**further, **options},
        )


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row's place and its fields under the names of `COLUMNS`; blank ones are left out."""
    if not path.is_file():
        raise InputError(f"{path} is not a file; give the CSV of Shopify's product export (also as .gz)")
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as text:
            rows = csv.reader(text, strict=True)
            header = [name.strip().lower() for name in next(rows, [])]
            places = {
                name: next(header.index(known) for known in names if known in header)
                for name, names in COLUMNS.items()
                if set(names) & set(header)
            }
            missing = [" or ".join(COLUMNS[name]) for name in _NEEDED if name not in places]
            if missing:
                raise InputError(
                    f"{path} line 1: the header must name {', '.join(missing)}; is it Shopify's export?"
                )
            for fields in rows:
                place = f"{path} line {rows.line_num}"
                if fields and len(fields) != len(header):
                    raise InputError(f"{place} has {len(fields)} fields, but the header names {len(header)}")
                found = {
                    name: fields[at].strip() for name, at in places.items() if fields and fields[at].strip()
                }
                if found:
                    yield place, found
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read to its end ({error}); export it again") from error
