"""`dashclip refresh`: new vectors and a new snapshot for a package that serves."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from experiments.runtime.terminal import Console
    from features.schema import LabelConfig
    from serving.packaging.refresh import Refreshed


def refresh(
    package: Annotated[Path, typer.Argument(help="Folder that `dashclip package` wrote; it may be serving.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the four tables: makes a new snapshot of users, products and counters."
        ),
    ] = None,
    as_of: Annotated[
        str,
        typer.Option(help="Time of the new snapshot, UTC; `end` for after the last event of the log."),
    ] = "end",
    product_table: Annotated[
        Path | None, typer.Option(help="Embedding table of the products, from the model's own encoder.")
    ] = None,
    query_table: Annotated[
        Path | None, typer.Option(help="Embedding table of the queries, from the model's own encoder.")
    ] = None,
    signing_key: Annotated[
        Path | None, typer.Option(help="Private key that signs the new generation (`dashclip sign`).")
    ] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Go back to the generation that was live before this one.")
    ] = False,
    use: Annotated[
        str | None,
        typer.Option(help="Make this generation the live one, by its name; one that was copied here, too."),
    ] = None,
    pin: Annotated[
        bool, typer.Option("--pin", help="Keep the live generation: refreshes are refused from now on.")
    ] = False,
    unpin: Annotated[bool, typer.Option("--unpin", help="End --pin.")] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Switch although the new generation does not pass the gate, or one is pinned."
        ),
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch while verifying.")] = 1,
) -> None:
    """Bring new products, queries, purchases and counters to a running server, without a restart.

    Writes a new generation beside the live one, checks that the compiled model scores recorded requests with
    it as it should, and switches with one rename; servers notice within a second and answer all along.
    A generation that is much poorer, older or other than the live one (gate.toml of the package) is refused.
    Products that are new in DATA can be scored from then on. Vectors of another encoder or width are refused.
    The last three generations are kept for `--rollback` and `--use`.

    Example: `dashclip refresh runs/package --data runs/demo/data --product-table
    runs/demo/embeddings/products`
    """
    import torch

    from embeddings.embedding_table import EmbeddingTable
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from serving.package.generations import pin as pin_live
    from serving.package.generations import rollback as roll_back
    from serving.package.generations import unpin as remove_pin
    from serving.package.generations import use as use_generation
    from serving.package.manifest import EntityKind
    from serving.package.signature import SigningKey
    from serving.packaging.as_of import snapshot_source
    from serving.packaging.build_generation import vectors_of_table
    from serving.packaging.refresh import refresh as refresh_package

    torch.set_num_threads(threads)
    console = Console()
    if rollback or use or pin or unpin:
        if data or product_table or query_table or signing_key or force or (rollback and use):
            hint = "--rollback, --use, --pin, --unpin"
            raise typer.BadParameter("only switches, so it takes nothing to refresh with", param_hint=hint)
        if unpin:
            remove_pin(package)
            console.print(f"{package} may be refreshed")
        if rollback or use:
            left, now = use_generation(package, use) if use else roll_back(package)
            console.print(f"{package}: generation {now} is live again, {left} no longer")
        if pin:
            console.print(f"{package}: generation {pin_live(package)} is pinned")
        return
    tables: dict[EntityKind, Path | None] = {"product": product_table, "query": query_table}
    with progress_bars(console) as bars:
        done = refresh_package(
            package,
            snapshot=snapshot_source(data, as_of, _labels(package)) if data else None,
            vectors={
                kind: vectors_of_table(EmbeddingTable.load(folder), kind=kind)
                for kind, folder in tables.items()
                if folder is not None
            },
            force=force,
            signing_key=SigningKey.read(signing_key) if signing_key else None,
            progress=bars,
        )
    _show(console, package, done)


def _labels(package: Path) -> "LabelConfig":
    from features.feature_set import FeatureSet
    from serving.package.manifest import SCHEMA, PackageManifest

    PackageManifest.read(package)  # says what is wrong where it is no package
    return FeatureSet.open(package / SCHEMA, verify=False).manifest.config.labels


def _show(console: "Console", package: Path, done: "Refreshed") -> None:
    from rich.table import Table

    grid = Table("", done.before.name, done.now.name, title=f"{package}: generation {done.now.name} is live")
    grid.add_row("as of (UTC)", _to_seconds(done.before.as_of), _to_seconds(done.now.as_of))
    for name, count in done.now.counts.items():
        grid.add_row(name, f"{done.before.counts[name]:,}", f"{count:,}")
    for kind, record in done.now.vectors.items():
        before = done.before.vectors[kind]
        grid.add_row(f"{kind} vectors", f"{before.count:,}", f"{record.count:,}")
        missing = ("products" if kind == "product" else "queries") + " without a vector"
        grid.add_row(missing, f"{before.missing:,}", f"{record.missing:,}")
    console.print(grid)
    console.print(
        f"recorded requests moved by {done.moved_mean:.2g} on average, {done.moved_most:.2g} at most; "
        f"written, verified and switched in {done.seconds:.1f} s"
    )
    for check in done.gate.checks:
        if not check.passed:
            console.print(f"[yellow]forced:[/yellow] {check.sentence}")
    if done.removed:
        console.print(f"removed generation {', '.join(done.removed)}")


def _to_seconds(as_of: str) -> str:
    return as_of[:19].replace("T", " ")
