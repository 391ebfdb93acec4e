"""`dashclip join-clicks`: a feature log and later clicks become the tables of the next training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from experiments.runtime.terminal import Console
    from experiments.serving_checks.served_skew import ServedSkew
    from serving.feature_log.join_clicks import Joined


def join_clicks(
    log: Annotated[Path, typer.Argument(help="Folder that `dashclip serve --feature-log` fills.")],
    clicks: Annotated[
        Path,
        typer.Argument(help="Parquet: timestamp, product_id, and request_id (x-request-id) or user_id."),
    ],
    out: Annotated[Path, typer.Argument(help="Folder of tables to write, for `dashclip features build`.")],
    data: Annotated[
        Path, typer.Option(help="The four tables up to now: products, purchases, earlier impressions.")
    ],
    key: Annotated[Path, typer.Option(help="The key of the log: --log-key, or feature_log.key.")],
    within_hours: Annotated[
        float, typer.Option(min=0, help="A click counts for an impression at most so much older.")
    ] = 24.0,
    shown: Annotated[
        int | None,
        typer.Option(min=1, help="Only so many of the best candidates were shown; all if not given."),
    ] = None,
    rank_column: Annotated[
        str | None,
        typer.Option(help="Column of the impressions that is the rank, from 1: `position`."),
    ] = None,
    package: Annotated[
        Path | None,
        typer.Option(help="Package that served: adds a report on served features against offline ones."),
    ] = None,
    memory_limit: Annotated[str, typer.Option(help="Memory for the features of that report.")] = "2GB",
    report: Annotated[Path | None, typer.Option(help="JSON file for the numbers.")] = None,
) -> None:
    """Join later clicks to what was served, as tables that `dashclip features build` takes.

    Each logged candidate is an impression, with the click that came for it: of its request where the clicks
    have request ids, else of its user. Users get their ids back by the key. Impressions of DATA from before
    the first logged one go before it. With --package, features as they were served are compared with those
    computed offline for the same impressions; values that came with the requests stand apart.

    Example: `dashclip join-clicks runs/log clicks.parquet runs/next --data runs/demo/data
    --key runs/store/server/feature_log.key --package runs/package`
    """
    from dataclasses import asdict

    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from features.artifacts import atomic_write_json, refuse_to_replace_input
    from serving.feature_log.join_clicks import join_clicks as join
    from serving.feature_log.user_keys import read_key

    console = Console()
    for source in (log, clicks, data):
        refuse_to_replace_input(out, source)
    with progress_bars(console) as bars:
        joined, served = join(
            log,
            clicks,
            out,
            data=data,
            key=read_key(key),
            within_us=round(within_hours * 3_600_000_000),
            shown=shown,
            rank_column=rank_column,
            progress=bars,
        )
        skew = None
        if package is not None:
            from experiments.serving_checks.served_skew import served_skew

            skew = served_skew(served, out, package, memory_limit=memory_limit, progress=bars)
    _show(console, joined, out)
    if skew is not None:
        _show_skew(console, skew)
    if report is not None:
        content = {"joined": asdict(joined), "skew": asdict(skew) if skew is not None else None}
        atomic_write_json(report, content)


def _show(console: "Console", joined: "Joined", out: Path) -> None:
    from rich.table import Table

    grid = Table(title=str(out), show_header=False)
    grid.add_row("served", f"{joined.requests:,} requests, {joined.impressions:,} impressions")
    grid.add_row("from, to (UTC)", f"{joined.first[:19]}, {joined.last[:19]}")
    grid.add_row("share logged", f"{joined.share:.2%}")
    grid.add_row("clicks", f"{joined.clicks_used:,} of {joined.clicks:,} found their impression")
    grid.add_row("clicked", f"{joined.clicked:,} ({joined.clicked / joined.impressions:.2%})")
    grid.add_row("earlier impressions", f"{joined.before:,}")
    console.print(grid)
    if joined.share < 1:
        console.print(
            "[yellow]note:[/yellow] not every request was logged: counters made of these impressions count "
            "the logged ones only"
        )
    if joined.unknown_users:
        console.print(
            f"[yellow]note:[/yellow] the users of {joined.unknown_users:,} impressions are not in the "
            "tables, and became nobody; is it the right key?"
        )
    if joined.absent:
        console.print(f"[yellow]note:[/yellow] no request gave {', '.join(joined.absent)}")


def _show_skew(console: "Console", skew: "ServedSkew") -> None:
    from rich.table import Table

    for live, title in ((False, "of the snapshot"), (True, "that came with requests")):
        chosen = [one for one in skew.features if one.live is live]
        if not chosen:
            continue
        grid = Table("feature", "values", "differs", "mean (sd)", "largest (sd)", title=f"values {title}")
        for one in chosen:
            if one.differs:
                numbers = (f"{value:.3f}" if value is not None else "" for value in (one.mean, one.largest))
                grid.add_row(one.name, f"{one.values:,}", f"{one.differs:.1%}", *numbers)
        console.print(grid)
        equal = sum(one.differs == 0 for one in chosen)
        console.print(f"{equal} of {len(chosen)} features are the same for every impression")
    refused = f"; {skew.refused:,} requests were refused" if skew.refused else ""
    console.print(f"compared: {skew.compared:,} impressions{refused}")
