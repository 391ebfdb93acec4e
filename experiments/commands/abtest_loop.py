"""`dashclip abtest loop`: what becomes of a ranker that learns from what it showed itself?"""

from pathlib import Path
from typing import Annotated

import typer

from experiments.commands.abtest import abtest


@abtest.command("loop")
def loop(
    world: Annotated[Path, typer.Argument(help="Folder that `dashclip generate` wrote.")],
    out: Annotated[Path, typer.Argument(help="Folder of the loop; one that was interrupted goes on.")],
    config: Annotated[Path, typer.Option(help="TOML file of a run: ranker, tables, training.")],
    features: Annotated[
        Path, typer.Option(help="TOML file with every feature; the loop sets its split.")
    ] = Path("marketplace_features"),
    weeks: Annotated[int, typer.Option(min=1, help="Weeks after the world's last day.")] = 4,
    explore: Annotated[
        float,
        typer.Option(min=0.001, max=1, help="Of one arm, the share of searches whose slate is drawn."),
    ] = 0.05,
    searches_per_day: Annotated[
        int | None, typer.Option(min=1, help="As many as in the world's log if not given.")
    ] = None,
    luck: Annotated[int, typer.Option(min=0, help="Another number is other weeks of the same world.")] = 0,
) -> None:
    """Retrain a ranker every week on the log of what it served, and measure what that does to it.

    Simulated weeks in three arms with the same searches, candidates and luck: the ranker shows what it likes
    (greedy), a share of its slates is drawn at random (explored), or the policy that wrote the world's log
    goes on serving (logging). Each week's ranker of each arm is trained by the ordinary code on the last week
    of the arm's own log, and measured on the same fresh searches: true clicks and revenue, AUC and
    calibration on its own traffic and on uniform slates, products shown. Writes result.json, report.md and
    report.html.

    Example: `dashclip abtest loop runs/market runs/loop --config run.toml`
    """
    import torch

    from experiments.abtest.loop.run import claim, run_loop
    from experiments.abtest.loop.settings import LoopSettings
    from experiments.config import load_config
    from experiments.reports.abtest.loop_page import loop_sentences, write_loop_report
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from features.schema import FeatureConfig
    from ranking.run import RunConfig

    torch.set_num_threads(1)
    console = Console()
    settings = LoopSettings(
        world=world,
        ranker=load_config(config, RunConfig),
        features=load_config(features, FeatureConfig),
        weeks=weeks,
        explore=explore,
        searches_per_day=searches_per_day,
        luck=luck,
    )
    command = f"dashclip abtest loop {world} {out} --config {config} --weeks {weeks} --explore {explore:g}"
    if searches_per_day:
        command += f" --searches-per-day {searches_per_day}"
    if luck:
        command += f" --luck {luck}"
    claim(settings, out)
    with progress_bars(console, log=out / "loop.log") as bars:
        result = run_loop(settings, out, command=command, progress=bars)
    for sentence in loop_sentences(result):
        console.print(f"• {sentence}", highlight=False)
    for path in write_loop_report(result, out):
        console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
