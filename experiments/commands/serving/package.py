"""`dashclip package`: from a trained run to a folder that a server can serve."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from experiments.commands.options import DATA_OF_RUN

if TYPE_CHECKING:
    from experiments.runtime.terminal import Console
    from serving.scoring.predictor import Predictor


def package(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run (it holds run.json).")],
    out: Annotated[Path, typer.Argument(help="Package to write; an older one there is replaced.")],
    as_of: Annotated[
        str,
        typer.Option(
            help="Time of the feature snapshot, UTC: `2024-07-29`, `2024-07-29T06:00`, or `end` for after "
            "the last event of the log. What happened at it or later is not in the snapshot."
        ),
    ] = "end",
    data: DATA_OF_RUN = None,
    encoder: Annotated[
        Path | None,
        typer.Option(help="Folder of the encoder that made the query table: it embeds queries never seen."),
    ] = None,
    tables: Annotated[
        Literal["float16", "int8", "float32"],
        typer.Option(help="Product vectors in memory: float16, int8 (half the bytes) or float32."),
    ] = "float16",
    backend: Annotated[
        Literal["auto", "aotinductor", "torchscript", "eager"],
        typer.Option(
            help="What runs the dense part: auto (the fastest that works here), aotinductor, torchscript or "
            "eager."
        ),
    ] = "auto",
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(
            help="Of matrix products: auto takes bfloat16 where that is at least a fifth faster here and "
            "probabilities move by less than 0.005."
        ),
    ] = "auto",
    context: Annotated[
        str | None,
        typer.Option(
            help="Impression columns that a request gives once rather than for each candidate, with commas; "
            "`none` for none. If not given: store_id and device, as far as features read them."
        ),
    ] = None,
    projected: Annotated[
        bool,
        typer.Option(
            "--projected",
            help="Look up what the first layer makes of each product instead of computing it: faster, for up "
            "to three more times the bytes of the product vectors.",
        ),
    ] = False,
    parity_requests: Annotated[
        int, typer.Option(min=1, help="Logged requests to record; loading scores them again.")
    ] = 64,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch while packaging.")] = 1,
) -> None:
    """Make a package of a trained run: compiled model, tables, feature snapshot, parity record.

    The package is self-contained: a server needs neither the run nor the log. It is complete only once its
    scores of recorded requests equal the run's own predictions. Vectors and snapshot can be replaced later
    while it serves: `dashclip refresh`.

    Example: `dashclip package runs/demo/dcn_pq_sim_history/seed-1 runs/package --as-of 2024-07-29
    --encoder runs/demo/encoders/align`
    """
    import time

    import torch

    from experiments.runtime.progress import progress_bars
    from experiments.runtime.run_layout import package_run
    from experiments.runtime.terminal import Console
    from serving.packaging.build_package import PackageOptions
    from serving.scoring.predictor import Predictor

    torch.set_num_threads(threads)
    console = Console()
    started = time.monotonic()
    options = PackageOptions(
        tables=tables,
        backend=backend,
        precision=precision,
        context=_names(context),
        projected=projected,
        parity_requests=parity_requests,
    )
    with progress_bars(console) as bars:
        package_run(run, out, data=data, as_of=as_of, encoder=encoder, options=options, progress=bars)
    packaged_s = time.monotonic() - started
    started = time.monotonic()
    predictor = Predictor.load(out)
    _show(console, out, predictor, packaged_s=packaged_s, loaded_s=time.monotonic() - started)


def _names(context: str | None) -> tuple[str, ...] | None:
    if context is None:
        return None
    names = tuple(name.strip() for name in context.split(",") if name.strip())
    return () if names == ("none",) else names


def _show(
    console: "Console", out: Path, predictor: "Predictor", *, packaged_s: float, loaded_s: float
) -> None:
    from rich.table import Table

    from serving.packaging.build_generation import stored_dtype

    facts, manifest = predictor.facts(), predictor.manifest
    grid = Table(title=str(out), show_header=False)
    grid.add_row("model", f"{manifest.model_version}" + (" (simulated data)" if manifest.simulated else ""))
    grid.add_row("dense part", f"{facts['backend']}: {facts['backend_reason']}")
    for kind, encoder_id in facts["encoders"].items():
        missing = facts["without_vector"][kind]
        grid.add_row(
            f"{kind} vectors",
            f"{manifest.vectors[kind].dim} x {stored_dtype(manifest.tables, kind)}, {encoder_id}"
            + (f"; {missing:,} of the catalogue have none" if missing else ""),
        )
    grid.add_row("unseen queries", manifest.query_encoder or "no vector: the package has no query encoder")
    grid.add_row("once per request", ", ".join(("user_id", "query", "timestamp", *manifest.context)))
    counts = ", ".join(f"{count:,} {name}" for name, count in facts["counts"].items())
    grid.add_row("snapshot", f"as of {facts['as_of']}: {counts}")
    grid.add_row(
        "parity",
        f"{manifest.parity.candidates:,} scores of {manifest.parity.requests} logged requests within "
        f"{manifest.parity.tolerance:g}; largest difference {facts['parity_difference']:.2g}",
    )
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    grid.add_row("size", f"{size / 2**20:,.1f} MiB")
    grid.add_row("time", f"packaged in {packaged_s:.1f} s, loads and verifies in {loaded_s:.2f} s")
    console.print(grid)
    console.print(f"next: `dashclip replay RUN {out}`, `dashclip archive {out} STORE`", markup=False)
