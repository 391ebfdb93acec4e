"""`dashclip search`: the products nearest to a query, in the terminal or on a page of this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.commands.options import DATA, ENCODERS, TABLE

if TYPE_CHECKING:
    from experiments.scoring.texts import ProductSearch

WORDS = "words"
_BY_WORDS = "character n-grams"


def search(
    data: DATA,
    query: Annotated[str | None, typer.Argument(help="What somebody searches; not with --page.")] = None,
    encoders: ENCODERS = None,
    table: TABLE = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Products to show.")] = 10,
    page: Annotated[
        bool, typer.Option("--page", help="Open a page on this machine to type queries into.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            help="With --page: an encoder or a folder of tables to show beside, or `words` for n-grams."
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, help="Of the page; 0 takes a free one.")] = 0,
) -> None:
    """The products nearest to a query, with prices, by an encoder or by embedding tables.

    Without either, by the cosine of character n-grams. With both, products come from the table and the query
    from the encoder. --page shows pictures, and two ways to search side by side; it answers to this machine
    alone, until Ctrl-C.

    Examples: `dashclip search runs/data "oat milk" --encoders runs/encoders/align --table
    runs/encoders/tables`, `dashclip search runs/data --page --encoders runs/encoders/align --against words`
    """
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from experiments.scoring.texts import ProductSearch, VectorSource, hits_text
    from features.inputs.origin import Origin

    if page == (query is not None):
        raise typer.BadParameter("give a query, or --page to type queries into", param_hint="QUERY")
    if against is not None and not page:
        raise typer.BadParameter("needs --page", param_hint="--against")
    by = " and ".join(str(folder) for folder in (encoders, table) if folder) or _BY_WORDS
    source = VectorSource.open(encoders, table) if encoders or table else None
    with progress_bars(Console(stderr=True)) as bars:
        searches = {by: ProductSearch(data, source, progress=bars)}
        if against is not None:
            beside = None if str(against) == WORDS else VectorSource.open_any(against)
            name = str(against) if beside else _BY_WORDS
            searches[f"{name} (again)" if name == by else name] = ProductSearch(data, beside, progress=bars)
    if page:
        simulated = Origin.of(data).simulated is True
        _serve(searches, port=port, k=k, simulated=simulated)
    else:
        assert query is not None
        typer.echo(f"nearest to {query!r} by {by}:")
        typer.echo(hits_text(searches[by].find(query, k)), nl=False)


def _serve(searches: "dict[str, ProductSearch]", *, port: int, k: int, simulated: bool) -> None:
    from experiments.scoring.search_page import search_server

    with search_server(searches, port=port, k=k, simulated=simulated) as server:
        typer.echo(f"http://127.0.0.1:{server.server_address[1]}/ until Ctrl-C")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("stopped")
