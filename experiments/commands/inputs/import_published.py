"""`dashclip import`: published data sets to the four input tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.commands.inputs.imports import OUT, imports, print_summary

if TYPE_CHECKING:
    from experiments.datasets.own_tables.import_tables import ImportedTables


@imports.command("movielens")
def import_movielens_command(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder of the unpacked MovieLens, any published layout.")
    ],
    out: OUT,
) -> None:
    """Import **MovieLens**: a rating is an impression, 4 stars or more its click and a purchase.

    GroupLens publishes 100K (5 MB), 1M (6 MB), latest-small (1 MB) and 25M (250 MB) for research, not for
    commercial use without permission. PATH holds `u.data`, `u.item`, `u.user` (100K), `ratings.dat`,
    `movies.dat`, `users.dat` (1M), `ratings.csv`, `movies.csv` (latest-small, 25M) or RecBole's `ml-*.inter`,
    `.item`, `.user`, plain or .gz. OUT gets products (title with genres), impressions (without queries) and
    purchases (the liked films). Then: `dashclip features build OUT runs/movielens/features_per_user --config
    movielens_features_per_user` (100K, 1M) or `movielens_features_no_users` (the others), `dashclip embed lsa
    OUT runs/movielens/embeddings`, `dashclip sweep movielens_per_user runs/movielens/sweep`

    Example: `dashclip import movielens ml-100k runs/movielens/tables`
    """
    from experiments.datasets.movielens import import_movielens
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console

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
            "\nno age, gender or occupation of users in these files; build features by "
            "--config movielens_features_no_users"
        )
    print_summary("MovieLens", rows, absent, out)


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
    from experiments.datasets.home_depot import import_home_depot
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console

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
    print_summary("Home Depot search relevance", rows, absent, out)


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
    from experiments.datasets.grocery_store import import_grocery_store
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console

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
    print_summary("Grocery Store photos", rows, absent, out)


@imports.command("wands")
def import_wands_command(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder with product.csv, query.csv, label.csv.")
    ],
    out: OUT,
) -> None:
    """Import **WANDS** (Wayfair, MIT licence, 42,994 products, about 130 MB): products and human grades.

    Exact is 2 (high), Partial 1, Irrelevant 0. The aisle is the first level of the category hierarchy. Then
    `dashclip encode align OUT ENCODER --config encoders_home_depot`, or without training `dashclip embed
    tfidf OUT VECTORS`

    Example: `dashclip import wands WANDS/dataset runs/wands/tables`
    """
    from experiments.datasets.published.wands import import_wands

    absent = "no images, impressions or purchases in this data set; rankers cannot be trained on it"
    _print_published("WANDS", import_wands(path, out), absent, out)


@imports.command("esci")
def import_esci_command(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder with shopping_queries_dataset_*.parquet.")
    ],
    out: OUT,
    locale: Annotated[
        str, typer.Option(help="`us`, `es` or `jp`; ids of products are those of a locale.")
    ] = "us",
    version: Annotated[str, typer.Option(help="`large`, or `small` with the harder queries.")] = "large",
) -> None:
    """Import **Amazon ESCI** (Apache-2.0, 2.6 million judgements, 1.1 GB): products and human grades.

    Exact is 2 (high), Substitute 1, Complement and Irrelevant 0; the letter stays in `esci_label`. There are
    no aisles. Then as with WANDS.

    Example: `dashclip import esci esci-data/shopping_queries_dataset runs/esci/tables --version small`
    """
    from typing import get_args

    from experiments.datasets.published.amazon_esci import Locale, Version, import_esci

    for option, value, known in (("--locale", locale, Locale), ("--version", version, Version)):
        if value not in get_args(known):
            raise typer.BadParameter(f"must be one of {', '.join(get_args(known))}", param_hint=option)
    chosen: Any = {"locale": locale, "version": version}
    absent = "no aisles, images, impressions or purchases in this data set; rankers cannot be trained on it"
    _print_published("Amazon ESCI", import_esci(path, out, **chosen), absent, out)


@imports.command("instacart")
def import_instacart_command(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder with orders.csv and the other files.")],
    out: OUT,
    users: Annotated[int, typer.Option(min=0, help="So many users, chosen by the seed; 0 for all.")] = 10_000,
    negatives: Annotated[int, typer.Option(min=1, help="Products not bought beside each purchase.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the users and the negatives.")] = 0,
) -> None:
    """Import **Instacart** (2017, non-commercial use, 3.4 million orders, 700 MB): real purchases.

    Nothing was shown in this data set: impressions are **constructed** of purchases and products bought
    before by others, and so is the clock, as there are no dates. Then: `dashclip features build OUT
    runs/instacart/features --config instacart_features`, `dashclip embed lsa OUT runs/instacart/embeddings`,
    `dashclip sweep instacart runs/instacart/sweep`

    Example: `dashclip import instacart instacart_2017_05_01 runs/instacart/tables`
    """
    from experiments.datasets.published.instacart import import_instacart

    summary = import_instacart(path, out, users=users or None, negatives=negatives, seed=seed)
    absent = "no queries, images, prices or grades in this data set; variants that need them do not apply"
    _print_published("Instacart", summary, absent, out)


_ONE_IN = Annotated[int, typer.Option(min=1, help="Keep one of so many rows, in their order; 1 for all.")]


@imports.command("criteo")
def import_criteo_command(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder with train.txt, or with day_0 ... day_23.")
    ],
    out: OUT,
    one_in: _ONE_IN = 1,
) -> None:
    """Import **Criteo** display ads (Kaggle 2014: 45.8 million rows, 11 GB; 1TB logs: 24 days of 45 GB each).

    For research, not for commercial use. 13 numbers and 26 hashed ids of undisclosed meaning: one product
    stands for all ads, all impressions are nobody's, the clock is **constructed** from the order of the rows.
    Good for the DCN baseline alone. Then: `dashclip features build OUT runs/criteo/features --config
    criteo_features`, `dashclip sweep criteo runs/criteo/sweep`

    Example: `dashclip import criteo dac runs/criteo/tables --one-in 100`
    """
    from experiments.datasets.published.criteo import import_criteo

    absent = (
        "no products, users, texts, queries or purchases in this data set: it is for the DCN baseline alone"
    )
    _print_published("Criteo", import_criteo(path, out, one_in=one_in), absent, out)


@imports.command("avazu")
def import_avazu_command(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder with train.gz, or train unpacked.")],
    out: OUT,
    one_in: _ONE_IN = 1,
) -> None:
    """Import **Avazu** mobile ads (Kaggle 2014, rules of the competition, 40.4 million rows, 6 GB).

    Hashed ids of place, device and ad. The user is `device_id`; devices without one are nobody. The product
    is C14, a guess. Good for the DCN baseline alone. Then: `dashclip features build OUT runs/avazu/features
    --config avazu_features`, `dashclip sweep avazu runs/avazu/sweep`

    Example: `dashclip import avazu avazu-ctr-prediction runs/avazu/tables --one-in 100`
    """
    from experiments.datasets.published.avazu import import_avazu

    absent = "no texts, queries or purchases in this data set: it is for the DCN baseline alone"
    _print_published("Avazu", import_avazu(path, out, one_in=one_in), absent, out)


@imports.command("open-bandit")
def import_open_bandit_command(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder with `random` and `bts`, or around them.")
    ],
    out: OUT,
    policy: Annotated[str, typer.Option(help="`random`, or `bts` (Bernoulli Thompson sampling).")] = "random",
    campaign: Annotated[str, typer.Option(help="`all`, `men` or `women`.")] = "men",
) -> None:
    """Import **Open Bandit** (ZOZO, CC BY 4.0, 26 million impressions, 11 GB; a sample of 10,000 rows each).

    Hashed features of users and products, which of three places the product had, how often the user had
    clicked it before. No user has an id. Good for the DCN baseline alone; few impressions are clicked. Then:
    `dashclip features build OUT runs/open_bandit/features --config open_bandit_features`, `dashclip sweep
    open_bandit runs/open_bandit/sweep`

    Example: `dashclip import open-bandit open_bandit_dataset runs/open_bandit/tables --campaign women`
    """
    from typing import get_args

    from experiments.datasets.published.open_bandit import Campaign, Policy, import_open_bandit

    for option, value, known in (("--policy", policy, Policy), ("--campaign", campaign, Campaign)):
        if value not in get_args(known):
            raise typer.BadParameter(f"must be one of {', '.join(get_args(known))}", param_hint=option)
    chosen: Any = {"policy": policy, "campaign": campaign}
    absent = "no users, texts, queries or purchases in this data set: it is for the DCN baseline alone"
    _print_published("Open Bandit", import_open_bandit(path, out, **chosen), absent, out)


@imports.command("complete-journey")
def import_complete_journey_command(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder with transaction_data.csv and product.csv.")
    ],
    out: OUT,
    users: Annotated[
        int, typer.Option(min=0, help="So many households, chosen by the seed; 0 for all.")
    ] = 500,
    negatives: Annotated[int, typer.Option(min=1, help="Products not bought beside each purchase.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the households and the negatives.")] = 0,
) -> None:
    """Import the **Complete Journey** (dunnhumby, its terms of use, 2.6 million purchases, 142 MB).

    Purchases of 2,500 households in two years. Nothing was shown: impressions are **constructed** of
    purchases and products bought before by others. Days are numbered; their dates are not published. Then:
    `dashclip features build OUT runs/complete_journey/features --config complete_journey_features`, `dashclip
    embed lsa OUT runs/complete_journey/embeddings`, `dashclip sweep complete_journey
    runs/complete_journey/sweep`

    Example: `dashclip import complete-journey dunnhumby runs/complete_journey/tables`
    """
    from experiments.datasets.published.complete_journey import import_complete_journey

    summary = import_complete_journey(path, out, users=users or None, negatives=negatives, seed=seed)
    absent = "no queries, images, prices or grades in this data set; variants that need them do not apply"
    _print_published("Complete Journey", summary, absent, out)


def _print_published(title: str, summary: "ImportedTables", absent: str, out: Path) -> None:
    rows = [(name, f"{count:,} rows") for name, count in summary.rows.items()]
    print_summary(title, rows, "\n".join([*(f"- {note}" for note in summary.notes), absent]), out)


def _part(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})"
