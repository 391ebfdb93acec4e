"""`dashclip demo`: the paper's table 2 on the simulated marketplace, from nothing, in one command."""

import shutil
from pathlib import Path
from typing import Annotated, Literal

import typer

Size = Literal["tiny", "small", "medium", "large"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for data, runs and report.")] = Path("runs/demo"),
    size: Annotated[Size, typer.Option(help="Size of the marketplace.")] = "small",
    seeds: Annotated[int, typer.Option(min=2, help="Training seeds per variant.")] = 5,
    processes: Annotated[int | None, typer.Option(min=1, help="Runs at the same time; one a core.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete OUT first instead of resuming.")] = False,
) -> None:
    """Marketplace, features, embeddings, four variants x five seeds, and the table that compares them.

    Every part that is already whole in OUT is kept, so a stopped demo goes on where it was. All data are
    simulated, and every output says so. OUT/report.html is the page to open at the end.
    """
    from rich.console import Console

    from experiments.commands.embed import lsa
    from experiments.commands.features import build_command
    from experiments.commands.generate import generate_marketplace
    from experiments.commands.report import report
    from experiments.commands.sweep import exit_if_failed, run_sweep
    from experiments.config import load_config
    from experiments.sweep import SweepConfig

    console = Console()
    if fresh and out.exists():
        shutil.rmtree(out)
    data, features, embeddings = out / "data", out / "features", out / "embeddings"
    if not data.exists():
        console.rule("1/4 simulated marketplace")
        generate_marketplace(data, size=size)
    if not features.exists():
        console.rule("2/4 point-in-time features")
        build_command(data, features, config=Path("marketplace_features"))
    if not embeddings.exists():
        console.rule("3/4 embeddings: LSA of titles and queries")
        lsa(data, embeddings, dim=128)
    console.rule("4/4 four variants, trained and compared")
    config = load_config(Path("demo"), SweepConfig).model_copy(
        update={
            "seeds": tuple(range(1, seeds + 1)),
            "features": features,
            "product_table": embeddings / "products",
            "query_table": embeddings / "queries",
            "truth": data / "truth",
        }
    )
    outcomes = run_sweep(config, out, processes, f"dashclip demo --size {size} --seeds {seeds}")
    report(out)
    exit_if_failed(outcomes)
