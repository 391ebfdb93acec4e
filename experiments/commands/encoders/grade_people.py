"""`dashclip grade audit`, `shares`, `export`: people's grades looked at again, spared, and as lessons."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from experiments.commands.encoders.grade import HOLDOUT, SEED, grade, open_prompt
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
    from embeddings.catalog.holdout import HoldoutConfig
    from embeddings.grading.audit import audit_grades, write_audit
    from embeddings.grading.features import PairFeatures
    from embeddings.grading.graders import open_tables
    from embeddings.grading.pairs import Catalogue, read_graded_pairs
    from embeddings.relevance.grades import GRADES
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console

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


@grade.command("shares")
def shares_command(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Folder for data, graders and `ablation.toml`.")],
    share: Annotated[list[float], typer.Option(help="Share of the pairs that people grade; repeat it.")],
    source: Annotated[
        list[str] | None,
        typer.Option(help="Whose grades count as people's; the first wins. `human` if none."),
    ] = None,
    tables: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER with `products/` and `queries/` that the grader reads; repeat it."),
    ] = None,
    config: Annotated[
        str, typer.Option(help="Encoders that will be trained: a TOML file or a shipped one.")
    ] = ("encoders_small"),
    seeds: Annotated[int, typer.Option(min=2, help="Training seeds of each variant.")] = 5,
    seed: SEED = 0,
) -> None:
    """Prepare the measurement of how many of people's grades are needed.

    For each share a grader learns from that many of people's grades and grades all pairs of train and
    validation queries. `encode ablate` then trains stage 2 on people's grades of all pairs, on the share
    alone, on the share with the grader's of the rest, and on the grader's alone, and measures each with
    people's grades of test queries.

    Example: `dashclip grade shares runs/data runs/shares --share 0.05 --share 0.25 --tables lsa=runs/lsa`
    """
    from experiments.grading.shares import ABLATION, SharePlan, write_shares
    from experiments.grading.shares import DATA as DATA_FOLDER
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console

    plan = SharePlan(
        shares=tuple(share),
        sources=tuple(source or ["human"]),
        tables={name: str(folder.resolve()) for name, folder in named_folders(tables or []).items()},
        config=config,
        seeds=tuple(range(1, seeds + 1)),
        seed=seed,
    )
    with progress_bars(Console()) as bars:
        found = write_shares(data, out, plan, progress=bars)
    for row in found.shares:
        typer.echo(
            f"{row.share:g}: {row.people_pairs:,} of {found.pairs:,} pairs graded by people; on the others "
            f"the grader has macro F1 {row.macro_f1:.3f}, quadratic kappa {row.qwk:.3f}"
        )
    typer.echo(f"now: dashclip encode ablate {out / DATA_FOLDER} {out / 'runs'} --config {out / ABLATION}")


@grade.command("export")
def export_command(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Folder for `train.jsonl` and `validation.jsonl`.")],
    prompt: Annotated[Path, typer.Option(help="Prompt file that the tuned model will be asked with.")],
    config: HOLDOUT = None,
) -> None:
    """Write people's grades as chats to fine-tune a language model on; test queries stay out.

    Example: `dashclip grade export runs/data runs/chats --prompt runs/prompt.toml`
    """
    from embeddings.grading.language_models.fine_tuning import export_chats
    from embeddings.grading.language_models.prompt import Prompt
    from embeddings.grading.pairs import Catalogue, read_graded_pairs
    from experiments.grading.holdout import holdout_of
    from features.artifacts import refuse_to_replace_input

    refuse_to_replace_input(out, data)
    nearest = Prompt.read(prompt).examples_from == "nearest"
    question = open_prompt(prompt, data if nearest else None, config)
    graded = read_graded_pairs(data, holdout_of(config), catalogue=Catalogue.read(data))
    found = export_chats(graded, question, out)
    for name, pairs in found.fine_tuning_pairs.items():
        typer.echo(f"{out / name}.jsonl: {pairs:,} pairs, about {found.tokens[name]:,} tokens an epoch")
