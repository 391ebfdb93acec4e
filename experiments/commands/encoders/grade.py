"""`dashclip grade`: people grade some pairs, a model learns it and grades the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.commands.options import DATA, DEVICE, named_folders

if TYPE_CHECKING:
    from embeddings.grading.language_models.prompt import Prompt
    from embeddings.grading.pairs import Catalogue, GradedPairs
    from embeddings.grading.trained import TrainedGrader
    from embeddings.training.loop import Report

grade = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Grade the relevance of pairs: learn from people's grades, choose, grade the catalogue, report.",
)

GRADERS = Annotated[
    list[str],
    typer.Argument(help="NAME=FOLDER of graders: of `grade train`, or a run with pairs that people graded."),
]
READERS = Annotated[
    list[str] | None,
    typer.Option(
        "--encoder",
        help="NAME=FOLDER of the encoder that made the table NAME of a grader: it reads stuffed titles, too; "
        "repeat it.",
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
    seed: SEED = 0,
) -> None:
    """Choose the pairs to grade: the most searched queries, products from several sources.

    A model that grades the pairs of `--people held-out` can be compared with people by `grade choose` and
    `grade report`.

    Example: `dashclip grade pairs runs/data runs/pairs.parquet --tables runs/lsa`
    """
    import pyarrow.parquet as pq

    from embeddings.catalog.holdout import TRAIN, HoldoutConfig
    from embeddings.grading.candidates import CandidateConfig, candidate_pairs
    from embeddings.grading.graders import open_tables
    from embeddings.grading.pairs import Catalogue, read_graded_pairs
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from features.artifacts import replaced_file

    config = CandidateConfig(
        lexical=lexical, vectors=vectors, log=log, random=random, coverage=coverage, seed=seed
    )
    if people not in (None, "held-out", "all"):
        raise typer.BadParameter(f"must be `held-out` or `all`, got {people!r}", param_hint="--people")
    catalogue = Catalogue.read(data)
    graded = None
    if people is not None:
        graded = read_graded_pairs(data, HoldoutConfig(), catalogue=catalogue)
        if people == "held-out":
            graded = graded.take((graded.role_N != TRAIN).nonzero()[0])
    with progress_bars(Console()) as bars:
        found = candidate_pairs(
            data,
            catalogue,
            config=config,
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


def open_prompt(path: Path, examples: Path | None) -> Prompt:
    """A prompt file with what it may choose examples from.

    Raises:
        GradingError: one of both does not fit the other.
    """
    from embeddings.catalog.holdout import HoldoutConfig
    from embeddings.grading.language_models.examples import NearestExamples
    from embeddings.grading.language_models.prompt import Prompt
    from embeddings.grading.pairs import Catalogue, GradingError, read_graded_pairs

    prompt = Prompt.read(path)
    if (prompt.examples_from == "nearest") != (examples is not None):
        raise GradingError(
            f'examples_from = "nearest" in {path} and --examples DATA belong together; give both or neither'
        )
    if examples is None:
        return prompt
    graded = read_graded_pairs(examples, HoldoutConfig(), catalogue=Catalogue.read(examples))
    return prompt.with_nearest(NearestExamples(graded, prompt.nearest_count))


@grade.command("train")
def train_command(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Folder of the grader; an older one is replaced.")],
    kind: Annotated[
        str,
        typer.Option("--grader", help="`overlap`, `vectors`, `stack`, `cross-encoder` or `tuned-model`."),
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
    device: DEVICE = "cpu",
    seed: SEED = 0,
) -> None:
    """Train a grader on people's grades of train queries; thresholds come from validation queries.

    Tables of an encoder that was trained on the same grades go to `--aligned`: it knows those of the train
    queries by heart, so the classifier may not learn to trust it.

    A fine-tuning that is killed goes on with the same command.

    Example: `dashclip grade train runs/data runs/graders/stack --tables lsa=runs/lsa`
    """
    from embeddings.catalog.holdout import HoldoutConfig
    from embeddings.grading.pairs import Catalogue, GradingError, read_graded_pairs
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from features.artifacts import refuse_to_replace_input

    refuse_to_replace_input(out, data)
    common = {"kind": kind, "stuffed_per_query": stuffed, "seed": seed}
    catalogue = Catalogue.read(data)
    graded = read_graded_pairs(data, HoldoutConfig(), catalogue=catalogue)
    fine_tuned = kind in FINE_TUNED
    if fine_tuned and start is None:
        raise GradingError(f"the grader {kind} begins with a published model; name its folder by --start")
    if fine_tuned and (tables or aligned):
        raise GradingError(f"the grader {kind} reads texts alone; leave out --tables and --aligned")
    if not fine_tuned and start is not None:
        raise GradingError(
            f"the grader {kind} begins with no model; leave out --start, or name another grader"
        )
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
        else:
            from embeddings.grading.graders import GraderConfig, train_grader

            folders, aligned_folders = (
                {name: str(folder) for name, folder in named_folders(rows or [], option=option).items()}
                for option, rows in (("--tables", tables), ("--aligned", aligned))
            )
            config = GraderConfig.model_validate(
                {**common, "classifier": classifier, "tables": folders, "aligned": aligned_folders}
            )
            grader = train_grader(graded, catalogue, out, config=config, progress=bars)
    manifest = grader.manifest
    typer.echo(
        f"{grader.name} learnt from {manifest.train_pairs:,} pairs of people and {manifest.stuffed_pairs:,} "
        f"stuffed ones, {manifest.read}; thresholds from {manifest.validation_pairs:,} pairs; in {out}"
    )


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


@grade.command("choose")
def choose_command(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Folder for `choice.json` and `choice.md`.")],
    graders: GRADERS,
    encoder: READERS = None,
) -> None:
    """Compare graders on **validation** queries and choose the best macro F1.

    Example: `dashclip grade choose runs/data runs/graders overlap=runs/overlap stack=runs/stack`
    """
    from embeddings.catalog.holdout import VALIDATION

    _measure(data, out, graders, role=VALIDATION, name="choice", encoders=encoder)


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
) -> None:
    from rich.markdown import Markdown

    from embeddings.catalog.holdout import HoldoutConfig
    from embeddings.grading.answers import open_grader
    from embeddings.grading.pairs import Catalogue, GradingError, read_graded_pairs
    from embeddings.grading.trained import TrainedGrader
    from experiments.grading.page import to_markdown
    from experiments.grading.report import measure_graders
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from experiments.scoring.texts import VectorSource
    from features.artifacts import atomic_write_bytes

    opened = {name: open_grader(folder) for name, folder in named_folders(graders).items()}
    configs = [grader.manifest.training for grader in opened.values() if isinstance(grader, TrainedGrader)]
    if len({config.holdout.model_dump_json() for config in configs}) > 1:
        raise GradingError("the graders were trained with different hold-outs; train them with one")
    if chosen is not None and chosen not in opened:
        raise GradingError(f"--chosen must be one of {', '.join(opened)}, got {chosen!r}")
    holdout = configs[0].holdout if configs else HoldoutConfig()
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
            readers={
                name: VectorSource.open(folder, None)
                for name, folder in named_folders(encoders or [], option="--encoder").items()
            },
            price_per_million_tokens=price,
            progress=bars,
        )
    found.write(out / f"{name}.json")
    text = to_markdown(found)
    atomic_write_bytes(out / f"{name}.md", text.encode())
    console.print(Markdown(text))
    if found.chosen is not None:
        console.print(f"chosen: {found.chosen}")
