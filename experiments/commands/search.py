"""`dashclip search`: the products nearest to a query, in the terminal."""

from typing import Annotated

import typer

from experiments.commands.options import DATA, ENCODERS, TABLE


def search(
    data: DATA,
    query: Annotated[str, typer.Argument(help="What somebody searches.")],
    encoders: ENCODERS = None,
    table: TABLE = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Products to show.")] = 10,
) -> None:
    """The products nearest to a query, with prices, by an encoder or by embedding tables.

    Without either, by the cosine of character n-grams. With both, products come from the table and the query
    from the encoder.

    Example: `dashclip search runs/data "oat milk" --encoders runs/align --table runs/embeddings`
    """
    from rich.console import Console

    from experiments.runtime.progress import progress_bars
    from experiments.scoring.texts import VectorSource, hits_text, search_products

    source = VectorSource.open(encoders, table) if encoders or table else None
    with progress_bars(Console(stderr=True)) as bars:
        hits = search_products(data, query, source, k=k, progress=bars)
    by = " and ".join(str(folder) for folder in (encoders, table) if folder) or "character n-grams"
    typer.echo(f"nearest to {query!r} by {by}:")
    typer.echo(hits_text(hits), nl=False)
