"""`dashclip encode pretrain`, `align`, `run`: train the encoders, and make tables with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from experiments.commands.options import (
    CONFIG,
    DATA,
    DEVICE,
    MLFLOW,
    MLFLOW_EXPERIMENT,
    tracker_of,
)

if TYPE_CHECKING:
    from embeddings.encoders.dashclip import DashClipEncoder
    from embeddings.stages.run_folder import StageRun
    from experiments.encoders.config import EncodersConfig
    from experiments.runtime.terminal import Console

encode = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Train DashCLIP encoders, encode catalogue and queries, measure retrieval and probes.",
)


@encode.command("pretrain")
def pretrain_command(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Folder of the run; an interrupted run continues.")],
    config: CONFIG = Path("encoders_small"),
    start: Annotated[
        Path | None,
        typer.Option(
            help="Encoder to start from (`encode import-blip`, `encode from-bert`), the folder of a BERT, or "
            "`all-minilm-l6-v2`; from scratch without it."
        ),
    ] = None,
    device: DEVICE = "cpu",
    mlflow: MLFLOW = None,
    mlflow_experiment: MLFLOW_EXPERIMENT = "dashclip",
) -> None:
    """Stage 1: adapt the product encoders to the catalogue by ITC and ITM (paper 3.2.1).

    On several GPUs: `torchrun --nproc-per-node 4 -m experiments encode pretrain DATA OUT --device cuda`

    Example: `dashclip encode pretrain runs/data runs/encoders/pretrain --config encoders_small`
    """
    from embeddings.stages.stage1 import advice
    from experiments.encoders.pipeline import run_pretrain
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console

    console = Console()
    settings, encoder = _read_start(config, start, console)
    tracker = tracker_of(mlflow, mlflow_experiment)
    with progress_bars(console) as bars:
        run = run_pretrain(
            data, out, settings, start=encoder, device=device, show=bars.training, tracker=tracker
        )
    _print_run(console, run)
    if run.outcome is not None and settings.pretrain is not None:
        to_do = advice(run.outcome, settings.pretrain)
        if to_do:
            console.print(to_do, style="yellow", markup=False, soft_wrap=True)


@encode.command("align")
def align_command(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Folder of the run; an interrupted run continues.")],
    start: Annotated[
        Path | None,
        typer.Option(
            help="Encoder of stage 1: `<run>/encoder` or the run; or as for `pretrain`; from scratch "
            "without it."
        ),
    ] = None,
    config: CONFIG = Path("encoders_small"),
    device: DEVICE = "cpu",
    mlflow: MLFLOW = None,
    mlflow_experiment: MLFLOW_EXPERIMENT = "dashclip",
) -> None:
    """Stage 2: align query and product encoders by PQC on the graded pairs (paper 3.2.2).

    Example: `dashclip encode align runs/data runs/encoders/align --start runs/encoders/pretrain`
    """
    from experiments.encoders.pipeline import run_align
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console

    console = Console()
    settings, encoder = _read_start(config, start, console)
    tracker = tracker_of(mlflow, mlflow_experiment)
    with progress_bars(console) as bars:
        run = run_align(
            data,
            out,
            settings,
            start=encoder,
            device=device,
            show=bars.training,
            tracker=tracker,
            progress=bars,
        )
    _print_run(console, run)


@encode.command("run")
def run_command(
    data: DATA,
    encoder: Annotated[Path, typer.Argument(help="Encoder folder, or the run that made it.")],
    out: Annotated[Path, typer.Argument(help="Folder for `products/`, `queries/` and the quarantine.")],
    only_new: Annotated[
        bool,
        typer.Option("--only-new", help="Keep the vectors that OUT has from this encoder; encode the rest."),
    ] = False,
    config: CONFIG = Path("encoders_small"),
    batch_size: Annotated[int, typer.Option(min=1, help="Products at a time.")] = 64,
    device: DEVICE = "cpu",
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(help="Of the products; auto is bfloat16 where the machine has units for it."),
    ] = "float32",
    part: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Encode the I-th of N parts, as one job of an array; no table yet."),
    ] = None,
) -> None:
    """Encode the whole catalogue and all queries to embedding tables; goes on after a kill.

    The modalities and text columns are those of the config. Unreadable images are listed in
    OUT/quarantine.parquet, and their products encoded from the title alone.

    Jobs that share OUT can each encode a --part; when all have ended, the same command without it puts the
    tables together.

    Example: `dashclip encode run runs/data runs/encoders/align runs/encoders/tables`
    """
    from experiments.encoders.pipeline import encode_tables
    from experiments.encoders.table_parts import encode_tables_part
    from experiments.runtime.parts import Part
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console

    console = Console()
    own = Part.parse(part) if part else None
    settings, loaded = _read(config, encoder)
    assert loaded is not None  # `encoder` was given
    loaded = replace(loaded, precision=precision)
    if own is not None:
        with progress_bars(console) as bars:
            encoded = encode_tables_part(
                data,
                out,
                loaded,
                own,
                inputs=settings.inputs,
                only_new_from=out if only_new else None,
                batch_size=batch_size,
                device=device,
                progress=bars,
            )
        for name, rows in encoded.items():
            console.print(
                f"{name:<10} part {own}: {rows.encoded:,} encoded now, {rows.resumed:,} by a stopped call, "
                f"{rows.copied:,} kept"
            )
        console.print("when all parts have ended, the same command without --part writes the tables")
        return
    with progress_bars(console) as bars:
        products, queries = encode_tables(
            data,
            out,
            loaded,
            inputs=settings.inputs,
            only_new_from=out if only_new else None,
            batch_size=batch_size,
            device=device,
            progress=bars,
        )
    for found in (products, queries):
        if found is None:
            console.print("queries    none: impressions and relevance of this data set have no query")
            continue
        table = found.table
        console.print(
            f"{table.folder.name:<10} {len(table):,} vectors of {table.dim} in {table.folder}: "
            f"{found.encoded:,} encoded now, {found.resumed:,} by a stopped call, {found.copied:,} kept",
            soft_wrap=True,
        )
    console.print(
        f"products without image {products.without_image:,}, without title {products.without_title:,}, "
        f"without either {products.table.manifest.zero_vectors:,} (zeros: they act like missing ids)"
    )
    if products.quarantined:
        console.print(
            f"[bold red]{products.quarantined:,} images could not be read[/]: {out / 'quarantine.parquet'}",
            soft_wrap=True,
        )


def _read(config: Path, encoder: Path | None) -> tuple[EncodersConfig, DashClipEncoder | None]:
    """The config and, if there is one, the encoder in a folder or in the run that made it."""
    from embeddings.encoders.dashclip import DashClipEncoder
    from embeddings.stages.run_folder import encoder_folder
    from experiments.config import load_config
    from experiments.encoders.config import EncodersConfig

    settings = load_config(config, EncodersConfig)
    if encoder is None:
        return settings, None
    folder = encoder_folder(encoder)
    return settings, DashClipEncoder.load(folder or encoder)


def _read_start(
    config: Path, start: Path | None, console: Console
) -> tuple[EncodersConfig, DashClipEncoder | None]:
    """As `_read`; the start may also be the folder or the name of published text weights."""
    from embeddings.encoders.bert_checkpoint import is_bert_folder
    from embeddings.encoders.published_weights import PUBLISHED
    from embeddings.stages.run_folder import encoder_folder
    from experiments.encoders.first_encoder import bert_encoder

    if start is None or encoder_folder(start):
        return _read(config, start)
    if not (is_bert_folder(start) or (not start.exists() and str(start).lower() in PUBLISHED)):
        return _read(config, start)
    settings, _ = _read(config, None)
    encoder = bert_encoder(str(start), settings)
    print_text_weights(console, encoder)
    return settings, encoder


def _print_run(console: Console, run: StageRun) -> None:
    from embeddings.stages.completion_training import learned_no_completion
    from embeddings.training.evaluation import beside_chance

    measures = beside_chance(run.best)
    if run.outcome is None:
        text = f"{run.folder} was finished already: {run.encoder.encoder_id} ({measures})"
    else:
        outcome = run.outcome
        text = (
            f"{run.encoder.encoder_id} in {run.folder / 'encoder'}: best at step {outcome.best_step:,} of "
            f"{outcome.steps:,} ({measures}){'; stopped early' if outcome.stopped_early else ''}"
        )
    console.print(text, soft_wrap=True)
    remark = learned_no_completion(run.counts)
    if remark:
        console.print(remark, style="yellow", markup=False, soft_wrap=True)


def print_text_weights(console: Console, encoder: DashClipEncoder) -> None:
    """What was read, and what no published weights are there for."""
    shape, made = encoder.config, encoder.trained_on or {}
    console.print(
        f"{made['source']}: {shape.text_layers} layers of {shape.text_hidden_dim}, {made['pooling']} "
        f"pooling, {shape.vocab_size:,} tokens, vectors of {shape.vector_dim}"
        + (f"; licence {made['licence']}" if "licence" in made else ""),
        soft_wrap=True,
        markup=False,
    )
    for what, prefix in (("query", shape.query_prefix), ("title", shape.title_prefix)):
        if prefix:
            console.print(f"before each {what}: {prefix!r}", soft_wrap=True, markup=False)
    console.print(
        f"random until trained, as no text model has them: {', '.join(made['random'])}",
        soft_wrap=True,
        markup=False,
    )
