"""`dashclip doctor`: check the installation and print the fix for what is wrong."""

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    runs: Annotated[Path, typer.Option(help="Where runs will be written; its disk is checked.")] = Path(
        "runs"
    ),
) -> None:
    """Check Python, the torch / fbgemm / torchrec triple, processor, memory, disk, Java and optional extras.

    Loads the op library and trains a fused embedding table for one step. Exit code 1 if something fails.

    Example: `dashclip doctor`
    """
    from rich.table import Table

    from experiments.runtime.doctor import diagnose, exit_code
    from experiments.runtime.terminal import Console

    console = Console()
    with console.status("checking"):
        findings = diagnose(runs)
    colours = {"ok": "green", "optional": "cyan", "warn": "yellow", "fail": "bold red"}
    grid = Table("check", "", "found")
    for finding in findings:
        colour = colours[finding.status]
        grid.add_row(finding.name, f"[{colour}]{finding.status}[/{colour}]", finding.found)
    console.print(grid)
    for finding in findings:
        if finding.fix:
            console.print(f"{finding.name}: {finding.fix}", style=colours[finding.status], soft_wrap=True)
    raise typer.Exit(exit_code(findings))
