"""`dashclip grade`: people grade some pairs, a model learns it and grades the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.commands.options import DATA, DEVICE, named_folders

if TYPE_CHECKING:
    from embeddings.grading.features import TextReader
    from embeddings.grading.language_models.prompt import Prompt
    from embeddings.grading.pairs import Catalogue, GradedPairs
    from embeddings.grading.trained import TrainedGrader
    from embeddings.training.loop import Report

grade = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Grade the relevance of pairs: learn from people's grades, choose, grade the catalogue, report.",
)

READERS = Annotated[
    list[str] | None,
    typer.Option(
        "--encoder",
        help="NAME=FOLDER of the encoder that made the table NAME: it reads stuffed titles, too; repeat it.",
    ),
]
HOLDOUT = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Config whose `[holdout]` divides the queries, where no record does; one that contradicts a "
        "record is refused.",
    ),
]
SEED = Annotated[int, typer.Option(help="Seed of what is drawn.")]


@grade.command("pairs")
def pairs_command(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Parquet file of pairs to grade.")],
    tables: Annotated[
        Path | None,
        typer.Option(help="Folder with `products/` and `queries/`: their nearest neighbours, too."),
    ] = None,
    lexical: Annotated[int, typer.Option(help="Products of a query by letters in common.")] = 8,
    vectors: Annotated[int, typer.Option(help="Products of a query by vectors.")] = 8,
    log: Annotated[int, typer.Option(help="Products shown most often for a query.")] = 4,
    random: Annotated[int, typer.Option(help="Random products of a query.")] = 2,
    people: Annotated[
        str | None,
        typer.Option(help="Pairs that people graded, too: `held-out` (no train queries) or `all`."),
    ] = None,
    coverage: Annotated[float, typer.Option(help="Share of all searches whose query gets pairs.")] = 0.99,
    config: HOLDOUT = None,
    seed: SEED = 0,
) -> None:
    """Choose the pairs to grade: the most searched queries, products from several sources.

    A model that grades the pairs of `--people held-out` can be compared with people by `grade choose` and
    `grade report`.

    Example: `dashclip grade pairs runs/data runs/pairs.parquet --tables runs/lsa`
    """
    import pyarrow.parquet as pq

    from embeddings.catalog.holdout import TRAIN
    from embeddings.grading.candidates import CandidateConfig, candidate_pairs
    from embeddings.grading.graders import open_tables
    from embeddings.grading.pairs import Catalogue, GradingError, read_graded_pairs
    from experiments.grading.holdout import holdout_of
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from features.artifacts import replaced_file

    settings = CandidateConfig(
        lexical=lexical, vectors=vectors, log=log, random=random, coverage=coverage, seed=seed
    )
    if people not in (None, "held-out", "all"):
        raise typer.BadParameter(f"must be `held-out` or `all`, got {people!r}", param_hint="--people")
    if people is None and config is not None:
        raise GradingError("--config says which queries are held out, which --people alone asks; name both")
    catalogue = Catalogue.read(data)
    graded = None
    if people is not None:
        holdout = holdout_of(config, tables=None if tables is None else {"tables": tables})
        graded = read_graded_pairs(data, holdout, catalogue=catalogue)
        if people == "held-out":
            graded = graded.take((graded.role_N != TRAIN).nonzero()[0])
    with progress_bars(Console()) as bars:
        found = candidate_pairs(
            data,
            catalogue,
            config=settings,
            tables=None if tables is None else open_tables({"tables": str(tables)})["tables"],
            people=graded,
            progress=bars,
        )
    with replaced_file(out) as temporary:
        pq.write_table(found.table, temporary, compression="zstd")
    sources = ", ".join(f"{name} {count:,}" for name, count in found.pairs_by_source.items())
    typer.echo(
        f"{found.table.num_rows:,} pairs of {found.queries:,} of {found.queries_in_all:,} queries, "
        f"{found.coverage:.1%} of searches ({sources}; a pair may have several) in {out}"
    )


@grade.command("prompt")
def prompt_command(
    out: Annotated[Path, typer.Argument(help="TOML file to write; an existing one stays as it is.")],
) -> None:
    """Write a prompt to start from, or show the checksum and text of one that exists.

    Example: `dashclip grade prompt runs/prompt.toml`
    """
    from embeddings.grading.language_models.prompt import TEMPLATE, Prompt
    from features.artifacts import atomic_write_bytes

    if not out.exists():
        atomic_write_bytes(out, TEMPLATE.encode())
    prompt = Prompt.read(out)
    typer.echo(f"{out}, version {prompt.version}, checksum {prompt.sha256}\n")
    shown = prompt.model_copy(update={"examples_from": "prompt"})
    for message in shown.messages("<query>", "<product>"):
        typer.echo(f"[{message['role']}]\n{message['content']}\n")
    if prompt.examples_from == "nearest":
        typer.echo(
            f"and {prompt.nearest_count} nearest examples before <query>, which the checksum will cover"
        )


def open_prompt(path: Path, examples: Path | None, config: Path | None = None) -> Prompt:
    """A prompt file with what it may choose examples from: those of the queries that `config` trains on.

    Raises:
        GradingError: one of both does not fit the other.
    """
    from embeddings.grading.language_models.examples import NearestExamples
    from embeddings.grading.language_models.prompt import Prompt
    from embeddings.grading.pairs import Catalogue, GradingError, read_graded_pairs
    from experiments.grading.holdout import holdout_of

    prompt = Prompt.read(path)
    if (prompt.examples_from == "nearest") != (examples is not None):
        raise GradingError(
            f'examples_from = "nearest" in {path} and --examples DATA belong together; give both or neither'
        )
    if examples is None:
        return prompt
    holdout = holdout_of(config)
    graded = read_graded_pairs(examples, holdout, catalogue=Catalogue.read(examples))
    return prompt.with_nearest(NearestExamples(graded, prompt.nearest_count, holdout=holdout))


@grade.command("train")
def train_command(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Folder of the grader; an older one is replaced.")],
    kind: Annotated[
        str,
        typer.Option(
            "--grader", help="`overlap`, `vectors`, `stack`, `cross-encoder`, `tuned-model` or `combined`."
        ),
    ] = "stack",
    classifier: Annotated[str, typer.Option(help="Of `stack`: `boosting` or `logistic`.")] = "boosting",
    tables: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER with `products/` and `queries/`; repeat it.")
    ] = None,
    aligned: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=FOLDER of an encoder aligned with these grades: the calibration alone reads it."
        ),
    ] = None,
    stuffed: Annotated[
        int,
        typer.Option(help="Foreign titles stuffed with the query's words, learnt as irrelevant, per query."),
    ] = 1,
    encoder: READERS = None,
    of: Annotated[
        list[str] | None,
        typer.Option(help="Of `combined`: NAME=FOLDER of a trained grader; repeat it."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="Of `cross-encoder`: folder of a text encoder, or `all-minilm-l6-v2`. Of `tuned-model`: "
            "folder of a causal language model."
        ),
    ] = None,
    prompt: Annotated[Path | None, typer.Option(help="Of `tuned-model`: what it is asked.")] = None,
    most_pairs: Annotated[
        int | None, typer.Option(help="Of fine-tuned graders: pairs of people to learn from at most.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Of fine-tuned graders: epochs at most.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of fine-tuned graders.")] = None,
    precision: Annotated[
        str, typer.Option(help="Of fine-tuned graders: `float32`, or `bfloat16` where it is faster.")
    ] = "float32",
    config: HOLDOUT = None,
    device: DEVICE = "cpu",
    seed: SEED = 0,
) -> None:
    """Train a grader on people's grades of train queries; thresholds come from validation queries.

    Tables of an encoder that was trained on the same grades go to `--aligned`: it knows those of the train
    queries by heart, so the classifier may not learn to trust it.

    With `--encoder`, `stack` learns from stuffed titles with vectors of their own: of an aligned table the
    encoder reads `--stuffed` titles for each validation query, of another one for each train query.

    `combined` asks the graders of `--of` and learns on validation queries whom to believe, and by stuffed
    titles who is fooled; it is as slow as all of them together.

    What the encoders of the tables held out is held out here, too. A fine-tuning that is killed goes on with
    the same command.

    Example: `dashclip grade train runs/data runs/graders/stack --tables lsa=runs/lsa`
    """
    from embeddings.grading.pairs import Catalogue, GradingError, read_graded_pairs
    from experiments.grading.holdout import holdout_of
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from features.artifacts import refuse_to_replace_input

    refuse_to_replace_input(out, data)
    fine_tuned = kind in FINE_TUNED
    if fine_tuned and start is None:
        raise GradingError(f"the grader {kind} begins with a published model; name its folder by --start")
    if fine_tuned and (tables or aligned or encoder):
        raise GradingError(
            f"the grader {kind} reads texts alone; leave out --tables, --aligned and --encoder"
        )
    if not fine_tuned and start is not None:
        raise GradingError(
            f"the grader {kind} begins with no model; leave out --start, or name another grader"
        )
    folders, aligned_folders = (
        named_folders(rows or [], option=option)
        for option, rows in (("--tables", tables), ("--aligned", aligned))
    )
    members = open_members(of, kind=kind, own=tables or aligned, device=device)
    holdout = holdout_of(
        config,
        tables={**folders, **aligned_folders},
        graders={name: one.holdout for name, one in members.items()},
    )
    common = {"kind": kind, "stuffed_per_query": stuffed, "seed": seed, "holdout": holdout}
    catalogue = Catalogue.read(data)
    graded = read_graded_pairs(data, holdout, catalogue=catalogue)
    grader: TrainedGrader
    with progress_bars(Console()) as bars:
        if fine_tuned:
            grader = _fine_tuned(
                graded,
                catalogue,
                out,
                settings={**common, "start": start, "most_pairs": most_pairs},
                optimizer={"epochs": epochs, "learning_rate": learning_rate, "precision": precision},
                prompt=prompt,
                device=device,
                show=bars.training,
            )
        elif kind == COMBINED:
            from embeddings.grading.combined import CombinedConfig, combine_graders

            where = {name: str(one.folder) for name, one in members.items()}
            grader = combine_graders(
                graded,
                catalogue,
                out,
                config=CombinedConfig.model_validate({**common, "graders": where}),
                members=members,
                readers=open_readers(encoder),
                progress=bars,
            )
        else:
            from embeddings.grading.graders import GraderConfig, train_grader

            settings = GraderConfig.model_validate(
                {
                    **common,
                    "classifier": classifier,
                    "tables": {name: str(folder) for name, folder in folders.items()},
                    "aligned": {name: str(folder) for name, folder in aligned_folders.items()},
                }
            )
            grader = train_grader(
                graded, catalogue, out, config=settings, readers=open_readers(encoder), progress=bars
            )
    manifest = grader.manifest
    typer.echo(
        f"{grader.name} learnt from {manifest.train_pairs:,} pairs of people and {manifest.stuffed_pairs:,} "
        f"stuffed ones, {manifest.read}; thresholds from {manifest.validation_pairs:,} pairs; in {out}"
    )


def open_readers(encoders: list[str] | None) -> dict[str, TextReader]:
    """The encoders that `--encoder` names.

    Raises:
        ValueError: a folder holds none.
    """
    from experiments.scoring.texts import VectorSource

    folders = named_folders(encoders or [], option="--encoder")
    return {name: VectorSource.open(folder, None) for name, folder in folders.items()}


def open_members(
    of: list[str] | None, *, kind: str, own: list[str] | None, device: str
) -> dict[str, TrainedGrader]:
    """The graders that `--of` names, at least two of them for a combined one and none for another.

    Raises:
        GradingError: says what is missing or too much.
    """
    from embeddings.grading.answers import open_trained
    from embeddings.grading.pairs import GradingError

    folders = named_folders(of or [], option="--of")
    if kind != COMBINED:
        if folders:
            raise GradingError(f"the grader {kind} asks no other graders; leave out --of, or say combined")
        return {}
    if len(folders) < 2:
        raise GradingError(
            f"the grader {kind} needs two trained graders at least; name them by --of NAME=FOLDER"
        )
    if own:
        raise GradingError(f"the grader {kind} has no tables of its own; leave out --tables and --aligned")
    return {name: open_trained(folder, device=device) for name, folder in folders.items()}


#: The grader that asks others.
COMBINED = "combined"
#: Graders that begin with a published model.
FINE_TUNED = ("cross-encoder", "tuned-model")


def _fine_tuned(
    graded: GradedPairs,
    catalogue: Catalogue,
    out: Path,
    *,
    settings: dict[str, Any],
    optimizer: dict[str, Any],
    prompt: Path | None,
    device: str,
    show: Callable[[Report], None],
) -> TrainedGrader:
    given = {name: value for name, value in optimizer.items() if value is not None}
    if settings["kind"] == "cross-encoder":
        from embeddings.grading.fine_tuned.cross_encoder import CrossEncoderConfig, train_cross_encoder

        config = CrossEncoderConfig.model_validate(settings).with_optimizer(**given)
        return train_cross_encoder(graded, catalogue, out, config=config, device=device, progress=show)
    from embeddings.grading.fine_tuned.tuned_model import TunedModelConfig, tune_model
    from embeddings.grading.pairs import GradingError

    if prompt is None:
        raise GradingError(
            "the grader tuned-model learns to answer a prompt; give --prompt FILE (`dashclip grade prompt`)"
        )
    return tune_model(
        graded,
        catalogue,
        out,
        config=TunedModelConfig.model_validate(settings).with_optimizer(**given),
        prompt=open_prompt(prompt, None),
        device=device,
        progress=show,
    )
