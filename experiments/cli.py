"""The `dashclip` command. Subcommands live in `experiments/commands/`; heavy imports wait until one runs."""

import sys
from typing import Annotated

import typer

from experiments.commands import bench, config, demo, doctor
from experiments.commands.encoders import embed, encode
from experiments.commands.inputs import features, generate, imports, validate
from experiments.commands.rankers import importance, publish, report, sweep, train
from experiments.commands.serving import archive, drift, fuzz, loadtest, package, refresh, replay, serve, soak
from experiments.runtime.quiet import quiet_imports

app = typer.Typer(
    name="dashclip",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Rank ads and products with semantic embeddings: from raw logs to a five-seed comparison.",
)

COMMANDS = (
    demo,
    doctor,
    generate,
    imports,
    validate,
    features,
    embed,
    encode,
    train,
    sweep,
    report,
    importance,
    publish,
    package,
    refresh,
    replay,
    archive,
    serve,
    loadtest,
    fuzz,
    soak,
    drift,
    config,
    bench,
)
for command in COMMANDS:
    command.register(app)


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
