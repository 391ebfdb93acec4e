"""Products of a feed as the table of products: one price currency, each id once, variants by a stated rule.

- `keep`: every variant is a product under its own id; a further column names its group.
- `collapse`: a group is one product under the group's id, with the texts of its first variant in the feed and
  its lowest price; a further column counts the variants.

Images of feeds are addresses of web pages; they stay in a further column `image_url`, and the table has no
images until somebody downloads them.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from experiments.datasets.feeds.feed_texts import coarse_categories, parse_price
from features.artifacts import atomic_folder, atomic_write_json, json_file_has, refuse_to_replace_input
from features.inputs.tables import InputError

Variants = Literal["keep", "collapse"]


@dataclass(frozen=True)
class FeedProduct:
    """One entry of a feed; `place` names it in errors, `price` is as written, `group` is what it varies."""

    place: str
    product_id: str
    title: str | None
    description: str | None
    price: str | None
    brand: str | None
    category: tuple[str, ...]
    image_url: str | None
    group: str | None
    further: dict[str, str | None] = field(default_factory=dict)


@dataclass
class FeedSummary:
    """What was written and what was left out."""

    feed: str
    products: int
    variants: Variants
    entries: int
    aisles: int
    without_price: int
    currency: str | None
    repeated_ids: int
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Priced:
    product: FeedProduct
    price: float | None
    count: int = 1


def write_catalogue(
    source: Path,
    out: Path,
    entries: Iterable[FeedProduct],
    *,
    feed: str,
    variants: Variants,
    currency: str | None = None,
) -> FeedSummary:
    """Write the products of a feed to the folder `out`.

    Args:
        currency: prices in another one become null; without it, prices of several are refused.

    Raises:
        InputError: no entries, a price that is none, or prices of several currencies.
        FileExistsError: `out` holds something that is not an import; an older import is replaced.
        ValueError: `out` would replace `source`.
    """
    refuse_to_replace_input(out, source)
    found = list(entries)
    if not found:
        raise InputError(f"{source} holds no products")
    notes: list[str] = []
    priced, used = _in_one_currency(source, found, currency, notes)
    rows = _collapsed(priced) if variants == "collapse" else priced
    seen: dict[str, _Priced] = {}
    for row in rows:
        seen.setdefault(row.product.product_id, row)
    repeated, rows = len(rows) - len(seen), list(seen.values())
    aisles = coarse_categories([row.product.category for row in rows])
    if repeated:
        notes.append(f"{repeated:,} entries repeat an id; the first of each is kept")
    if any(row.product.image_url for row in rows):
        notes.append("images are addresses of web pages (image_url): download them to use image encoders")
    summary = FeedSummary(
        feed=feed,
        products=len(rows),
        variants=variants,
        entries=len(found),
        aisles=len({aisle for aisle in aisles if aisle is not None}),
        without_price=sum(row.price is None for row in rows),
        currency=used,
        repeated_ids=repeated,
        notes=notes,
    )
    with atomic_folder(out, ours=lambda path: json_file_has(path / "source.json", "feed")) as folder:
        pq.write_table(_table(rows, aisles, variants), folder / "products.parquet")
        atomic_write_json(folder / "source.json", {"source": feed, "simulated": False, **asdict(summary)})
    return summary


def _in_one_currency(
    source: Path, entries: list[FeedProduct], wanted: str | None, notes: list[str]
) -> tuple[list[_Priced], str | None]:
    amounts: list[tuple[float, str | None] | None] = []
    for entry in entries:
        try:
            amounts.append(parse_price(entry.price) if entry.price else None)
        except ValueError as error:
            raise InputError(
                f"{entry.place}: price {error}; correct it in the feed, or leave it empty"
            ) from None
    counts = Counter(amount[1] for amount in amounts if amount is not None)
    if wanted is None and len(counts) > 1:
        listed = ", ".join(f"{name or 'none named'} ({count:,})" for name, count in counts.most_common())
        raise InputError(
            f"{source} has prices of several currencies: {listed}; amounts of several cannot be compared, so "
            "choose one (--currency), and products with prices of another get none"
        )
    used = wanted if wanted is not None else next(iter(counts), None)
    if wanted is not None and wanted not in counts:
        listed = ", ".join(str(name) for name in counts) or "no currency"
        raise InputError(f"{source} has no price in {wanted}; it has {listed}")
    others = sum(count for name, count in counts.items() if name != used)
    if others:
        notes.append(f"{others:,} prices are not in {used} and became null")
    rows = [
        _Priced(entry, amount[0] if amount is not None and amount[1] == used else None)
        for entry, amount in zip(entries, amounts, strict=True)
    ]
    return rows, used


def _collapsed(rows: list[_Priced]) -> list[_Priced]:
    """One row for each group, at the place of its first variant."""
    groups: dict[tuple[bool, str], list[_Priced]] = {}
    for row in rows:
        group = row.product.group
        groups.setdefault((group is not None, group or row.product.product_id), []).append(row)
    return [
        _Priced(
            replace(members[0].product, product_id=name),
            min((member.price for member in members if member.price is not None), default=None),
            len(members),
        )
        for (_, name), members in groups.items()
    ]


def _table(rows: list[_Priced], aisles: list[str | None], variants: Variants) -> pa.Table:
    products = [row.product for row in rows]
    columns: dict[str, Any] = {
        "product_id": pa.array([product.product_id for product in products], pa.string()),
        "title": pa.array([product.title for product in products], pa.string()),
        "aisle": pa.array(aisles, pa.string()),
        "price": pa.array([row.price for row in rows], pa.float64()),
        "brand": pa.array([product.brand for product in products], pa.string()),
        "description": pa.array([product.description for product in products], pa.string()),
        "category": pa.array([" > ".join(product.category) or None for product in products], pa.string()),
        "image_url": pa.array([product.image_url for product in products], pa.string()),
    }
    if variants == "collapse":
        columns["variants"] = pa.array([row.count for row in rows], pa.int64())
    else:
        columns["group_id"] = pa.array([product.group for product in products], pa.string())
    names = list(dict.fromkeys(name for product in products for name in product.further))
    for name in names:
        columns[name] = pa.array([product.further.get(name) for product in products], pa.string())
    return pa.table(columns)
