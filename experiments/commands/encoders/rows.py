"""The option `--row NAME=FOLDER` of the commands that compare embedding tables."""

from pathlib import Path

import typer


def named_folders(rows: list[str]) -> dict[str, Path]:
    """NAME=FOLDER, as given by `--row`, by name."""
    named = dict(row.partition("=")[::2] for row in rows)
    for name, folder in named.items():
        if not name or not folder:
            raise typer.BadParameter(f"must be NAME=FOLDER, got {name or folder!r}", param_hint="--row")
    return {name: Path(folder) for name, folder in named.items()}
