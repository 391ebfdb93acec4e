"""`dashclip init`: a project folder that fits a data folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from experiments.commands.options import DATA

if TYPE_CHECKING:
    from experiments.projects.estimates import Estimates
    from experiments.projects.survey import Survey


def init(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Folder for the project; nothing in it is overwritten.")] = Path(
        "project"
    ),
    size: Annotated[
        Literal["small", "tiny"],
        typer.Option(help="Of the encoders; `tiny` shows within minutes that every part runs, no more."),
    ] = "small",
    estimates: Annotated[
        bool,
        typer.Option("--estimates/--no-estimates", help="Measure on a sample how long the jobs may take."),
    ] = True,
) -> None:
    """Look at DATA and write a project that fits it: three configs and a README of the commands to run.

    Without queries there are no features of queries, without images encoders read titles, without grades they
    stop after stage 1, a short log gets a short test, without purchases there is no history. Each key of the
    configs has its meaning beside it.

    Example: `dashclip init my_log my_project`
    """
    from experiments.projects.project import findings, write_project
    from experiments.projects.survey import survey
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console

    console = Console()
    with progress_bars(console) as bars:
        bars("looking at the tables", 0, 1)
        found = survey(data)
        bars("looking at the tables", 1, 1)

        def measure(survey: Survey, **drafts: Any) -> Estimates | None:
            from experiments.projects.estimates import estimate

            try:
                return estimate(survey, progress=bars, **drafts)
            except ValueError as problem:
                console.print(f"no estimates: {problem}", style="yellow", markup=False, soft_wrap=True)
                return None

        written = write_project(found, out, size=size, measure=measure if estimates else None)
    for sentence in findings(found):
        console.print(f"• {sentence}", markup=False, highlight=False)
    for path in written:
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"next: the commands of {written[-1]}, run in {out}", markup=False, soft_wrap=True)
