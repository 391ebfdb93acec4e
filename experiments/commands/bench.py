"""`dashclip bench`: speed and memory, measured against peers and against the limit of the machine."""

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from experiments.runtime.terminal import Console
    from features.progress import Progress


class Part(StrEnum):
    """What to measure; `tables` only renders what was measured before."""

    ALL = "all"
    TRAINING = "training"
    FEATURES = "features"
    LOADER = "loader"
    SCALING = "scaling"
    SPARK = "spark"
    ENCODERS = "encoders"
    SERVING = "serving"
    SCALE = "scale"
    GPU = "gpu"
    TABLES = "tables"


Size = Literal["tiny", "small", "base"]
Device = Literal["cpu", "cuda"]
Precision = Literal["float32", "bfloat16"]
_PANEL = "Encoders"
_SERVING = "Serving"
_SPARK = "Spark"
_SCALE = "Scale"


@dataclass(frozen=True)
class _Options:
    """What the parts are measured with."""

    quick: bool
    peers: bool
    bfloat16: bool
    environments: Path
    torcheasyrec: Path | None
    threads: int
    size: Size
    device: Device
    precision: Precision
    compiled: bool
    batch_rows: int | None
    run: Path
    packages: Path | None
    before: Path | None
    data: Path | None
    features: Path
    rows: tuple[int, ...]
    encoders: Path | None

    @property
    def setting(self) -> str:
        """Of the encoders, among the results; the number of rows is no part of it, the last one stands."""
        return f"{self.size}, {self.device}, {self.precision}{', compiled' if self.compiled else ''}"

    @property
    def encoder_arguments(self) -> str:
        """As they would be typed."""
        typed = f" --size {self.size} --device {self.device} --precision {self.precision}"
        typed += " --compile" if self.compiled else ""
        return typed + (f" --batch-size {self.batch_rows}" if self.batch_rows else "")


def bench(
    part: Annotated[Part, typer.Argument(help="What to measure.")] = Part.ALL,
    out: Annotated[Path, typer.Option(help="Folder for the results, one JSON file per part.")] = Path(
        "runs/bench"
    ),
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Small data: checks that everything runs; its numbers mean little."),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the parts that are already in OUT.")] = False,
    peers: Annotated[
        bool,
        typer.Option(
            help="Measure FuxiCTR, DeepCTR-Torch and torchrec's DLRM_DCN too; the first two are installed."
        ),
    ] = True,
    bfloat16: Annotated[
        bool, typer.Option(help="Measure bfloat16 too; slow where the processor has no units for it.")
    ] = True,
    environments: Annotated[Path, typer.Option(help="Folder for the peers' environments.")] = Path(".venvs"),
    torcheasyrec: Annotated[
        Path | None,
        typer.Option(help="Checkout of TorchEasyRec, to measure training beside it, too."),
    ] = None,
    threads: Annotated[
        int,
        typer.Option(min=1, help="Measure our training on so many threads, too, beside one; by wall time."),
    ] = 1,
    docs: Annotated[
        Path, typer.Option(help="Document whose tables are rewritten, except after --quick.")
    ] = Path("docs/benchmarks.md"),
    size: Annotated[Size, typer.Option(help="Size of the encoders.", rich_help_panel=_PANEL)] = "small",
    device: Annotated[
        Device | None,
        typer.Option(
            help="Where encoders run, the CPU by default, and `gpu`, CUDA by default.", rich_help_panel=_PANEL
        ),
    ] = None,
    precision: Annotated[
        Precision, typer.Option(help="Of their training steps.", rich_help_panel=_PANEL)
    ] = "float32",
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Also measure and profile torch.compile.", rich_help_panel=_PANEL),
    ] = False,
    batch_rows: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            min=4,
            help="Rows of a training step; by default what suits size and device.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    trained: Annotated[
        Path,
        typer.Option("--run", help="For the accuracy of 8-bit vectors.", rich_help_panel=_SERVING),
    ] = Path("runs/demo/dcn_pq_sim_history/seed-1"),
    packages: Annotated[
        Path | None,
        typer.Option(
            help="Where the measured packages are kept between runs; making them takes half of the time.",
            rich_help_panel=_SERVING,
        ),
    ] = None,
    before: Annotated[
        Path | None,
        typer.Option(
            help="An earlier checkout, whose servers are measured beside these, in turns.",
            rich_help_panel=_SERVING,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the four tables; generated logs by default.", rich_help_panel=_SPARK),
    ] = None,
    features: Annotated[
        Path,
        typer.Option(help="Config of the features of DATA.", rich_help_panel=_SPARK),
    ] = Path("marketplace_features"),
    rows: Annotated[
        list[float] | None,
        typer.Option(
            help="Impressions of a log, such as 5e6; give it several times. 1, 5 and 50 million by default.",
            rich_help_panel=_SCALE,
        ),
    ] = None,
    encoders: Annotated[
        Path | None,
        typer.Option(
            help="Config of encoders to train, such as encoders_large, with rankers on their vectors.",
            rich_help_panel=_SCALE,
        ),
    ] = None,
) -> None:
    """Measure training, features, loader, scaling, spark, encoders, serving; needs a quiet half hour.

    `training` trains the same DCN-v2 with ours and with the peers on the same generated rows, and
    compares ours with the measured peak of the processor. `features` builds 5 M impressions x 2 M
    purchases and compares with pandas, value by value. `loader` is rows a second. `scaling` is time and
    memory at 1, 2, 4 and 8 times the rows. `spark` builds the same features by DuckDB and by Spark, and
    compares every byte; it is left out of `all` where Spark is not installed. The first run installs the
    peers, which takes some minutes more. `encoders` is products and tuples a second of both stages and of
    encoding, the share of the measured peak, and a profile; each setting of its options is kept beside
    the others. `serving` is what the embeddings add to a request's latency, against fetching them from
    Redis; TorchServe, FastAPI and ONNX Runtime; memory of one more worker, start-up, and 8-bit vectors.

    `gpu` is no part of `all`: the training steps of the ranker and of encoders on a GPU, their shares of its
    peaks, and profiles, in under eight minutes on data that it makes itself; `--device cpu` tries the way.

    `scale` is no part of `all`: each command from `generate` to a served request, for logs up to the paper's
    size, which takes an hour or two, 4 GB of memory and 15 GB of disk. Cut off, it goes on where it was, and
    sizes that were measured before stay. Its tables go to scaling.md beside `--docs`. With `--encoders` the
    shop's text encoders are trained and encode it, too.

    Example: `dashclip bench features`, `dashclip bench encoders --size base --device cuda`
    """
    from experiments.benchmarks.document import update_document
    from experiments.benchmarks.scale_report import scale_png
    from experiments.benchmarks.tables import GPU, PARTS, SCALE, read_result, tables_of
    from experiments.runtime.terminal import Console
    from features.artifacts import atomic_write_bytes, atomic_write_json

    console = Console()
    options = _Options(
        quick=quick,
        peers=peers,
        bfloat16=bfloat16,
        environments=environments.absolute(),
        torcheasyrec=torcheasyrec,
        threads=threads,
        size=size,
        device=device or ("cuda" if part is Part.GPU else "cpu"),
        precision=precision,
        compiled=compiled,
        batch_rows=batch_rows,
        run=trained,
        packages=packages,
        before=before,
        data=data,
        features=features,
        rows=tuple(round(number) for number in rows or ()),
        encoders=encoders,
    )
    wanted = {Part.ALL: PARTS, Part.TABLES: (*PARTS, SCALE, GPU)}.get(part, (part.value,))
    for name in wanted:
        earlier = read_result(out, name) if resume or name == "encoders" else None
        is_measured = earlier is not None and (name != "encoders" or options.setting in earlier["runs"])
        if part is not Part.TABLES and not (resume and is_measured):
            if part is Part.ALL and name == "spark" and (why := _without_spark()):
                console.print(f"spark: not measured: {why}")
                continue
            result = _measure(name, out, options, console)
            command = f"dashclip bench {name}{' --quick' if quick else ''}"
            command += " --torcheasyrec CHECKOUT" if name == "training" and torcheasyrec else ""
            command += f" --threads {threads}" if name == "training" and threads > 1 else ""
            command += " --device cpu" if name == GPU and options.device == "cpu" else ""
            command += " --data DATA" if name == "spark" and data else ""
            command += " --before CHECKOUT" if name == "serving" and before else ""
            if name == "encoders":
                run = {"command": command + options.encoder_arguments, **result}
                result = {"runs": {**(earlier or {"runs": {}})["runs"], options.setting: run}}
            atomic_write_json(out / f"{name}.json", {"command": command, **result})
            if name == SCALE:
                atomic_write_bytes(out / "scale.png", scale_png(result))
        if (found := read_result(out, name)) is None:
            console.print(f"{name}: not measured yet")
            continue
        for table in tables_of(name, found):
            _print(table, console)
    if quick:
        console.print(f"results in {out}; {docs} is left as it is, because quick numbers mean little")
    elif not docs.exists():
        console.print(
            f"results in {out}; there is no {docs} to write their tables into (--docs names another)"
        )
    else:
        update_document(docs, out)
        if (of_scale := docs.with_name("scaling.md")).exists():
            update_document(of_scale, out, parts=(SCALE,))
        console.print(f"results in {out}, tables in {docs.parent}")


def _measure(name: str, out: Path, options: _Options, console: "Console") -> dict[str, Any]:
    """Run one part behind a progress bar; its scratch data is removed whatever happens, but for `scale`."""
    import shutil

    from experiments.runtime.progress import progress_bars

    work = (out / f"{name}.work").absolute()
    with progress_bars(console) as bars:
        said = [""]

        def report(stage: str, done: int, total: int) -> None:
            bars(name, done, total, stage)
            if not console.is_terminal and stage != said[-1]:
                said.append(stage)
                console.print(f"{name}: {stage}")

        try:
            return _benchmark(name, options, work=work, report=report)
        finally:
            if name != Part.SCALE:
                shutil.rmtree(work, ignore_errors=True)


def _benchmark(name: str, options: _Options, *, work: Path, report: "Progress") -> dict[str, Any]:
    match name:
        case "training":
            from experiments.benchmarks.training.training import (
                QUICK,
                TrainingBenchmark,
                run_training_benchmark,
            )

            sizes = replace(QUICK if options.quick else TrainingBenchmark(), threads=options.threads)
            return run_training_benchmark(
                sizes,
                work=work,
                environments=options.environments,
                with_peers=options.peers,
                with_bfloat16=options.bfloat16,
                torcheasyrec=options.torcheasyrec,
                progress=report,
            )
        case "features":
            from experiments.benchmarks.features.feature_build import FeatureBenchmark, run_feature_benchmark

            build = FeatureBenchmark(500_000, 200_000) if options.quick else FeatureBenchmark()
            return run_feature_benchmark(build, work=work, progress=report)
        case "loader":
            from experiments.benchmarks.features.loading import LoaderBenchmark, run_loader_benchmark

            loader = LoaderBenchmark(200_000, 80_000, seconds=2) if options.quick else LoaderBenchmark()
            return run_loader_benchmark(loader, work=work, progress=report)
        case "spark":
            from experiments.benchmarks.features.spark import SparkBenchmark, run_spark_benchmark
            from experiments.config import load_config
            from features.distributed.spark_engine import require_spark
            from features.schema import FeatureConfig

            require_spark()
            return run_spark_benchmark(
                SparkBenchmark(20_000, 8_000) if options.quick else SparkBenchmark(),
                work=work,
                data=options.data,
                config=None if options.data is None else load_config(options.features, FeatureConfig),
                progress=report,
            )
        case "encoders":
            from experiments.benchmarks.encoders.throughput import run_encoder_benchmark, setting

            chosen = setting(
                options.size,
                device=options.device,
                precision=options.precision,
                compiled=options.compiled,
                batch_rows=options.batch_rows,
                quick=options.quick,
            )
            return run_encoder_benchmark(chosen, work=work, progress=report)
        case "serving":
            from experiments.benchmarks.serving.benchmark import QUICK as QUICK_SERVING
            from experiments.benchmarks.serving.benchmark import ServingBenchmark, run_serving_benchmark

            return run_serving_benchmark(
                QUICK_SERVING if options.quick else ServingBenchmark(),
                work=work,
                packages=options.packages,
                run=options.run,
                before=options.before,
                progress=report,
            )
        case "gpu":
            from experiments.benchmarks.gpu import TINY, GpuBenchmark, run_gpu_benchmark

            small = options.quick or options.device == "cpu"
            measured = replace(TINY, device=options.device) if small else GpuBenchmark()
            return run_gpu_benchmark(measured, work=work, quick=small, progress=report)
        case "scale":
            from experiments.benchmarks.scale import QUICK as QUICK_SCALE
            from experiments.benchmarks.scale import ScaleBenchmark, run_scale_benchmark

            whole_way = QUICK_SCALE if options.quick else ScaleBenchmark()
            whole_way = replace(whole_way, rows=options.rows or whole_way.rows, encoders=options.encoders)
            return run_scale_benchmark(whole_way, work=work, out=work.parent, progress=report)
        case _:
            from experiments.benchmarks.features.scaling import ScalingBenchmark, run_scaling_benchmark

            scaling = ScalingBenchmark(30_000, 12_000) if options.quick else ScalingBenchmark()
            return run_scaling_benchmark(scaling, work=work, progress=report)


def _without_spark() -> str | None:
    """Why Spark cannot be measured."""
    from features.distributed.spark_engine import SparkError, require_spark

    try:
        require_spark()
    except SparkError as error:
        return str(error)
    return None


def _print(table: Any, console: "Console") -> None:
    from rich.table import Table

    grid = Table(*table.columns, title=table.title, title_justify="left")
    for column in grid.columns[1:]:
        column.justify = "right"
    for row in table.rows:
        grid.add_row(*row)
    console.print(grid)
    for note in table.notes:
        console.print(note, style="dim", soft_wrap=True)
