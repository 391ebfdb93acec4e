"""`dashclip import`: one's own tables and published data sets to the four input tables."""

from pathlib import Path
from typing import Annotated

import typer

OUT = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; an older import is replaced.")]
imports = typer.Typer(
    no_args_is_help=True,
    help="Turn your own tables, a catalogue feed or a published data set into input tables.",
)


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
    from rich.console import Console

    from experiments.config import SHIPPED, load_config
    from experiments.datasets.own_tables.import_tables import import_tables
    from experiments.datasets.own_tables.mapping import ImportMapping
    from experiments.runtime.progress import progress_bars

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
    _print_summary("Your tables", rows, "\n".join(f"- {note}" for note in summary.notes), out)


@imports.command("movielens")
def import_movielens_command(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder of the unpacked MovieLens, any published layout.")
    ],
    out: OUT,
) -> None:
    """Import **MovieLens**: a rating is an impression, 4 stars or more its click and a purchase.

    PATH holds `u.data`, `u.item`, `u.user` (100K), `ratings.dat`, `movies.dat`, `users.dat` (1M),
    `ratings.csv`, `movies.csv` (latest-small, 25M) or RecBole's `ml-*.inter`, `.item`, `.user`, plain or
    .gz. OUT gets products (title with genres), impressions (without queries) and purchases (the
    liked films). Then: `dashclip features build OUT FEATURES --config
    experiments/configs/movielens_features_global.toml`

    Example: `dashclip import movielens ml-100k runs/movielens/tables`
    """
    from rich.console import Console

    from experiments.datasets.movielens import import_movielens
    from experiments.runtime.progress import progress_bars

    with progress_bars(Console()) as bars:
        summary = import_movielens(path, out, progress=bars.under("importing"))
        bars("importing", 1, 1, "")
    rows = [
        ("layout", summary.layout),
        ("users", f"{summary.users:,}"),
        ("films", f"{summary.films:,}"),
        ("ratings (impressions)", f"{summary.ratings:,}"),
        (
            "of these 4 or more (clicks, purchases)",
            f"{summary.liked:,} ({summary.liked / summary.ratings:.1%})",
        ),
    ]
    absent = "no queries and no images in this data set; features and variants that need them do not apply"
    if not summary.known_users:
        absent += (
            "\nno age, gender or occupation of users in these files; take the features that read user_age, "
            "user_gender and user_occupation out of the feature config, and set split days that fit the log"
        )
    _print_summary("MovieLens", rows, absent, out)


@imports.command("home-depot")
def import_home_depot_command(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="`relevance.csv[.gz]` or `train.csv[.gz]`, or its folder."),
    ],
    out: OUT,
) -> None:
    """Import **Home Depot**'s search relevance: products and human grades of queries and products.

    A mean grade below 1.75 becomes 0 (irrelevant), below 2.5 becomes 1 (moderate), else 2 (high). The data
    set has no aisles: clusters of titles stand in for them, so that encoders find negatives elsewhere.

    Example: `dashclip import home-depot home_depot runs/home_depot/tables`
    """
    from rich.console import Console

    from experiments.datasets.home_depot import import_home_depot
    from experiments.runtime.progress import progress_bars

    with progress_bars(Console()) as bars:
        summary = import_home_depot(path, out, progress=bars.under("importing"))
        bars("importing", 1, 1, "")
    rows = [
        ("queries", f"{summary.queries:,}"),
        ("products", f"{summary.products:,}"),
        ("graded pairs", f"{summary.pairs:,}"),
        ("of these irrelevant", _part(summary.irrelevant, summary.pairs)),
        ("of these moderate", _part(summary.moderate, summary.pairs)),
        ("of these high", _part(summary.high, summary.pairs)),
        ("aisles (clusters of titles)", f"{summary.aisles:,}"),
        ("products with several titles (first kept)", f"{summary.several_titles:,}"),
        ("repeated pairs (first kept)", f"{summary.repeated_pairs:,}"),
    ]
    absent = "no images, impressions or purchases in this data set; rankers cannot be trained on it"
    _print_summary("Home Depot search relevance", rows, absent, out)


@imports.command("grocery-store")
def import_grocery_store_command(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder with `classes.csv`, or the repository around it.")
    ],
    out: OUT,
) -> None:
    """Import the **Grocery Store** photos: each a product with image, title, description and aisle.

    The aisle is the coarse class, the column `split` says train, validation, test or iconic. Pictures are
    copied to `OUT/images`.

    Example: `dashclip import grocery-store GroceryStoreDataset runs/grocery_store/tables`
    """
    from rich.console import Console

    from experiments.datasets.grocery_store import import_grocery_store
    from experiments.runtime.progress import progress_bars

    with progress_bars(Console()) as bars:
        summary = import_grocery_store(path, out, progress=bars.under("importing"))
        bars("importing", 1, 1, "")
    rows = [
        ("classes", f"{summary.classes:,}"),
        ("coarse classes (aisles)", f"{summary.coarse_classes:,}"),
        ("train photos", f"{summary.train:,}"),
        ("validation photos", f"{summary.validation:,}"),
        ("test photos", f"{summary.test:,}"),
        ("iconic pictures", f"{summary.iconic:,}"),
    ]
    absent = "no queries, grades, impressions or purchases in this data set; it is for images and their texts"
    _print_summary("Grocery Store photos", rows, absent, out)


def _part(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})"


def _print_summary(title: str, rows: list[tuple[str, str]], absent: str, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    console = Console()
    console.print(table)
    console.print(absent, markup=False, highlight=False, soft_wrap=True)
    console.print(f"written to {out}")
