"""`dashclip archive`: a package into a TorchServe model store."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from experiments.commands.serving.route import challengers_of


def archive(
    package: Annotated[Path, typer.Argument(help="Folder that `dashclip package` wrote.")],
    store: Annotated[Path, typer.Argument(help="Model store to add it to; made if it is not there.")],
    name: Annotated[str, typer.Option(help="The model's name, part of its URL.")] = "dashclip",
    challenger: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=PACKAGE: another package that may get a share of the users; repeatable. See "
            "`dashclip route`."
        ),
    ] = None,
    embed: Annotated[
        bool,
        typer.Option(
            "--embed", help="One .mar with the package inside, instead of a folder that points to it."
        ),
    ] = False,
) -> None:
    """Put a package into a TorchServe model store.

    The archive is opened again in a fresh interpreter by TorchServe's own loader, and has to score a request
    there, before it appears in the store; what goes wrong is shown in its own words. By default it points to
    the package, so that `dashclip refresh` reaches running workers; `--embed` makes one file to ship.

    Example: `dashclip archive runs/package runs/store`
    """
    from experiments.runtime.terminal import Console
    from features.artifacts import refuse_to_replace_input
    from serving.servers.torchserve.archive import archive_package
    from serving.servers.torchserve.files import ServerSettings, write_server_files
    from serving.servers.torchserve.server import SERVER_FOLDER

    console = Console()
    refuse_to_replace_input(store / name, package)
    with console.status("building, and scoring once in a fresh interpreter"):
        built = archive_package(
            package, store, name=name, embed=embed, challengers=challengers_of(challenger)
        )
    folder = store / SERVER_FOLDER
    if not (folder / "server.json").exists():
        folder.mkdir(exist_ok=True)
        write_server_files(folder, built, ServerSettings())
    console.print(f"{built.path}: model {built.name}, version {built.version}; it scored a request")
    console.print(f"start it with: dashclip serve {shlex.quote(str(store))}")
