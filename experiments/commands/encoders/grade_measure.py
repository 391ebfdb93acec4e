"""`dashclip grade choose` and `report`: graders beside people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments.commands.encoders.grade import HOLDOUT, READERS, grade, open_readers
from experiments.commands.options import DATA, named_folders

GRADERS = Annotated[
    list[str],
    typer.Argument(help="NAME=FOLDER of graders: of `grade train`, or a run with pairs that people graded."),
]


@grade.command("choose")
def choose_command(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Folder for `choice.json` and `choice.md`.")],
    graders: GRADERS,
    encoder: READERS = None,
    config: HOLDOUT = None,
) -> None:
    """Compare graders on **validation** queries and choose the best macro F1.

    Example: `dashclip grade choose runs/data runs/graders overlap=runs/overlap stack=runs/stack`
    """
    from embeddings.catalog.holdout import VALIDATION

    _measure(data, out, graders, role=VALIDATION, name="choice", encoders=encoder, config=config)


@grade.command("report")
def report_command(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Folder for `grading.json` and `grading.md`.")],
    graders: GRADERS,
    chosen: Annotated[str | None, typer.Option(help="Name of the grader chosen before.")] = None,
    graded: Annotated[
        Path | None, typer.Option(help="Folder of `grade run`: its shares of grades beside people's.")
    ] = None,
    price: Annotated[float, typer.Option(help="Money for a million tokens.")] = 0.0,
    encoder: READERS = None,
    config: HOLDOUT = None,
) -> None:
    """Report graders on **test** queries: look once, after choosing.

    Example: `dashclip grade report runs/data runs/graders stack=runs/graders/stack --chosen stack`
    """
    from embeddings.catalog.holdout import TEST

    _measure(
        data,
        out,
        graders,
        role=TEST,
        name="grading",
        chosen=chosen,
        run=graded,
        price=price,
        encoders=encoder,
        config=config,
    )


def _measure(
    data: Path,
    out: Path,
    graders: list[str],
    *,
    role: int,
    name: str,
    chosen: str | None = None,
    run: Path | None = None,
    price: float = 0.0,
    encoders: list[str] | None = None,
    config: Path | None = None,
) -> None:
    from rich.markdown import Markdown

    from embeddings.grading.answers import RunAnswers, open_grader
    from embeddings.grading.pairs import Catalogue, GradingError, read_graded_pairs
    from embeddings.grading.trained import TrainedGrader
    from experiments.grading.holdout import holdout_of
    from experiments.grading.page import to_markdown
    from experiments.grading.report import measure_graders
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from features.artifacts import atomic_write_bytes

    opened = {name: open_grader(folder) for name, folder in named_folders(graders).items()}
    if chosen is not None and chosen not in opened:
        raise GradingError(f"--chosen must be one of {', '.join(opened)}, got {chosen!r}")
    recorded = {name: grader.holdout for name, grader in opened.items()}
    if run is not None:
        recorded[str(run)] = RunAnswers.load(run).holdout
    tables = {
        f"{table} of {name}": Path(folder)
        for name, grader in opened.items()
        if isinstance(grader, TrainedGrader)
        for table, folder in grader.tables.items()
    }
    holdout = holdout_of(
        config, graders=recorded, tables=tables, otherwise="compare them one by one, or train them with one"
    )
    catalogue = Catalogue.read(data)
    graded = read_graded_pairs(data, holdout, catalogue=catalogue)
    console = Console()
    with progress_bars(console) as bars:
        found = measure_graders(
            data,
            opened,
            graded,
            catalogue,
            role=role,
            holdout=holdout,
            chosen=chosen,
            run=run,
            readers=open_readers(encoders),
            price_per_million_tokens=price,
            progress=bars,
        )
    found.write(out / f"{name}.json")
    text = to_markdown(found)
    atomic_write_bytes(out / f"{name}.md", text.encode())
    console.print(Markdown(text))
    if found.chosen is not None:
        console.print(f"chosen: {found.chosen}")
