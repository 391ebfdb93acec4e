"""`dashclip abtest run`: an experiment in the simulated marketplace, through packages or servers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from experiments.commands.abtest import abtest, has_tea_tasting, write_run_report
from experiments.commands.options import KEY_FILE, MANAGEMENT_URL

if TYPE_CHECKING:
    from experiments.abtest.simulated.run import Finished
    from experiments.abtest.simulated.settings import RunSettings
    from experiments.runtime.terminal import Console

_POLICY = "a package, or the URL of a model that a server serves"
_SERVED = "that the server behind the URL of --{0} serves: its snapshot is refreshed every night"


@abtest.command("run")
def run(
    world: Annotated[Path, typer.Argument(help="Folder that `dashclip generate` wrote.")],
    out: Annotated[Path, typer.Argument(help="Folder of the experiment; one that was interrupted goes on.")],
    control: Annotated[str, typer.Option(help=f"Who serves the control: {_POLICY}.")],
    treatment: Annotated[str, typer.Option(help=f"The challenger: {_POLICY}.")],
    days: Annotated[int, typer.Option(min=1, help="Days after the world's last one.")] = 10,
    searches_per_day: Annotated[
        int | None, typer.Option(min=1, help="As many as in the world's log if not given.")
    ] = None,
    holdout: Annotated[
        float,
        typer.Option(min=0, max=0.5, help="Share of consumers who keep the control and are not compared."),
    ] = 0.02,
    treatment_share: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Of the other consumers, who sees the challenger.")
    ] = 0.5,
    salt: Annotated[str, typer.Option(help="Another salt draws other consumers.")] = "abtest",
    luck: Annotated[int, typer.Option(min=0, help="Another number is other days of the same world.")] = 0,
    explore: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of searches whose first ad is drawn: what `abtest offpolicy` needs."
        ),
    ] = 0.0,
    control_package: Annotated[
        Path | None, typer.Option(help=f"Package {_SERVED.format('control')}.")
    ] = None,
    treatment_package: Annotated[
        Path | None, typer.Option(help=f"Package {_SERVED.format('treatment')}.")
    ] = None,
    connections: Annotated[int, typer.Option(min=1, help="To each server.")] = 4,
    body_format: Annotated[
        Literal["json", "arrow"], typer.Option("--format", help="Of requests to servers.")
    ] = "json",
    key_file: KEY_FILE = None,
    management_url: MANAGEMENT_URL = None,
) -> None:
    """Let two rankers serve a simulated marketplace for some days, and write the experiment.

    The days go on where WORLD ends. Consumers are routed by a hash of their id and the salt. For every search
    both rankers score the same candidates; an auction by bid and score decides what is shown; clicks,
    purchases and what they change in the following days are drawn from the known model, with the same luck
    for both. Each night snapshots are refreshed from what was served. The true lift is computed from click
    probabilities over all consumers. OUT/experiment is what `dashclip abtest report` reads; its result.json,
    report.md and report.html are written into OUT at the end, and OUT/run.log has a line for each day.

    Example: `dashclip abtest run runs/demo/data runs/abtest --control runs/dcn_package --treatment
    runs/package --searches-per-day 20000`
    """
    import torch

    from experiments.abtest.simulated.policies import EndpointPolicy, PackagePolicy, Policy
    from experiments.abtest.simulated.run import claim, run_experiment
    from experiments.abtest.simulated.settings import CONTROL, TREATMENT, RunSettings
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console
    from serving.package.generations import current_generation

    torch.set_num_threads(1)
    console = Console()
    settings = RunSettings(
        world=world,
        control=control,
        treatment=treatment,
        days=days,
        searches_per_day=searches_per_day,
        salt=salt,
        holdout=holdout,
        treatment_share=treatment_share,
        luck=luck,
        explore=explore,
        format=body_format,
    )

    places = {CONTROL: (control, control_package), TREATMENT: (treatment, treatment_package)}
    for name, (where, served) in places.items():  # before a folder is made for what cannot run
        if not _is_url(where):
            current_generation(Path(where))
            if served is not None:
                raise typer.BadParameter("goes with a URL", param_hint=f"--{name}-package")

    def make_policy(name: str, folder: Path) -> Policy:
        where, served = places[name]
        if not _is_url(where):
            return PackagePolicy(Path(where), folder)
        return EndpointPolicy(
            where,
            package=served,
            connections=connections,
            body_format=body_format,
            key_file=key_file,
            management_url=management_url,
        )

    claim(settings, out)
    with progress_bars(console, log=out / "run.log") as bars:
        finished = run_experiment(settings, out, make_policy, progress=bars, tell=bars.say)
    _show(console, settings, finished)
    if not has_tea_tasting():
        console.print(
            f"next: `pip install 'dashclip-ranker[abtest]'`, then `dashclip abtest report {out}`",
            highlight=False,
            markup=False,
        )
        return
    with console.status("measuring"):
        written = write_run_report(out)
    for path in written:
        console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)


def _is_url(where: str) -> bool:
    return where.startswith(("http://", "https://"))


def _show(console: "Console", settings: "RunSettings", finished: "Finished") -> None:
    from rich.table import Table

    from experiments.abtest.metrics import METRICS

    grid = Table("", "true lift", title=f"{settings.days} simulated days, {finished.searches:,} searches")
    for name, lift in finished.true_lift.items():
        grid.add_row(METRICS[name].title, f"{lift:+.2%}")
    console.print(grid)
    for name, fields in finished.left_out.items():
        if fields:
            console.print(f"{name} does not read {', '.join(fields)}")
    for name, refreshed in finished.refreshed.items():
        if not refreshed:
            console.print(f"{name} kept its snapshot: give --{name}-package to refresh it every night")
    if finished.failed:
        console.print(
            f"[red]{finished.failed:,} searches had no scores[/red] and were ordered by bids; the first: "
            f"{finished.first_failure}"
        )
