"""`dashclip proofs worlds`: tables 1 and 2 over fresh simulated worlds."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.commands.demo import Size
from experiments.commands.options import PUBLISHED_RESULTS, named_folders

if TYPE_CHECKING:
    from experiments.runtime.job_pool import JobProgress

#: In OUT: where each part was when, and what failed.
LOG = "worlds.log"


def worlds_command(
    out: Annotated[Path, typer.Argument(help="Folder for the worlds and the tables; finished parts stay.")],
    worlds: Annotated[str, typer.Option(help="Seeds of the marketplace, such as 0-4 or 0,2,7-9.")] = "0-4",
    preset: Annotated[list[str] | None, typer.Option(help="mixed or retrieval, or both: repeat it.")] = None,
    size: Annotated[Size, typer.Option(help="Size of the marketplaces.")] = "small",
    encoder_seeds: Annotated[int, typer.Option(min=1, help="Trainings of the encoders in each world.")] = 1,
    ranker_seeds: Annotated[int, typer.Option(min=1, help="Trainings of each variant in each world.")] = 2,
    sweep: Annotated[
        Path, typer.Option(help="Variants to compare: TOML file, or the name of a shipped one.")
    ] = Path("demo"),
    encoders: Annotated[
        Path | None, typer.Option(help="Settings of the encoders; those of the demo's size if not given.")
    ] = None,
    rival: Annotated[
        list[str] | None,
        typer.Option(help="NAME=CONFIG of other encoders to train and compare; repeat it."),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Jobs at the same time, one thread each.")] = 2,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Train nothing; report what is finished.")
    ] = False,
) -> None:
    """Tables 1 and 2 as means over whole simulated worlds, with intervals that hold every noise there is.

    For each seed of the marketplace: data, features, tables, encoders, table 1, and every variant of the
    sweep with every seed. The encoders of a world serve all presets, whose products, queries and grades are
    the same. The same command goes on where a stopped one was; OUT/worlds.log has a line for each part.
    More worlds, presets, seeds, variants or rivals may be added later; other settings are refused.

    Example: `dashclip proofs worlds runs/worlds --worlds 0-4 --preset mixed --preset retrieval`
    """
    from experiments.commands.rankers.sweep import exit_if_failed
    from experiments.config import load_config, parse_config
    from experiments.encoders.config import EncodersConfig
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from experiments.sweeps.sweep import SweepConfig
    from experiments.worlds.forecast import Forecast
    from experiments.worlds.plan import WorldsConfig, claim, execute_worlds, planned_jobs
    from experiments.worlds.report import write_report
    from features.schema import FeatureConfig

    console = Console()
    rivals = named_folders(rival or [], option="--rival", what="CONFIG")
    settings = encoders or Path("encoders_tiny" if size == "tiny" else "encoders_small")
    asked = {
        "size": size,
        "worlds": seeds_of(worlds),
        "presets": tuple(preset or ["mixed"]),
        "encoder_seeds": encoder_seeds,
        "ranker_seeds": ranker_seeds,
        "encoders": load_config(settings, EncodersConfig),
        "rivals": {name: load_config(path, EncodersConfig) for name, path in rivals.items()},
        "features": load_config(Path("marketplace_features"), FeatureConfig),
        "sweep": load_config(sweep, SweepConfig),
    }
    config = parse_config(asked, WorldsConfig, where="worlds")
    shown = " ".join(
        [
            *(f"--preset {name}" for name in config.presets),
            *(f"--rival {name}={path.name}" for name, path in rivals.items()),
        ]
    )
    command = (
        f"dashclip proofs worlds OUT --worlds {worlds} {shown} --size {size} "
        f"--encoder-seeds {encoder_seeds} --ranker-seeds {ranker_seeds} --sweep {sweep.name} "
        f"--encoders {settings.name}"
    )
    claim(config, out)
    errors: dict[str, str | None] = {}
    if not report_only:
        jobs = planned_jobs(config, out)
        forecast = Forecast(jobs, processes=processes)
        ended: set[str] = set()
        console.print(f"{len(jobs)} parts to make, some {in_words(forecast.left_s())}")
        with progress_bars(console, log=out / LOG) as bars:

            def on_progress(job: "JobProgress") -> None:
                bars.job(job)
                left_s = forecast(job)
                (ended.add if job.ended else ended.discard)(job.name)
                bars("worlds", len(ended), len(jobs), f"some {in_words(left_s)} left")

            errors = execute_worlds(
                config, out, processes=processes, command=command, on_progress=on_progress
            )
    with progress_bars(console) as bars:
        written = write_report(config, out, command=command, progress=bars)
    for path in written:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    exit_if_failed(errors)


def publish_worlds_command(
    out: Annotated[Path, typer.Argument(help="Folder of `dashclip proofs worlds`.")],
    results: PUBLISHED_RESULTS = Path("experiments/results"),
    readme: Annotated[Path, typer.Option(help="Document whose results block is written again.")] = Path(
        "docs/results.md"
    ),
) -> None:
    """Copy the tables over worlds to the published results and write the block of docs/results.md again.

    Refused while parts are missing.

    Example: `dashclip proofs publish-worlds runs/worlds`
    """
    from experiments.runtime.terminal import Console
    from experiments.worlds.report import publish_worlds

    for path in publish_worlds(out, results=results, readme=readme):
        Console().print(f"wrote {path}", highlight=False)


def seeds_of(text: str) -> tuple[int, ...]:
    """Numbers and ranges: "0-2,7" is (0, 1, 2, 7).

    Raises:
        BadParameter: it is something else.
    """
    found: list[int] = []
    for part in text.split(","):
        matched = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if matched is None:
            raise typer.BadParameter(
                f"must be seeds such as 0-4 or 0,2,7-9, got {text!r}", param_hint="--worlds"
            )
        first, last = int(matched[1]), int(matched[2] or matched[1])
        if last < first:
            raise typer.BadParameter(f"{part} ends before it begins", param_hint="--worlds")
        found += range(first, last + 1)
    return tuple(found)


def in_words(seconds: float) -> str:
    """As "40 s", "12 min" or "3 h 20 min"."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
