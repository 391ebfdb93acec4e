"""`dashclip deploy` and `dashclip rollback`: another package in place of the one that is served."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.commands.serving.route import challengers_of

if TYPE_CHECKING:
    from serving.servers.deploy import Deployed, Rollout
    from serving.servers.torchserve.archive import Archive

_STORE = "Model store that `dashclip archive` filled; its server may run."
_STATE = "The same as `dashclip serve` was given."


def deploy(
    package: Annotated[Path, typer.Argument(help="Folder that `dashclip package` wrote.")],
    store: Annotated[Path, typer.Argument(help=_STORE)],
    name: Annotated[str | None, typer.Option(help="Which archive, if the store has several.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help=_STATE)] = None,
    challenger: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=PACKAGE: who may get a share of the users from now on; repeatable. Those of now if "
            "none is given."
        ),
    ] = None,
    alone: Annotated[bool, typer.Option("--alone", help="No challengers from now on.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds until the new workers are ready.")] = 180.0,
) -> None:
    """Serve another package, with other weights or columns, without a lost request.

    Its workers start beside the old ones, have to open it and to score its recorded requests as it says; then
    they get all requests, the old ones finish what they have and end. A failure at any step leaves the old
    ones serving, and says which step it was (exit code 2). The store names the new package, so a restart
    serves it, too. Without a running server, the next one serves it.

    Example: `dashclip deploy runs/package_b runs/store`
    """
    from serving.servers.deploy import deploy as deploy_package

    if challenger and alone:
        raise typer.BadParameter("contradicts --challenger", param_hint="--alone")
    given = challengers_of(challenger) if challenger or alone else None
    _run(
        store,
        name,
        state_dir,
        timeout,
        lambda archive, rollout, state, say: deploy_package(
            package, archive, rollout, challengers=given, state=state, progress=say
        ),
    )


def rollback(
    store: Annotated[Path, typer.Argument(help=_STORE)],
    name: Annotated[str | None, typer.Option(help="Which archive, if the store has several.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help=_STATE)] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds until its workers are ready.")] = 180.0,
    history: Annotated[
        bool, typer.Option("--history", help="Only show what was deployed to the store, and when.")
    ] = False,
) -> None:
    """Serve the package again that the store served before the current one; twice goes two steps back.

    By the same steps as `dashclip deploy`, so no request is lost. `dashclip refresh --rollback` goes back to
    older vectors and counters of one package instead.

    Example: `dashclip rollback runs/store`
    """
    from serving.servers.deploy import roll_back

    if history:
        _show_history(store, name)
        return
    _run(
        store,
        name,
        state_dir,
        timeout,
        lambda archive, rollout, state, say: roll_back(archive, rollout, state=state, progress=say),
    )


def _run(
    store: Path,
    name: str | None,
    state_dir: Path | None,
    timeout: float,
    work: "Callable[[Archive, Rollout | None, Path, Callable[[str], None]], Deployed]",
) -> None:
    from experiments.runtime.terminal import Console
    from serving.servers.deploy import rollout_of
    from serving.servers.torchserve.archive import find_archive

    console = Console()
    archive = find_archive(store, name)
    state, rollout = rollout_of(archive, state_dir, timeout_s=timeout)
    with console.status("") as status:
        done = work(archive, rollout, state, status.update)
    if done.compared is None:
        console.print(f"no server runs; the next one for {store} serves {done.now.package}", soft_wrap=True)
        return
    console.print(
        f"{done.now.package} is served in place of {done.before.package}; {done.compared} recorded requests "
        "got their scores",
        soft_wrap=True,
    )
    if done.left_over:
        console.print(f"[yellow]the old workers are still there:[/yellow] {done.left_over}", soft_wrap=True)


def _show_history(store: Path, name: str | None) -> None:
    from rich.table import Table

    from experiments.runtime.terminal import Console
    from serving.servers.deployments import Deployments
    from serving.servers.torchserve.archive import find_archive

    grid = Table("", "since (UTC)", "by", "model version", "package", title=str(store))
    for one in Deployments.of(find_archive(store, name)).known:
        grid.add_row(
            str(one.number), f"{one.since:%Y-%m-%d %H:%M:%S}", one.how, one.model_version, one.package
        )
    Console().print(grid)
