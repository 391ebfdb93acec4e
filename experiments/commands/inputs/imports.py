"""`dashclip import`: one's own tables and published data sets to the four input tables."""

from pathlib import Path
from typing import Annotated

import typer

OUT = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; an older import is replaced.")]
imports = typer.Typer(
    no_args_is_help=True,
    help="Turn your own tables, a catalogue feed or a published data set into input tables.",
)


@imports.command("tables")
def import_tables_command(
    source: Annotated[
        Path | None,
        typer.Argument(metavar="SOURCE", help="Folder with your tables, in the formats you have."),
    ] = None,
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="Folder to write; an older import is replaced.")
    ] = None,
    mapping: Annotated[
        Path | None, typer.Option(help="TOML file that says which column is which; see --example.")
    ] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Print a commented mapping to start from, and do nothing else.")
    ] = False,
    memory_limit: Annotated[
        str, typer.Option(help="What DuckDB may use; larger state goes to temporary files.")
    ] = "4GB",
    threads: Annotated[int, typer.Option(min=1, help="Threads for reading.")] = 2,
) -> None:
    """Import **your own tables**: CSV, TSV, JSON lines (each also .gz), Parquet, folders of them.

    Tables under the names of the four tables with the columns they should have need no mapping. Else a
    mapping renames columns, says in which zone local times were written, makes clicks of ratings and
    purchases of clicks, and constructs negatives for a log of purchases alone. Values that cannot be read are
    refused with table, column and key. Then: `dashclip validate OUT`

    Example: `dashclip import tables exports runs/tables --mapping mapping.toml`
    """
    from rich.console import Console

    from experiments.config import SHIPPED, load_config
    from experiments.datasets.own_tables.import_tables import import_tables
    from experiments.datasets.own_tables.mapping import ImportMapping
    from experiments.runtime.progress import progress_bars

    if example:
        typer.echo((SHIPPED / "import_tables.toml").read_text(encoding="utf-8"), nl=False)
        return
    if source is None or out is None:
        raise typer.BadParameter(
            "give the folder with your tables and the folder to write", param_hint="SOURCE OUT"
        )
    settings = load_config(mapping, ImportMapping) if mapping is not None else ImportMapping()
    with progress_bars(Console()) as bars:
        summary = import_tables(
            source,
            out,
            settings,
            memory_limit=memory_limit,
            threads=threads,
            progress=bars.under("importing"),
        )
        bars("importing", 1, 1, "")
    rows = [(name, f"{count:,} rows") for name, count in summary.rows.items()]
    print_summary("Your tables", rows, "\n".join(f"- {note}" for note in summary.notes), out)


def print_summary(title: str, rows: list[tuple[str, str]], absent: str, out: Path) -> None:
    """Print what an import counted, what the data set lacks or the import made, and where it lies."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    console = Console()
    console.print(table)
    console.print(absent, markup=False, highlight=False, soft_wrap=True)
    console.print(f"written to {out}")
