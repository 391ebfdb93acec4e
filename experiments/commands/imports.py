"""`dashclip import`: published data sets to the four input tables."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    imports = typer.Typer(no_args_is_help=True, help="Turn a published data set into input tables.")
    imports.callback()(_imports)
    imports.command("movielens")(import_movielens_command)
    app.add_typer(imports, name="import")


def _imports() -> None:
    """Turn a published data set into input tables."""


def import_movielens_command(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder of the unpacked MovieLens-100K, either layout.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; an older import is replaced.")],
) -> None:
    """Import **MovieLens-100K**: a rating is an impression, 4 or 5 stars its click and a purchase.

    PATH holds `u.data`, `u.item`, `u.user` (the original) or `ml-100k.inter`, `.item`, `.user`, plain or
    .gz (RecBole). OUT gets products (title with genres), impressions (without queries) and purchases (the
    liked films). Then: `dashclip features build OUT FEATURES --config
    experiments/configs/movielens_features_global.toml`

    Example: `dashclip import movielens ml-100k runs/movielens/tables`
    """
    from rich.console import Console
    from rich.table import Table

    from experiments.datasets.movielens import import_movielens

    summary = import_movielens(path, out)
    table = Table(title="MovieLens-100K", show_header=False)
    for name, value in (
        ("layout", summary.layout),
        ("users", f"{summary.users:,}"),
        ("films", f"{summary.films:,}"),
        ("ratings (impressions)", f"{summary.ratings:,}"),
        ("of these 4 or 5 (clicks, purchases)", f"{summary.liked:,} ({summary.liked / summary.ratings:.1%})"),
    ):
        table.add_row(name, value)
    console = Console()
    console.print(table)
    console.print(
        "no queries and no images in this data set; features and variants that need them do not apply"
    )
    console.print(f"written to {out}")
