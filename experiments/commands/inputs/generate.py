"""`dashclip generate`: write a simulated marketplace, or a simulated log on a real catalogue."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Preset = Annotated[
    Literal["mixed", "retrieval"],
    typer.Option(
        help="What a search shows. mixed: relevant and irrelevant ads, so relevance decides most clicks. "
        "retrieval: ads that were retrieved for the query, nearly all relevant, so taste and price decide."
    ),
]


def generate_marketplace(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder to write; an older marketplace is replaced.")
    ],
    catalogue: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the products and relevance of a real shop: simulated people search for, click "
            "and buy these products instead of invented ones."
        ),
    ] = None,
    preset: Preset = "mixed",
    size: Annotated[
        Literal["tiny", "small", "medium", "large"],
        typer.Option(
            help="tiny: 12 k impressions, for tests. small: 400 k. medium: 5 M. large: 50 M, 400 k products "
            "(those of a catalogue stay as they are)."
        ),
    ] = "small",
    users: Annotated[int | None, typer.Option(help="Shoppers, if not those of the size.")] = None,
    impressions: Annotated[int | None, typer.Option(help="Impressions, if not those of the size.")] = None,
    days: Annotated[int | None, typer.Option(help="Days with impressions, the test week included.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal tables.")] = 0,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Render a package image for each product.")
    ] = True,
) -> None:
    """Write a **simulated** search-ads marketplace whose true click probabilities are known.

    OUT gets the four input tables (products, relevance, impressions, purchases), `images/`, the truth that
    no feature may read (`truth/`), and `marketplace.json` with the configuration and measured facts.
    Both presets of a seed have the same products, queries, grades and users.

    With `--catalogue` the products, images, queries and grades are those of a real shop, and only the people
    are **simulated**: what lift and what sample size to expect, before anything is logged. Logs in that
    folder are not read.

    Example: `dashclip generate runs/marketplace --preset retrieval --size small --seed 0`, or
    `dashclip generate runs/mine --catalogue my_shop --impressions 300000`
    """
    from experiments.marketplace.config import CatalogueConfig, MarketplaceConfig
    from experiments.marketplace.generate import generate
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console

    asked = {"users": users, "impressions": impressions, "days": days}
    changes = {"seed": seed} | {name: value for name, value in asked.items() if value is not None}
    console = Console()
    named = f"preset {preset}, size {size}, seed {seed}"
    if catalogue is None:
        title = f"Simulated marketplace, {named}"
        config = MarketplaceConfig.preset(size, preset, images=images, **changes)
        with progress_bars(console) as bars:
            summary = generate(config, out, progress=bars)
    else:
        from experiments.marketplace.on_catalogue import generate_on_catalogue

        if not images:
            raise typer.BadParameter("the images of a catalogue are not rendered", param_hint="--no-images")
        title = f"Simulated people on {catalogue}, {named}"
        log = CatalogueConfig.preset(size, preset, **changes)
        with progress_bars(console) as bars:
            summary = generate_on_catalogue(log, catalogue, out, progress=bars)
    console.print(_summary_table(summary, title))
    console.print(f"written to {out}", soft_wrap=True)


def _summary_table(summary: dict[str, Any], title: str) -> Any:
    from rich.table import Table

    table = Table(title=title, show_header=False)
    test = summary["test"]
    sizes = (f"{summary[key]:,}" for key in ("products", "users", "queries"))
    unseen = f"{test['unseen_product_share']:.1%} / {test['unseen_query_share']:.1%}"
    floor = f"{_number(test['best_logloss'])} / {_number(test['best_norm_logloss'])}"
    rows = [
        ("products / users / queries", " / ".join(sizes)),
        ("impressions / purchases", f"{summary['impressions']:,} / {summary['purchases']:,}"),
        ("relevance labels", f"{summary['labels']:,}"),
        ("labels of grade 0 / 1 / 2", _shares(summary["label_shares"])),
        ("impressions of true grade 0 / 1 / 2", _shares(summary["grade_shares_of_impressions"])),
        ("CTR", f"{summary['ctr']:.2%}"),
        ("CTR at position 1 ... 5", _shares(summary["ctr_by_position"])),
        ("users without purchases", f"{summary['users_without_purchases']:.1%}"),
        ("products launched during the log", f"{summary['new_product_share']:.1%}"),
        ("mean purchases in the history of an impression", f"{summary['mean_history_length']:.1f}"),
        ("impressions with an empty history", f"{summary['impressions_without_history']:.1%}"),
        ("test days: impressions", f"{test['impressions']:,}"),
        ("test days: CTR", f"{test['ctr']:.2%}"),
        ("test days: unseen product / unseen query", unseen),
        ("test days: best reachable AUC", _number(test["best_auc"])),
        ("test days: LogLoss floor, nats / normalised", floor),
    ]
    if "retrieval" in summary:
        found = summary["retrieval"]
        rows += [
            ("retrieval: recall of grade 2", f"{found['recall']:.1%}"),
            ("retrieval: retrieved of true grade 0 / 1 / 2", _shares(found["grade_shares"])),
        ]
    if "candidates" in summary:
        listed = summary["candidates"]
        drawn = f"{listed['ungraded_pairs']:,} ({listed['ungraded_share']:.1%} of a search's candidates)"
        rows += [("ungraded pairs with a drawn grade", drawn), ("images", f"{summary['images']:,}")]
    causes = summary["logit_variance"]["shares_within_slates"].items()
    rows += [
        (f"log-odds within slates: {cause.replace('_', ' ')}", f"{share:.1%}") for cause, share in causes
    ]
    for name, value in rows:
        table.add_row(name, value)
    return table


def _shares(values: list[float]) -> str:
    return " / ".join(f"{value:.1%}" for value in values)


def _number(value: float | None) -> str:
    return "not defined (one class only)" if value is None else f"{value:.4f}"
