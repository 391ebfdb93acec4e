"""`dashclip import`: one's own tables, and catalogue feeds that shops export."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.commands.inputs.imports import OUT, imports, print_summary

if TYPE_CHECKING:
    from experiments.datasets.feeds.catalogue import FeedSummary, Variants

_VARIANTS = Annotated[
    str,
    typer.Option(
        help="`keep`: each variant is a product; `collapse`: a group is one, with its first variant's "
        "texts and its lowest price."
    ),
]


@imports.command("tables")
def import_tables_command(
    source: Annotated[
        Path | None,
        typer.Argument(metavar="SOURCE", help="Folder with your tables, in the formats you have."),
    ] = None,
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="Folder to write; an older import is replaced.")
    ] = None,
    mapping: Annotated[
        Path | None, typer.Option(help="TOML file that says which column is which; see --example.")
    ] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Print a commented mapping to start from, and do nothing else.")
    ] = False,
    memory_limit: Annotated[
        str, typer.Option(help="What DuckDB may use; larger state goes to temporary files.")
    ] = "4GB",
    threads: Annotated[int, typer.Option(min=1, help="Threads for reading.")] = 2,
) -> None:
    """Import **your own tables**: CSV, TSV, JSON lines (each also .gz), Parquet, folders of them.

    Tables under the names of the four tables with the columns they should have need no mapping. Else a
    mapping renames columns, says in which zone local times were written, makes clicks of ratings and
    purchases of clicks, and constructs negatives for a log of purchases alone. Values that cannot be read are
    refused with table, column and key. Then: `dashclip validate OUT`

    Example: `dashclip import tables exports runs/tables --mapping mapping.toml`
    """
    from experiments.config import SHIPPED, load_config
    from experiments.datasets.own_tables.import_tables import import_tables
    from experiments.datasets.own_tables.mapping import ImportMapping
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console

    if example:
        typer.echo((SHIPPED / "import_tables.toml").read_text(encoding="utf-8"), nl=False)
        return
    if source is None or out is None:
        raise typer.BadParameter(
            "give the folder with your tables and the folder to write", param_hint="SOURCE OUT"
        )
    settings = load_config(mapping, ImportMapping) if mapping is not None else ImportMapping()
    with progress_bars(Console()) as bars:
        summary = import_tables(
            source,
            out,
            settings,
            memory_limit=memory_limit,
            threads=threads,
            progress=bars.under("importing"),
        )
        bars("importing", 1, 1, "")
    rows = [(name, f"{count:,} rows") for name, count in summary.rows.items()]
    print_summary("Your tables", rows, "\n".join(f"- {note}" for note in summary.notes), out)


@imports.command("merchant-feed")
def import_merchant_feed_command(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="Feed as TSV or XML (RSS or Atom), plain or .gz.")
    ],
    out: OUT,
    variants: _VARIANTS = "keep",
    currency: Annotated[
        str | None, typer.Option(help="Currency of the prices to keep, if the feed has several: `USD`.")
    ] = None,
) -> None:
    """Import a **Google Merchant Center** feed: the table of products, nothing else.

    The aisle is the first level of `product_type` (else `google_product_category`) at which products differ.
    HTML is taken out of texts. Images are addresses in the column `image_url`, not files.

    Example: `dashclip import merchant-feed feed.xml runs/shop/tables`
    """
    from experiments.datasets.feeds.merchant_feed import import_merchant_feed

    _print_feed(import_merchant_feed(path, out, variants=_checked(variants), currency=currency), out)


@imports.command("shopify")
def import_shopify_command(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="CSV of Shopify's product export, plain or .gz.")
    ],
    out: OUT,
    variants: _VARIANTS = "collapse",
) -> None:
    """Import a **Shopify** product export: the table of products, nothing else.

    A product is a handle. Variants kept apart are named by their SKU where each has its own, else by handle
    and options. The export names no currency. Images are addresses in the column `image_url`, not files.

    Example: `dashclip import shopify products_export.csv runs/shop/tables`
    """
    from experiments.datasets.feeds.shopify import import_shopify

    _print_feed(import_shopify(path, out, variants=_checked(variants)), out)


def _checked(variants: str) -> "Variants":
    if variants == "keep":
        return "keep"
    if variants == "collapse":
        return "collapse"
    raise typer.BadParameter(f"must be keep or collapse, not {variants!r}", param_hint="--variants")


def _print_feed(summary: "FeedSummary", out: Path) -> None:
    rows = [
        ("products", f"{summary.products:,}"),
        ("entries of the feed", f"{summary.entries:,}"),
        ("aisles", f"{summary.aisles:,}"),
        ("currency of prices", summary.currency or "not named"),
        ("products without price", f"{summary.without_price:,}"),
    ]
    absent = "no impressions, purchases or grades in a feed: encoders can be trained on it, rankers cannot"
    print_summary(summary.feed, rows, "\n".join([*summary.notes, absent]), out)
