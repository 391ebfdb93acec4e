"""`dashclip encode`: train the encoders, make tables with them, measure what they are worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.commands.options import (
    CONFIG,
    DATA,
    DEVICE,
    ENCODERS,
    MLFLOW,
    MLFLOW_EXPERIMENT,
    TABLE,
    named_folders,
    tracker_of,
)

if TYPE_CHECKING:
    from rich.console import Console

    from embeddings.encoders.dashclip import DashClipEncoder
    from embeddings.stages.run_folder import StageRun
    from experiments.encoders.pipeline import EncodersConfig

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
    from rich.console import Console

    from embeddings.stages.stage1 import advice
    from experiments.encoders.pipeline import run_pretrain
    from experiments.runtime.progress import progress_bars

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
    from rich.console import Console

    from experiments.encoders.pipeline import run_align
    from experiments.runtime.progress import progress_bars

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
) -> None:
    """Encode the whole catalogue and all queries to embedding tables; goes on after a kill.

    The modalities and text columns are those of the config. Unreadable images are listed in
    OUT/quarantine.parquet, and their products encoded from the title alone.

    Example: `dashclip encode run runs/data runs/encoders/align runs/encoders/tables`
    """
    from rich.console import Console

    from experiments.encoders.pipeline import encode_tables
    from experiments.runtime.progress import progress_bars

    console = Console()
    settings, loaded = _read(config, encoder)
    assert loaded is not None  # `encoder` was given
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


@encode.command("evaluate")
def evaluate_command(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Folder for table1.json and table1.md.")],
    row: Annotated[
        list[str],
        typer.Option(
            help="NAME=FOLDER with `products/` and `queries/`, or with an encoder; repeat it. `dashclip` is "
            "compared."
        ),
    ],
    config: CONFIG = Path("encoders_small"),
    k: Annotated[int, typer.Option("--k", min=1, help="Places that count.")] = 10,
    device: DEVICE = "cpu",
) -> None:
    """Table 1: retrieval for held-out queries, against random, BM25 and each row.

    Without graded queries, give encoders: title_to_image.json and .md say which images their titles find.

    Example: `dashclip encode evaluate runs/data runs/encoders --row lsa=runs/lsa --row dashclip=runs/tables`
    """
    from rich.console import Console

    from embeddings.encoders.dashclip import DashClipEncoder
    from embeddings.stages.run_folder import encoder_folder
    from experiments.config import load_config
    from experiments.encoders.pipeline import EncodersConfig, measure_retrieval
    from experiments.encoders.title_to_image import measure_title_to_image
    from experiments.reports.table1_text import console_table, to_markdown
    from experiments.runtime.environment import environment
    from experiments.runtime.progress import progress_bars
    from features.artifacts import atomic_write_bytes

    console = Console()
    settings = load_config(config, EncodersConfig)
    folders = named_folders(row)
    encoders = {name: found for name, folder in folders.items() if (found := encoder_folder(folder))}
    tables = {name: folder for name, folder in folders.items() if name not in encoders}
    measured = {}
    with progress_bars(console) as bars:
        if tables:
            measured["table1"] = measure_retrieval(data, tables, holdout=settings.holdout, k=k, progress=bars)
        if encoders:
            measured["title_to_image"] = measure_title_to_image(
                data,
                {name: DashClipEncoder.load(folder) for name, folder in encoders.items()},
                out / "title_to_image",
                inputs=settings.stage1_inputs,
                k=k,
                device=device,
                progress=bars,
            )
    command = ["dashclip encode evaluate", str(data), str(out), *(f"--row {named}" for named in row)]
    made = {"command": " ".join([*command, f"--config {config} --k {k}"]), "environment": environment()}
    for name, table in measured.items():
        console.print(console_table(table))
        table.model_copy(update=made).write(out / f"{name}.json")
        atomic_write_bytes(out / f"{name}.md", to_markdown(table).encode())
        console.print(f"written: {out / name}.json, {out / name}.md", soft_wrap=True)


@encode.command("probe")
def probe_command(
    data: DATA,
    before: Annotated[Path, typer.Argument(help="Tables of an encoder before a stage, as runs/initial.")],
    after: Annotated[Path, typer.Argument(help="Tables of the encoder after it.")],
    out: Annotated[Path, typer.Argument(help="Folder for probes.json, probes.md and pictures/.")],
    config: CONFIG = Path("encoders_small"),
    pictures: Annotated[bool, typer.Option(help="Draw t-SNE, cosines by grade, confusions.")] = True,
) -> None:
    """The probes of paper section 5: aisle and relevance classifiers on frozen vectors, and pictures.

    Without grades the aisles are probed alone.

    Example: `dashclip encode probe runs/data runs/encoders/initial runs/encoders/tables runs/encoders`
    """
    from rich.console import Console

    from experiments.config import load_config
    from experiments.encoders.pictures import write_pictures
    from experiments.encoders.pipeline import EncodersConfig, measure_probes
    from experiments.reports.probes_text import to_markdown
    from experiments.runtime.environment import environment
    from experiments.runtime.progress import progress_bars
    from features.artifacts import atomic_write_bytes

    console = Console()
    settings = load_config(config, EncodersConfig)
    with progress_bars(console) as bars:
        report, before_pair, after_pair, labels = measure_probes(
            data, before, after, holdout=settings.holdout, progress=bars
        )
    markdown = to_markdown(report)
    command = f"dashclip encode probe {data} {before} {after} {out} --config {config}"
    made = {"command": command, "environment": environment()}
    report.model_copy(update=made).write(out / "probes.json")
    atomic_write_bytes(out / "probes.md", markdown.encode())
    console.print(markdown)
    if pictures:
        with console.status("drawing"):
            paths = write_pictures(out / "pictures", before_pair, after_pair, labels, report, seed=0)
        console.print(f"{len(paths)} pictures in {out / 'pictures'}", soft_wrap=True)


@encode.command("score")
def score_command(
    pairs: Annotated[
        Path, typer.Argument(help="Parquet, CSV or TSV with the column `query` and `product_id` or `text`.")
    ],
    out: Annotated[
        Path, typer.Argument(help="The same rows with a column `cosine`; .parquet, .csv or .tsv.")
    ],
    encoders: ENCODERS = None,
    table: TABLE = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with products, where an encoder has to read those of `product_id`."),
    ] = None,
) -> None:
    """Cosine of each query with its product, or with a text, by an encoder or by embedding tables.

    A pair of which one side has no vector gets no cosine, and is counted.

    Example: `dashclip encode score pairs.csv scored.csv --table runs/lsa`
    """
    import numpy as np
    import pyarrow as pa
    from rich.console import Console

    from experiments.runtime.progress import progress_bars
    from experiments.scoring.rows import read_rows, write_rows
    from experiments.scoring.texts import VectorSource, score_pairs

    console = Console()
    rows = read_rows(pairs, needs=("query",))
    source = VectorSource.open(encoders, table)
    with progress_bars(console) as bars:
        cosine_N = score_pairs(rows, source, data=data, progress=bars)
    missing = int(np.isnan(cosine_N).sum())
    write_rows(rows.append_column("cosine", pa.array(cosine_N, from_pandas=True)), out)
    console.print(
        f"{len(rows):,} pairs, {missing:,} without a vector of query or product; wrote {out}",
        markup=False,
        soft_wrap=True,
    )


@encode.command("ablate", hidden=True)
def ablate_command(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Folder for the runs and the report; finished runs are kept.")],
    config: CONFIG = Path("encoder_ablation"),
    processes: Annotated[int, typer.Option(min=1, help="Runs at the same time, one thread each.")] = 2,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Train nothing; report what is finished.")
    ] = False,
    device: DEVICE = "cpu",
) -> None:
    """Train variants of the encoders with several seeds, and compare each with the default.

    Variants that agree on what stage 1 depends on share it. The same command continues a stopped ablation.

    Example: `dashclip encode ablate runs/data runs/ablation --config encoder_ablation --processes 2`
    """
    from rich.console import Console

    from experiments.ablation.plan import AblationConfig, execute_ablation, plan
    from experiments.ablation.report import build_report
    from experiments.ablation.text import console_table, to_markdown
    from experiments.commands.rankers.sweep import exit_if_failed
    from experiments.config import load_config
    from experiments.runtime.progress import progress_bars
    from features.artifacts import atomic_write_bytes

    console = Console()
    settings = load_config(config, AblationConfig)
    errors: dict[str, str | None] = {}
    if not report_only:
        finished = sum(run.metrics.is_file() for run in plan(settings, out))
        console.print(f"{finished} runs are finished already")
        with progress_bars(console) as bars:
            errors = execute_ablation(
                settings, data, out, processes=processes, device=device, on_progress=bars.job
            )
    command = f"dashclip encode ablate DATA OUT --config {config.name} --processes {processes}"
    report = build_report(settings, out, command=command)
    report.write(out / "ablation.json")
    atomic_write_bytes(out / "ablation.md", to_markdown(report).encode())
    console.print(console_table(report))
    console.print(f"written: {out / 'ablation.json'}, {out / 'ablation.md'}", soft_wrap=True)
    exit_if_failed(errors)


def _read(config: Path, encoder: Path | None) -> tuple[EncodersConfig, DashClipEncoder | None]:
    """The config and, if there is one, the encoder in a folder or in the run that made it."""
    from embeddings.encoders.dashclip import DashClipEncoder
    from embeddings.stages.run_folder import encoder_folder
    from experiments.config import load_config
    from experiments.encoders.pipeline import EncodersConfig

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
    from experiments.commands.encoders.published_models import print_text_weights
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
