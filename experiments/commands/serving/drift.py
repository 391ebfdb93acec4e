"""`dashclip drift`: what a server saw, against what its model was trained on."""

from pathlib import Path
from typing import Annotated

import typer


def drift(
    package: Annotated[Path, typer.Argument(help="The package that is served.")],
    counts: Annotated[Path, typer.Argument(help="The STORE or --state-dir that serves it, or live counts.")],
    out: Annotated[Path | None, typer.Option(help="JSON file to write, too.")] = None,
) -> None:
    """Compare live scores and features with the training record of a package.

    The population stability index of each distribution: below 0.1 nothing happened, above 0.25 it has moved.
    Scores move on their own where the position is unknown at serving time; features should not. Exit code 1
    if one has moved.

    Example: `dashclip drift runs/package runs/store`
    """
    from rich.console import Console
    from rich.table import Table

    from features.artifacts import atomic_write_json
    from serving.package.manifest import PackageManifest
    from serving.servers.drift import DRIFT_FOLDER, drift_of, read_counts
    from serving.servers.torchserve.server import state_folder

    manifest = PackageManifest.read(package)
    folder = state_folder(counts) / DRIFT_FOLDER
    live = read_counts(folder if folder.is_dir() else counts, model_version=manifest.model_version)
    compared = drift_of(manifest.training_record, live)
    table = Table("distribution", "candidates seen", "PSI", "verdict")
    for one in compared:
        table.add_row(one.name, f"{one.seen:,}", "-" if one.psi is None else f"{one.psi:.3f}", one.verdict)
    console = Console()
    console.print(f"{live['requests']:,} requests to {manifest.model_version}")
    console.print(table)
    if out is not None:
        rows = [
            {"name": one.name, "seen": one.seen, "psi": one.psi, "verdict": one.verdict} for one in compared
        ]
        atomic_write_json(
            out,
            {"model_version": manifest.model_version, "requests": live["requests"], "distributions": rows},
        )
    if any(one.verdict == "moved" for one in compared):
        raise typer.Exit(1)
