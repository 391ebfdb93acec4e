"""`dashclip demo`: the paper's tables 1 and 2 on the simulated marketplace, from nothing, in one command."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from experiments.commands.inputs.generate import Preset

if TYPE_CHECKING:
    from experiments.marketplace.config import MarketplaceConfig
    from experiments.sweeps.sweep import PlannedRun, SweepConfig

Size = Literal["tiny", "small", "medium", "large"]

#: What the encoders leave in OUT beside their folders.
ENCODER_RESULTS = ("table1.json", "probes.json")
#: Files named importance… that the report on it leaves.
IMPORTANCE_SUFFIXES = (".json", ".csv", ".html", ".png")
#: Written last of the embeddings.
EMBEDDINGS_MARK = "queries/manifest.json"
#: What the rankers say that train beside the encoders, in OUT.
LOG = "rankers.log"
#: The ranker of the paper, whose features are weighed at the end.
FULL_RANKER = "dcn_pq_sim_history"
#: Of its seeds so many are weighed; `dashclip importance OUT/dcn_pq_sim_history` weighs all of them.
IMPORTANCE_SEEDS = 2


def demo(
    out: Annotated[Path, typer.Option(help="Folder for data, runs and report.")] = Path("runs/demo"),
    preset: Preset = "mixed",
    size: Annotated[Size, typer.Option(help="Size of the marketplace.")] = "small",
    seeds: Annotated[int, typer.Option(min=2, help="Training seeds per variant.")] = 5,
    processes: Annotated[int | None, typer.Option(min=1, help="Runs at the same time; one per core.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete what an earlier demo left in OUT, and start again.")
    ] = False,
) -> None:
    """Marketplace, features, encoders, table 1, rankers with and without embeddings, table 2, importance.

    With a second core, rankers train on it while the encoders are trained and measured on the first. Every
    part that is already whole in OUT is kept, so a stopped demo goes on where it was. All data are simulated,
    and every output says so. OUT/report.html is the page to open at the end. Takes some 16 minutes on two
    cores at size small.

    Examples: `dashclip demo --out runs/demo --seeds 5`,
    `dashclip demo --preset retrieval --out runs/demo_retrieval`
    """
    from experiments.commands.inputs.features import build_command
    from experiments.commands.inputs.generate import generate_marketplace
    from experiments.commands.rankers.importance import importance
    from experiments.commands.rankers.report import report
    from experiments.commands.rankers.sweep import exit_if_failed, run_sweep
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from experiments.sweeps.sweep import plan, processes_of, tables_read
    from experiments.worlds.parts import TABLES

    console = Console()
    config = sweep_config(out, seeds)
    runs = plan(config, out)
    if fresh:
        delete_demo(out, config.variants)
    else:
        refuse_another_demo(out, tables_read(runs), size=size, preset=preset)
    parts = _parts(out)
    data, features, lsa_tables, *_, embeddings = parts
    missing = [part for part, (_, mark) in parts.items() if not (part / mark).exists()]
    if data in missing:
        console.rule("1/5 simulated marketplace")
        generate_marketplace(data, size=size, preset=preset)
    if features in missing:
        console.rule("2/5 point-in-time features")
        build_command(data, features, config=Path("marketplace_features"))
    for name, make in TABLES.items():
        if out / name in missing:
            with progress_bars(console) as bars:
                make(data, out / name, bars.under(f"vectors: {name}"))
    if not all((out / name).exists() for name in ENCODER_RESULTS) or {lsa_tables, embeddings} & {*missing}:
        console.rule("3/5 encoders: warm-ups, stage 1, stage 2, table 1, probes")
        settings = Path("encoders_tiny" if size == "tiny" else "encoders_small")
        make_embeddings(out, settings, runs, processes)
    console.rule(f"4/5 {len(config.variants)} rankers, trained and compared")
    command = f"dashclip demo --preset {preset} --size {size} --seeds {seeds}"
    errors = run_sweep(config, out, processes, command)
    if not any(errors.values()):
        console.rule("5/5 which features carry the full ranker")
        importance(
            [run.folder for run in runs if run.config.variant == FULL_RANKER][:IMPORTANCE_SEEDS],
            out=out,
            repeats=2,
            slice_repeats=1,
            naive=True,
            processes=processes_of(processes),
        )
    report(out)
    exit_if_failed(errors)


def sweep_config(out: Path, seeds: int) -> "SweepConfig":
    """The shipped sweep over what lies in `out`."""
    from experiments.config import load_config
    from experiments.sweeps.sweep import SweepConfig

    config = load_config(Path("demo"), SweepConfig).moved(out)
    return config.model_copy(update={"seeds": tuple(range(1, seeds + 1))})


def make_embeddings(out: Path, config: Path, runs: Sequence["PlannedRun"], processes: int | None) -> None:
    """Train the encoders, encode with each stage of them, and write table 1 and the probes to `out`.

    Meanwhile those of `runs` train whose tables exist; the sweep trains the rest.
    """
    from experiments.commands.encoders.encode import align_command, pretrain_command, run_command
    from experiments.commands.encoders.encode_measure import evaluate_command, probe_command
    from experiments.runtime.terminal import Console
    from experiments.sweeps.meanwhile import trained_meanwhile
    from experiments.sweeps.sweep import tables_read

    console = Console()
    data, _, lsa_tables, *_, encoders, embeddings = _parts(out)
    if not (embeddings / EMBEDDINGS_MARK).exists():
        read = tables_read(runs)
        early = [run for run in runs if read[run.config.variant] != embeddings]
        with trained_meanwhile(early, processes=processes, log=out / LOG) as training:
            if training:
                console.print(
                    f"{len(training)} rankers that need no DashCLIP vectors train on another core meanwhile"
                )
            pretrain_command(data, encoders / "pretrain", config=config)
            align_command(data, encoders / "align", start=encoders / "pretrain", config=config)
            run_command(data, encoders / "align", embeddings, config=config)
    initial, stage1 = encoders / "initial", encoders / "stage1"
    rows = {"lsa": lsa_tables, "stage1": stage1, "dashclip": embeddings}
    with trained_meanwhile(runs, processes=processes, log=out / LOG) as training:
        if training:
            console.print(f"{len(training)} rankers train on another core meanwhile")
        run_command(data, encoders / "pretrain" / "warmup" / "image", initial, config=config)
        run_command(data, encoders / "pretrain", stage1, config=config)
        evaluate_command(data, out, [f"{name}={folder}" for name, folder in rows.items()], config=config)
        probe_command(data, initial, embeddings, out, config=config)


def delete_demo(out: Path, variants: Iterable[str]) -> None:
    """Delete the parts of a demo in `out` and nothing else.

    Raises:
        FileExistsError: data, features or embeddings of `out` are of another kind; nothing is deleted then.
    """
    from experiments.commands.rankers.sweep import LOG as SWEEP_LOG
    from features.artifacts import refuse_foreign_folder

    parts = _parts(out)
    for part, (ours, _) in parts.items():
        refuse_foreign_folder(part, ours=ours)
    runs = [folder for variant in variants for folder in (out / variant).glob("seed-*")]
    for folder in (*parts, *runs):
        if folder.exists():
            shutil.rmtree(folder)
    for variant in variants:
        if (out / variant).is_dir() and not any((out / variant).iterdir()):
            (out / variant).rmdir()
    for name in ("pictures", "importance_parts"):
        if (out / name).is_dir():
            shutil.rmtree(out / name)
    reports = ("table2.json", "table2.md", "report.html", "table1.md", "probes.md")
    importances = [path.name for path in out.glob("importance*") if path.suffix in IMPORTANCE_SUFFIXES]
    for name in (LOG, SWEEP_LOG, "sweep.json", *reports, *ENCODER_RESULTS, *importances):
        (out / name).unlink(missing_ok=True)


def refuse_another_demo(out: Path, tables: Mapping[str, Path | None], *, size: Size, preset: Preset) -> None:
    """Refuse to resume a demo of another size or preset, or one made from data that are gone.

    Args:
        tables: that each variant reads, as by `tables_read`.

    Raises:
        FileExistsError: a part is of another kind.
        ValueError: the marketplace is not the one asked for, or a part is older than what it is made from.
    """
    from experiments.marketplace.config import MarketplaceConfig
    from experiments.marketplace.generate import DESCRIPTION
    from features.artifacts import refuse_foreign_folder

    advice = "use --fresh or another --out"
    parts = _parts(out)
    data, features, *tables_of_data, encoders, embeddings = parts
    for part, (ours, _) in parts.items():
        refuse_foreign_folder(part, ours=ours)
    if (data / DESCRIPTION).exists():
        found = _marketplace_config(data)
        if found and found.size != size:
            raise ValueError(f"{data} is a marketplace of size {found.size}, not {size}; {advice}")
        if found and found.candidates != preset:
            raise ValueError(f"{data} is a marketplace of preset {found.candidates}, not {preset}; {advice}")
        if found != MarketplaceConfig.preset(size, preset):
            raise ValueError(f"{data} is a marketplace with other settings than the demo's; {advice}")
    runs = {variant: list((out / variant).glob("seed-*/run.json")) for variant in tables}
    made_from = [
        (data, [features, *tables_of_data, encoders]),
        (encoders, [embeddings]),
        *((features, made) for made in runs.values()),
        *((source, runs[variant]) for variant, source in tables.items() if source),
    ]
    for source, made in made_from:
        # What is missing would be made again now, so it counts as newer than all that exists.
        source_time = _written(source / parts[source][1])
        for path in made:
            time = _written(path / parts[path][1] if path in parts else path)
            if time is not None and (source_time is None or time < source_time):
                raise ValueError(f"{path} was made from an earlier {source}; {advice}")


def _marketplace_config(data: Path) -> "MarketplaceConfig | None":
    """What the marketplace in `data` was generated from; None if this version knows no such settings."""
    from pydantic import ValidationError

    from experiments.marketplace.config import MarketplaceConfig
    from experiments.marketplace.generate import DESCRIPTION

    found = json.loads((data / DESCRIPTION).read_text(encoding="utf-8")).get("config")
    try:
        return MarketplaceConfig.model_validate(found)
    except ValidationError:
        return None


def _parts(out: Path) -> dict[Path, tuple[Callable[[Path], bool], str]]:
    """Each folder that the runs are made from: what recognises it, and a file in it that tells its age."""
    from embeddings.embedding_table import is_table
    from embeddings.tables.lsa import holds_only_lsa_tables
    from experiments.marketplace.generate import DESCRIPTION, is_marketplace
    from experiments.worlds.parts import TABLES
    from features.offline.build import is_feature_set

    return {
        out / "data": (is_marketplace, DESCRIPTION),
        out / "features": (is_feature_set, "manifest.json"),
        **{out / name: (holds_only_lsa_tables, "products/manifest.json") for name in TABLES},
        out / "encoders": (lambda folder: (folder / "pretrain").is_dir(), "align/training.json"),
        out / "embeddings": (lambda folder: is_table(folder / "products"), EMBEDDINGS_MARK),
    }


def _written(path: Path) -> float | None:
    """When a file was written, in seconds since 1970; None if it does not exist."""
    return path.stat().st_mtime if path.exists() else None
