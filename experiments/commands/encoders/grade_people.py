"""`dashclip grade audit` and `grade export`: people's grades looked at again, and as lessons for a model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from experiments.commands.encoders.grade import SEED, grade, open_prompt
from experiments.commands.options import DATA, named_folders


@grade.command("audit")
def audit_command(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="CSV file for people, with an empty column `grade`.")],
    tables: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER with `products/` and `queries/`; repeat it.")
    ] = None,
    folds: Annotated[int, typer.Option(help="Parts of the queries; each is judged by the others.")] = 5,
    count: Annotated[int, typer.Option("--n", help="Most pairs to write.")] = 500,
    seed: SEED = 0,
) -> None:
    """Find people's grades that a grader of other queries speaks against, those of every role.

    Fill in `grade` where you look; `grade import --answers` then takes your grade in place of the given one.

    Example: `dashclip grade audit runs/data runs/audit.csv --tables lsa=runs/lsa`
    """
    from rich.console import Console

    from embeddings.catalog.holdout import HoldoutConfig
    from embeddings.grading.audit import audit_grades, write_audit
    from embeddings.grading.features import PairFeatures
    from embeddings.grading.graders import open_tables
    from embeddings.grading.pairs import Catalogue, read_graded_pairs
    from embeddings.relevance.grades import GRADES
    from experiments.runtime.progress import progress_bars

    catalogue = Catalogue.read(data)
    graded = read_graded_pairs(data, HoldoutConfig(), catalogue=catalogue)
    folders = {name: str(folder) for name, folder in named_folders(tables or []).items()}
    with progress_bars(Console()) as bars:
        features_NF = PairFeatures(catalogue, open_tables(folders)).of_many(graded.pairs, progress=bars)
        audit = audit_grades(graded, features_NF, folds=folds, seed=seed, progress=bars)
    written = write_audit(audit, graded, out, count=count)
    suspicious = len(audit.rows)
    typer.echo(
        f"{suspicious:,} of {len(graded):,} grades are suspicious ({suspicious / len(graded):.1%}); "
        f"the {written:,} most suspicious are in {out}"
    )
    kinds = Counter((int(graded.grade_N[row]), int(audit.suggested_N[row])) for row in audit.rows.tolist())
    for (given, suggested), pairs in kinds.most_common():
        typer.echo(f"{GRADES[given]}, rather {GRADES[suggested]}: {pairs:,}")


@grade.command("export")
def export_command(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Folder for `train.jsonl` and `validation.jsonl`.")],
    prompt: Annotated[Path, typer.Option(help="Prompt file that the tuned model will be asked with.")],
) -> None:
    """Write people's grades as chats to fine-tune a language model on; test queries stay out.

    Example: `dashclip grade export runs/data runs/chats --prompt runs/prompt.toml`
    """
    from embeddings.catalog.holdout import HoldoutConfig
    from embeddings.grading.language_models.fine_tuning import export_chats
    from embeddings.grading.language_models.prompt import Prompt
    from embeddings.grading.pairs import Catalogue, read_graded_pairs
    from features.artifacts import refuse_to_replace_input

    refuse_to_replace_input(out, data)
    nearest = Prompt.read(prompt).examples_from == "nearest"
    question = open_prompt(prompt, data if nearest else None)
    graded = read_graded_pairs(data, HoldoutConfig(), catalogue=Catalogue.read(data))
    found = export_chats(graded, question, out)
    for name, pairs in found.fine_tuning_pairs.items():
        typer.echo(f"{out / name}.jsonl: {pairs:,} pairs, about {found.tokens[name]:,} tokens an epoch")
