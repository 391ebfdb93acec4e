"""`dashclip features`: build feature sets from the four tables, and show them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from experiments.commands.options import DATA

if TYPE_CHECKING:
    from experiments.runtime.terminal import Console
    from features.feature_set import Manifest

features = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Build and inspect point-in-time features."
)


@features.command("build")
def build_command(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="Folder of the feature set; an older one is replaced.")],
    config: Annotated[Path, typer.Option(help="TOML file with every feature of an impression.")],
    memory_limit: Annotated[
        str, typer.Option(help="Memory to work in, at least 200MB; less memory means more buckets.")
    ] = "2GB",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the engine and of the kernels.")] = 2,
    buckets: Annotated[
        int | None,
        typer.Option(min=1, help="Buckets of each key; chosen from the memory limit when left out."),
    ] = None,
    engine: Annotated[
        Literal["duckdb", "spark"],
        typer.Option(help="What does the work: DuckDB on this machine, or Spark on one or many."),
    ] = "duckdb",
    master: Annotated[
        str | None,
        typer.Option(help="Of Spark, such as local[4] or yarn; what it is configured for when left out."),
    ] = None,
) -> None:
    """Build the feature set of a log: histories, counters, vocabularies, splits in time.

    Nothing is learned from the validation and test windows, and no feature sees its own time. Tables with a
    bad row are refused; `dashclip validate` lists such rows and separates them.

    Spark writes the same feature set, bit for bit, where a log is too large for one machine. The memory limit
    is then that of the driver; see docs/scaling.md.

    Example: `dashclip features build runs/data runs/features --config marketplace_features.toml`
    """
    from experiments.config import load_config
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from features.artifacts import refuse_foreign_folder, refuse_to_replace_input
    from features.inputs.tables import InputTables
    from features.inputs.validation import check_or_raise
    from features.offline.build import build, is_feature_set, memory_limit_bytes
    from features.schema import FeatureConfig

    if master is not None and engine != "spark":
        raise ValueError(f"--master {master} is for --engine spark; add that, or leave it out")
    if engine == "spark":
        from features.distributed.spark_engine import require_spark

        require_spark()
    console = Console()
    resolved = load_config(config, FeatureConfig)
    refuse_to_replace_input(out, data)
    refuse_foreign_folder(out, ours=is_feature_set)
    with progress_bars(console) as bars:
        bars("checking rows", 0, 1)
        memory = f"{memory_limit_bytes(memory_limit) // 1000}KB"
        check_or_raise(InputTables.open(data), memory_limit=memory, threads=threads)
        bars("checking rows", 1, 1)
        if engine == "spark":
            from features.distributed.build import build_distributed
            from features.distributed.spark_engine import SparkEngine

            heap = f"{memory_limit_bytes(memory_limit) // 10**6}m"
            with SparkEngine.local_or_cluster(master, driver_memory=heap, progress=bars) as spark:
                manifest = build_distributed(data, out, resolved, spark, buckets=buckets, progress=bars)
        else:
            manifest = build(
                data,
                out,
                resolved,
                threads=threads,
                memory_limit=memory_limit,
                buckets=buckets,
                progress=bars,
            )
    _print(console, out, manifest)


@features.command("show")
def show_command(
    folder: Annotated[Path, typer.Argument(metavar="FEATURES", help="Folder of a feature set.")],
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare every file with its checksum.")
    ] = True,
) -> None:
    """Show what a feature set holds: splits, click rates, unknown ids, empty histories.

    Example: `dashclip features show runs/features`
    """
    from experiments.runtime.terminal import Console
    from features.feature_set import FeatureSet

    _print(Console(), folder, FeatureSet.open(folder, verify=verify).manifest)


def _labels(manifest: Manifest) -> list[str]:
    """Which clicks became labels, and which splits no ranker can be measured on."""
    hours = f"{manifest.config.labels.attribution_hours:g} hours"
    said = []
    if manifest.data.clicks_counted_from == "click_timestamp" and manifest.labels:
        test = manifest.labels["test"]
        share = test.open_windows / test.rows
        said.append(
            f"a click counts until {hours} after its impression (labels.attribution_hours); "
            f"{share:.1%} of the test impressions were shown less than that before the log ends"
        )
    for name, split in manifest.labels.items():
        parts = [(split.after_window, f"{hours} or more after their impression")]
        parts += [(split.after_split, f"after the {name} days")]
        late = [f"{count:,} ({count / split.clicks:.2%}) came {when}" for count, when in parts if count]
        if late:
            said.append(f"of {split.clicks:,} clicks of {name} impressions no label are: {'; '.join(late)}")
    for name, summary in manifest.splits.items():
        if summary.clicked in (0, summary.rows):
            which = "none" if summary.clicked == 0 else "all"
            said.append(
                f"[yellow]{which} of the {summary.rows:,} {name} impressions were clicked: no ranker can be "
                "trained on this feature set; change the split in its config[/yellow]"
            )
    return said


def _print(console: Console, folder: Path, manifest: Manifest) -> None:
    from rich.table import Table

    from experiments.statistics.power import expected_sentence

    log = manifest.data
    console.print(
        f"[bold]{folder}[/bold]: {log.impressions:,} impressions of {manifest.num_users:,} users, "
        f"{manifest.num_products:,} products, {manifest.num_queries:,} queries; "
        f"{manifest.events:,} purchases in histories"
    )
    if log.anonymous_impressions or log.anonymous_purchases:
        console.print(
            f"of nobody: {log.anonymous_impressions:,} impressions, which have no history and no counters of "
            f"a user, and {log.anonymous_purchases:,} purchases, which are in no history"
        )
    splits = Table(title="Splits", title_justify="left")
    for column in ("split", "impressions", "CTR", "empty history", "first day", "last day"):
        splits.add_column(column, justify="left" if column in ("split", "first day", "last day") else "right")
    for name, split in manifest.splits.items():
        splits.add_row(
            name,
            f"{split.rows:,}",
            f"{split.ctr:.2%}",
            f"{manifest.empty_history_share[name]:.1%}",
            split.start[:10],
            split.end[:10],
        )
    console.print(splits)
    test = manifest.splits["test"]
    console.print(expected_sentence(test.clicked, test.rows), highlight=False)
    ids = Table(title="Share of impressions whose id has no row of its own", title_justify="left")
    ids.add_column("feature")
    for column in ("table rows", *manifest.splits, "missing (test)"):
        ids.add_column(column, justify="right")
    for feature in manifest.sparse_columns:
        shares = [f"{manifest.oov_share[split][feature.name]:.2%}" for split in manifest.splits]
        missing = f"{manifest.missing_share['test'][feature.name]:.2%}"
        ids.add_row(feature.name, f"{feature.rows:,}", *shares, missing)
    console.print(ids)
    constant = [name for name, transform in manifest.transforms.items() if transform.sd == 0]
    console.print(f"{len(manifest.dense_columns)} dense columns: {', '.join(manifest.dense_columns)}")
    if constant:
        console.print(f"[yellow]constant in training, hence always 0: {', '.join(constant)}[/yellow]")
    if manifest.counter_prior_ctr is not None:
        console.print(
            f"click counters use the {log.clicks_counted_from.replace('_', ' ')}"
            f" ({log.clicks_without_time:,} clicks have none of their own); "
            f"prior CTR {manifest.counter_prior_ctr:.2%}"
        )
    for sentence in _labels(manifest):
        console.print(sentence)
    if log.unused_impressions:
        console.print(f"{log.unused_impressions:,} impressions are in no split (burn-in)")
    for absence in log.absences:
        console.print(f"[yellow]{absence}[/yellow]")
