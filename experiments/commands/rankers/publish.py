"""`dashclip publish`: a sweep's table into the repository."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.commands.options import PUBLISHED_NAME, PUBLISHED_RESULTS


def publish_command(
    sweep: Annotated[Path, typer.Argument(help="Folder of a sweep with its report.")],
    name: PUBLISHED_NAME,
    results: PUBLISHED_RESULTS = Path("experiments/results"),
    readme: Annotated[Path, typer.Option(help="Document whose results block is written again.")] = Path(
        "docs/results.md"
    ),
) -> None:
    """Copy a report to the published results and write the results block of docs/results.md again.

    Refused while runs of the sweep are missing.

    Example: `dashclip publish runs/demo marketplace_table2`
    """
    from experiments.reports.publish import publish
    from experiments.runtime.terminal import Console

    for path in publish(sweep, name, results=results, readme=readme):
        Console().print(f"wrote {path}", highlight=False)
