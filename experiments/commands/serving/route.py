"""`dashclip route`: which share of the users each package of a server gets."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from serving.scoring.routed_scorer import Routing


def route(
    place: Annotated[Path, typer.Argument(help="STORE that serves, or its --state-dir.")],
    share: Annotated[
        list[str] | None,
        typer.Option(help="NAME=0.1: the share of the users that a challenger gets; repeatable."),
    ] = None,
    salt: Annotated[
        str | None,
        typer.Option(help="Draw users anew by this word; `auto` for one that follows from the packages."),
    ] = None,
    nobody: Annotated[
        str | None, typer.Option(help="Variant that serves requests without a user; at first the champion.")
    ] = None,
    shadow: Annotated[
        list[str] | None,
        typer.Option(help="Variant that scores what others serve, for nobody; repeatable; `none` for none."),
    ] = None,
    kill: Annotated[
        bool, typer.Option("--kill", help="The champion serves all at once, whatever else is set.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="End --kill: the shares count again.")] = False,
) -> None:
    """Show or change who is served by whom, while the server runs.

    Changes `routing.json` by one rename; workers notice within a second. What is not given stays. The
    champion gets what challengers leave: a single challenger that grows takes users of the champion and gives
    none back. With several, the growth of one but the last takes users of the next one, too.

    Example: `dashclip route runs/store --share challenger=0.1`
    """
    from serving.scoring.routed_scorer import ROUTING, Routing, RoutingError
    from serving.servers.torchserve.server import state_folder

    file = (place if (place / ROUTING).is_file() else state_folder(place)) / ROUTING
    if not file.is_file():
        raise ValueError(
            f"{file} is not there: nothing is routed here; give challengers to `dashclip archive`, or to "
            "`dashclip serve --fastapi`, by --challenger NAME=PACKAGE"
        )
    if kill and resume:
        raise typer.BadParameter("contradicts --kill", param_hint="--resume")
    known: set[str] | None
    try:
        routing = Routing.read(file)
        known = routing.names
    except RoutingError as error:
        if not kill and not share:
            raise
        typer.echo(f"note: {error}; starting from a champion that serves all", err=True)
        routing, known = Routing.of([]), None
    shares = dict(_share(text) for text in share or ())
    changes: dict[str, object] = {}
    if salt is not None:
        changes["salt"] = None if salt == "auto" else salt
    if nobody is not None:
        changes["nobody"] = nobody
    if shadow:
        changes["shadow"] = () if shadow == ["none"] else tuple(shadow)
    if kill or resume:
        changes["killed"] = kill
    changed = routing.with_shares(shares).changed(**changes)
    strangers = sorted(changed.names - known) if known is not None else []
    if strangers:
        raise ValueError(
            f"{', '.join(strangers)} is not served here; there are {', '.join(sorted(known or ()))}"
        )
    if changed != routing or known is None:
        changed.write(file)
    _show(changed, file)


def challengers_of(texts: list[str] | None) -> dict[str, Path]:
    """What `--challenger NAME=PACKAGE` says, by name.

    Raises:
        ValueError: one has no name or no package, or two have one name.
    """
    found: dict[str, Path] = {}
    for text in texts or ():
        name, equals, package = text.partition("=")
        if not (name and equals and package):
            raise ValueError(f"--challenger {text!r}: write NAME=PACKAGE, such as challenger=runs/package_b")
        if name in found:
            raise ValueError(f"--challenger {name} is given twice; each needs a name of its own")
        found[name] = Path(package)
    return found


def _share(text: str) -> tuple[str, float]:
    name, _, share = text.partition("=")
    try:
        return name, float(share)
    except ValueError:
        raise ValueError(f"--share {text!r}: write NAME=0.1") from None


def _show(routing: "Routing", file: Path) -> None:
    from rich.table import Table

    from experiments.runtime.terminal import Console

    grid = Table("variant", "share of the users", "without a user", "shadows", title=str(file))
    for name, share in routing.shares.items():
        marks = ("yes" if routing.nobody == name else "", "yes" if name in routing.shadow else "")
        grid.add_row(name, f"{share:.2%}", *marks)
    console = Console()
    console.print(grid)
    console.print(f"salt: {routing.salt or 'follows from the packages'}", highlight=False)
    if routing.killed:
        console.print("[red]killed[/red]: the champion serves all; `--resume` ends it")
