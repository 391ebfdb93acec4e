"""`dashclip embed`: make, import and inspect embedding tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.commands.options import DATA, DEVICE

if TYPE_CHECKING:
    from embeddings.embedding_table import EmbeddingTable
    from embeddings.tables.lsa import LsaTables

embed = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Make, import and inspect embedding tables."
)

TABLES = Annotated[
    Path, typer.Argument(help="Folder for `products/` and `queries/`; older ones are replaced.")
]


@embed.command("lsa")
def lsa(
    data: DATA,
    out: TABLES,
    dim: Annotated[int, typer.Option(help="Width of the vectors, a multiple of 4 up to 1024.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the text sample and of the SVD.")] = 0,
    columns: Annotated[
        str, typer.Option(help="Text columns of products, joined by spaces; separate them with commas.")
    ] = "title",
) -> None:
    """Embed titles and queries without a trained encoder: TF-IDF and truncated SVD, one space.

    Example: `dashclip embed lsa runs/data runs/lsa --dim 64 --columns title,brand`
    """
    from embeddings.tables.lsa import embed_lsa

    _embed_texts(embed_lsa, data, out, dim=dim, seed=seed, columns=columns)


@embed.command("tfidf")
def tfidf(
    data: DATA,
    out: TABLES,
    dim: Annotated[int, typer.Option(help="Width of the vectors, a multiple of 4 up to 1024.")] = 512,
    seed: Annotated[int, typer.Option(help="Seed of the text sample and of the SVD.")] = 0,
    columns: Annotated[
        str, typer.Option(help="Text columns of products, joined by spaces; separate them with commas.")
    ] = "title",
) -> None:
    """Character n-gram TF-IDF of titles and queries: their cosine is the lexical score without training.

    A ranker with `[ranker.semantic] reads = "similarity"` takes it as a dense feature, beside which vectors
    exist. The wider, the nearer to the exact cosine.

    Example: `dashclip embed tfidf runs/data runs/tfidf --dim 1024`
    """
    from embeddings.tables.tfidf import embed_tfidf

    _embed_texts(embed_tfidf, data, out, dim=dim, seed=seed, columns=columns)


def _embed_texts(
    embed: Callable[..., LsaTables], data: Path, out: Path, *, dim: int, seed: int, columns: str
) -> None:
    """Write tables with a progress bar, and say what is in them."""
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console

    console = Console()
    with progress_bars(console) as bars:
        names = tuple(name.strip() for name in columns.split(",") if name.strip())
        tables = embed(data, out, dim=dim, seed=seed, columns=names, progress=bars.under("embedding"))
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


@embed.command("sentence-transformers")
def sentence_transformers(
    model: Annotated[str, typer.Argument(help="Folder of a sentence-transformers model, or its hub name.")],
    data: DATA,
    out: TABLES,
    columns: Annotated[
        str, typer.Option(help="Text columns of products, joined by spaces; separate them with commas.")
    ] = "title",
    batch_size: Annotated[int, typer.Option(min=1, help="Texts encoded at once.")] = 64,
    device: DEVICE = "cpu",
) -> None:
    """Vectors of any model that sentence-transformers opens, as it is: a row of table 1, tables for a ranker.

    The library must be installed beside this package. A BERT that is to be trained further, or served, goes
    through `dashclip encode from-bert`.

    Example: `dashclip embed sentence-transformers models/gte-small runs/data runs/gte`
    """
    from embeddings.tables.sentence_models import embed_sentence_model
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console

    console = Console()
    names = tuple(name.strip() for name in columns.split(",") if name.strip())
    with progress_bars(console) as bars:
        tables = embed_sentence_model(
            model,
            data,
            out,
            columns=names,
            batch_size=batch_size,
            device=device,
            progress=bars.under("embedding"),
        )
    for table in tables:
        if table is not None:
            console.print(f"{len(table):,} vectors of {table.dim} in {table.folder}", soft_wrap=True)


@embed.command("truth")
def truth(
    data: DATA,
    out: TABLES,
    dim: Annotated[int, typer.Option(help="Width of the vectors, a multiple of 4 up to 1024.")] = 128,
    seed: Annotated[int, typer.Option(help="Seed of the random projection.")] = 0,
) -> None:
    """Vectors of a simulated marketplace's true facts: the ceiling of any embedding, for comparison alone.

    Example: `dashclip embed truth runs/demo/data runs/demo/oracle`
    """
    from experiments.marketplace.oracle import embed_truth
    from experiments.runtime.terminal import Console

    for table in embed_truth(data, out, dim=dim, seed=seed):
        if table is not None:
            Console().print(f"{len(table):,} vectors in {table.folder}", soft_wrap=True)


@embed.command("import")
def import_(
    vectors: Annotated[Path, typer.Argument(help="A .parquet file (id, list of floats) or a .npy matrix.")],
    out: Annotated[Path, typer.Argument(help="Folder of the new table; an older table there is replaced.")],
    kind: Annotated[str, typer.Option(help="`product` or `query`.")],
    encoder_id: Annotated[str, typer.Option(help="What made the vectors; written to the manifest.")],
    ids: Annotated[Path | None, typer.Option(help="Ids of a .npy matrix: .npy, .parquet or .txt.")] = None,
    id_column: Annotated[str | None, typer.Option(help="Id column, if not id, product_id or query.")] = None,
    vector_column: Annotated[
        str | None, typer.Option(help="Vector column, if the file has several columns of lists.")
    ] = None,
    normalise: Annotated[bool, typer.Option("--normalise", help="Divide each vector by its norm.")] = False,
) -> None:
    """Turn vectors of any other encoder into an embedding table.

    Example: `dashclip embed import clip.parquet runs/clip/products --kind product --encoder-id clip-b32`
    """
    from embeddings.tables.importing import import_vectors

    if kind not in ("product", "query"):
        raise typer.BadParameter(f"must be product or query, got {kind!r}", param_hint="--kind")
    table = import_vectors(
        vectors,
        out,
        kind=kind,  # type: ignore[arg-type]  # checked one line above
        encoder_id=encoder_id,
        ids=ids,
        id_column=id_column,
        vector_column=vector_column,
        normalise=normalise,
    )
    _print_table(table)


@embed.command("narrow")
def narrow(
    tables: Annotated[Path, typer.Argument(help="Folder with `products/` and `queries/`.")],
    out: Annotated[Path, typer.Argument(help="Folder for the narrower ones; older ones are replaced.")],
    dim: Annotated[int, typer.Option(help="Coordinates to keep, a multiple of 4.")] = 64,
) -> None:
    """Keep the first coordinates of both tables, scaled back to unit length.

    DashCLIP's and LSA's coordinates come in the order of their variance, so the first ones say most.

    Example: `dashclip embed narrow runs/encoders/tables runs/encoders/tables_64 --dim 64`
    """
    from embeddings.embedding_table import EmbeddingTable
    from embeddings.tables.narrow import narrow_table

    for kind in ("products", "queries"):
        _print_table(narrow_table(EmbeddingTable.load(tables / kind), out / kind, dim))


@embed.command("show")
def show(
    table: Annotated[Path, typer.Argument(help="Folder of an embedding table.")],
    data: Annotated[Path | None, typer.Option(help="Folder with the four tables, to see coverage.")] = None,
) -> None:
    """Print what a table holds, its norms and how much of a data set it covers.

    Example: `dashclip embed show runs/lsa/products --data runs/data`
    """
    from rich.table import Table

    from embeddings.embedding_table import EmbeddingTable
    from embeddings.tables.importing import coverage_of_data
    from experiments.runtime.terminal import Console

    loaded = EmbeddingTable.load(table)
    _print_table(loaded)
    if data is None:
        return
    coverage = coverage_of_data(loaded, data)
    if not coverage:
        raise ValueError(f"{data} has no table with {loaded.manifest.kind} ids; is it a data folder?")
    grid = Table("rows of", "with a vector", "without", "share", title=f"Coverage of {data}")
    for name, counted in coverage.items():
        grid.add_row(name, f"{counted.known:,}", f"{counted.missing:,}", f"{counted.share:.2%}")
    Console().print(grid)


def _print_table(table: EmbeddingTable) -> None:
    """The manifest and the spread of the norms."""
    import numpy as np
    from rich.table import Table

    from embeddings.tables.importing import norms_of
    from experiments.runtime.terminal import Console

    manifest = table.manifest
    grid = Table(title=str(table.folder), show_header=False)
    grid.add_row("encoder", manifest.encoder_id)
    grid.add_row("vectors", f"{manifest.count:,} of {manifest.kind} ids ({manifest.id_type})")
    grid.add_row("width", f"{manifest.dim} x {manifest.dtype}")
    grid.add_row("created", f"{manifest.created:%Y-%m-%d %H:%M} UTC")
    grid.add_row("normalised", "yes" if manifest.normalised else "no")
    if manifest.count:
        low, middle, high = np.quantile(norms_of(table.vectors_ND[1:]), [0, 0.5, 1])
        grid.add_row("norms", f"{low:.4g} least, {middle:.4g} median, {high:.4g} most")
    grid.add_row("all zeros", f"{manifest.zero_vectors:,} (they act like missing ids)")
    Console().print(grid)
