"""`dashclip abtest coverage`: how often do intervals hold the true lift?"""

from pathlib import Path
from typing import Annotated

import typer

from experiments.commands.abtest import abtest, require_tea_tasting, write_run_report


@abtest.command("coverage")
def coverage(
    run: Annotated[Path, typer.Argument(help="Folder of a finished `dashclip abtest run`.")],
    repeats: Annotated[int, typer.Option(min=2, help="Small experiments to simulate.")] = 200,
) -> None:
    """Play a simulated experiment again with other luck and another salt, and count what its intervals hold.

    Searches, scores and purchase histories are those of the run; who sees which variant, what is clicked and
    which budgets end are drawn anew. Of 95 % intervals, 95 % should hold the true lift: the plain ones, those
    made narrower by what consumers did before (CUPED), and those of all looks on every day for who looks
    daily. A stopped call goes on where it was. Writes coverage.json and coverage.md into RUN, and the
    coverage into its result.json.

    Example: `dashclip abtest coverage runs/abtest`
    """
    import torch
    from rich.table import Table

    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from features.artifacts import atomic_write_bytes

    require_tea_tasting()
    from experiments.abtest.simulated.coverage import COVERAGE, measure_coverage
    from experiments.reports.abtest.coverage_text import (
        COLUMNS,
        coverage_markdown,
        coverage_rows,
        coverage_sentences,
    )

    torch.set_num_threads(1)
    console = Console()
    command = f"dashclip abtest coverage {run} --repeats {repeats}"
    with progress_bars(console) as bars:
        found = measure_coverage(run, repeats=repeats, command=command, progress=bars)
    found.write(run / COVERAGE)
    markdown = (run / COVERAGE).with_suffix(".md")
    atomic_write_bytes(markdown, coverage_markdown(found).encode())
    grid = Table(*COLUMNS, title="simulated: intervals that hold the true lift")
    for row in coverage_rows(found):
        grid.add_row(*row)
    console.print(grid)
    for sentence in coverage_sentences(found):
        console.print(f"• {sentence}", highlight=False)
    for path in (run / COVERAGE, markdown, *write_run_report(run)):
        console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
