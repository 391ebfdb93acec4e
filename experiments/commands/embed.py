"""`dashclip embed`: make, import and inspect embedding tables."""

from pathlib import Path
from typing import Annotated

import typer

embed = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Make, import and inspect embedding tables."
)


def register(app: typer.Typer) -> None:
    """Add the `embed` commands."""
    app.add_typer(embed, name="embed")


@embed.command("lsa")
def lsa(
    data: Annotated[Path, typer.Argument(help="Folder with the four tables.")],
    out: Annotated[
        Path, typer.Argument(help="Folder for `products/` and `queries/`; replaced if it exists.")
    ],
    dim: Annotated[int, typer.Option(help="Width of the vectors, a multiple of 4 up to 1024.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the text sample and of the SVD.")] = 0,
    columns: Annotated[
        str, typer.Option(help="Text columns of products, joined by spaces; separate them with commas.")
    ] = "title",
) -> None:
    """Embed titles and queries without a trained encoder: TF-IDF and truncated SVD, one space.

    Example: `dashclip embed lsa runs/data runs/lsa --dim 64 --columns title,brand`
    """
    from rich.console import Console

    from embeddings.lsa import write_lsa_tables

    console = Console()
    with console.status("reading texts") as status:

        def report(stage: str, done: int, total: int) -> None:
            status.update(f"{stage} {done:,} of {total:,}" if total > 1 else stage)

        names = tuple(name.strip() for name in columns.split(",") if name.strip())
        tables = write_lsa_tables(data, out, dim=dim, seed=seed, columns=names, progress=report)
    console.print(
        f"{tables.terms:,} terms reduced to {dim} dimensions, "
        f"{tables.explained_variance:.0%} of their variance kept"
    )
    for table in (tables.products, tables.queries):
        if table is None:
            console.print("queries    none: the impressions and relevance of this data set have no query")
            continue
        zeros = table.manifest.zero_vectors
        console.print(
            f"{table.folder.name:<10} {len(table):,} vectors in {table.folder}"
            + (f"; {zeros:,} are zeros, as no term of their text is known" if zeros else ""),
            soft_wrap=True,
        )
