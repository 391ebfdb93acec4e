"""`dashclip import`: one's own tables and published data sets to the four input tables."""

from pathlib import Path
from typing import Annotated

import typer

OUT = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; an older import is replaced.")]
imports = typer.Typer(
    no_args_is_help=True,
    help="Turn your own tables, a catalogue feed or a published data set into input tables.",
)


def print_summary(title: str, rows: list[tuple[str, str]], absent: str, out: Path) -> None:
    """Print what an import counted, what the data set lacks or the import made, and where it lies."""
    from rich.table import Table

    from experiments.runtime.terminal import Console

    table = Table(title=title, show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    console = Console()
    console.print(table)
    console.print(absent, markup=False, highlight=False, soft_wrap=True)
    console.print(f"written to {out}")
