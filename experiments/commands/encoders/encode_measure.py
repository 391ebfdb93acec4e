"""`dashclip encode evaluate`, `probe`, `score`: what vectors are worth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from experiments.commands.encoders.encode import encode
from experiments.commands.options import CONFIG, DATA, DEVICE, ENCODERS, TABLE, named_folders

MEASURED_CONFIG = Annotated[
    Path | None,
    typer.Option(
        help="Config of the encoders, where no record says what was held out; one that contradicts a record "
        "is refused. Without: the record, else `encoders_small`."
    ),
]


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
    config: MEASURED_CONFIG = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Places that count.")] = 10,
    device: DEVICE = "cpu",
) -> None:
    """Table 1: retrieval for held-out queries, against random, BM25 and each row.

    Without graded queries, give encoders: title_to_image.json and .md say which images their titles find.

    Example: `dashclip encode evaluate runs/data runs/encoders --row lsa=runs/lsa --row dashclip=runs/tables`
    """
    from embeddings.catalog.holdout import agreed_holdout
    from embeddings.encoders.dashclip import DashClipEncoder
    from embeddings.stages.run_folder import encoder_folder
    from experiments.config import load_config
    from experiments.encoders.config import EncodersConfig
    from experiments.encoders.pipeline import measure_retrieval
    from experiments.encoders.title_to_image import measure_title_to_image
    from experiments.reports.table1_text import console_table, to_markdown
    from experiments.runtime.environment import environment
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from features.artifacts import atomic_write_bytes

    console = Console()
    settings = load_config(config or Path("encoders_small"), EncodersConfig)
    asked = settings.holdout if config else None
    folders = named_folders(row)
    encoders = {name: found for name, folder in folders.items() if (found := encoder_folder(folder))}
    tables = {name: folder for name, folder in folders.items() if name not in encoders}
    measured = {}
    with progress_bars(console) as bars:
        if tables:
            measured["table1"] = measure_retrieval(data, tables, holdout=asked, k=k, progress=bars)
        if encoders:
            opened = {name: DashClipEncoder.load(folder) for name, folder in encoders.items()}
            holdout = agreed_holdout({name: encoder.holdout for name, encoder in opened.items()}, asked)
            measured["title_to_image"] = measure_title_to_image(
                data,
                opened,
                out / "title_to_image",
                inputs=replace(settings.stage1_inputs, holdout=holdout),
                k=k,
                device=device,
                progress=bars,
            )
    command = ["dashclip encode evaluate", str(data), str(out), *(f"--row {named}" for named in row)]
    command += [*([f"--config {config}"] if config else []), f"--k {k}"]
    made = {"command": " ".join(command), "environment": environment()}
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
    config: MEASURED_CONFIG = None,
    pictures: Annotated[bool, typer.Option(help="Draw t-SNE, cosines by grade, confusions.")] = True,
) -> None:
    """The probes of paper section 5: aisle and relevance classifiers on frozen vectors, and pictures.

    Without grades the aisles are probed alone.

    Example: `dashclip encode probe runs/data runs/encoders/initial runs/encoders/tables runs/encoders`
    """
    from rich.markdown import Markdown

    from experiments.config import load_config
    from experiments.encoders.config import EncodersConfig
    from experiments.encoders.pictures import write_pictures
    from experiments.encoders.pipeline import measure_probes
    from experiments.reports.probes_text import to_markdown
    from experiments.runtime.environment import environment
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from features.artifacts import atomic_write_bytes

    console = Console()
    asked = load_config(config, EncodersConfig).holdout if config else None
    with progress_bars(console) as bars:
        report, before_pair, after_pair, labels = measure_probes(
            data, before, after, holdout=asked, progress=bars
        )
    markdown = to_markdown(report)
    command = f"dashclip encode probe {data} {before} {after} {out}{f' --config {config}' if config else ''}"
    made = {"command": command, "environment": environment()}
    report.model_copy(update=made).write(out / "probes.json")
    atomic_write_bytes(out / "probes.md", markdown.encode())
    console.print(Markdown(markdown))
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

    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
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
    from experiments.ablation.plan import AblationConfig, execute_ablation, plan
    from experiments.ablation.report import build_report
    from experiments.ablation.text import console_table, to_markdown
    from experiments.commands.rankers.sweep import exit_if_failed
    from experiments.config import load_config
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
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
