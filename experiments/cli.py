"""The `dashclip` command. Subcommands live in `experiments/commands/`; heavy imports wait until one runs."""

import sys
from types import ModuleType
from typing import Annotated

import typer
from typer.core import TyperGroup
from typer.models import CommandInfo, TyperInfo

from experiments.commands import bench, config, demo, doctor
from experiments.commands.encoders import embed, encode, published_sets
from experiments.commands.inputs import features, generate, imports, validate
from experiments.commands.rankers import importance, publish, report, sweep, train
from experiments.commands.serving import archive, drift, fuzz, loadtest, package, refresh, replay, serve, soak
from experiments.runtime.quiet import quiet_imports

#: Names in the order of `--help`, which would otherwise show plain commands before groups.
_shown: list[str | None] = []


class _InOrder(TyperGroup):
    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return sorted(self.commands, key=_shown.index)


app = typer.Typer(
    name="dashclip",
    cls=_InOrder,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Rank ads and products with semantic embeddings: from raw logs to a five-seed comparison.",
)

#: What `dashclip --help` shows, by job.
PANELS: dict[str, tuple[ModuleType, ...]] = {
    "Start": (demo, doctor, config),
    "Data": (generate, imports, validate, features),
    "Encoders": (embed, encode),
    "Rankers": (train, sweep, report, importance),
    "Serving": (package, refresh, archive, serve),
    "Checks": (replay, loadtest, drift),
}
#: How this project tests and measures itself: listed by `dashclip proofs`, called with or without that word.
PROOFS = (bench, fuzz, soak, publish)


def _register(modules: tuple[ModuleType, ...], *, panel: str | None) -> None:
    """Add the commands to the panel; without one they are hidden."""
    for module in modules:
        module.register(app)
    added: list[CommandInfo | TyperInfo] = [*app.registered_commands, *app.registered_groups]
    for info in added:
        if info.name not in _shown:
            info.rich_help_panel, info.hidden = panel, panel is None
            _shown.append(info.name)


for job, modules in PANELS.items():
    _register(modules, panel=job)
_register(PROOFS, panel=None)

proofs = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="How this project tests and measures itself: benchmarks, fuzzing, soak test, ablation, publishing.",
)
for proof in PROOFS:
    proof.register(proofs)
proofs.command("ablate")(encode.ablate_command)
proofs.command("publish-encoders")(published_sets.publish_command)
app.add_typer(proofs, name="proofs", rich_help_panel="Checks")
_shown.append("proofs")


@app.callback()
def root(
    context: typer.Context,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error happened, not only what it is.")
    ] = False,
) -> None:
    """Rank ads and products with semantic embeddings: from raw logs to a five-seed comparison."""
    context.obj = {"traceback": traceback}


def main() -> None:
    """Run the command line; the caller's mistakes end in one sentence and exit code 2."""
    quiet_imports()
    try:
        app()
    except (ValueError, OSError) as error:
        if "--traceback" in sys.argv[1:]:
            raise
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        typer.secho("(dashclip --traceback … shows where it happened)", err=True, dim=True)
        sys.exit(2)
