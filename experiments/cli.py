"""The `dashclip` command. Subcommands live in `experiments/commands/`; heavy imports wait until one runs."""

import errno
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from typer.core import TyperGroup

from experiments.commands import (
    abtest,
    abtest_agreement,  # noqa: F401  # adds its command to `abtest`
    abtest_coverage,  # noqa: F401  # likewise
    abtest_loop,  # noqa: F401  # likewise
    abtest_offpolicy,  # noqa: F401  # likewise
    abtest_run,  # noqa: F401  # likewise
    bench,
    config,
    demo,
    doctor,
    init,
    search,
    worlds,
)
from experiments.commands.encoders import (
    embed,
    encode,
    encode_measure,
    grade_measure,  # noqa: F401  # adds its commands to `grade`
    grade_people,  # noqa: F401  # adds its commands to `grade`
    grade_run,
    published_models,  # noqa: F401  # adds its commands to `encode`
    published_sets,
)
from experiments.commands.inputs import (
    features,
    generate,
    import_own,  # noqa: F401  # adds its commands to `import`
    import_published,  # noqa: F401  # the same; own tables are listed first
    imports,
    validate,
)
from experiments.commands.rankers import importance, predict, publish, report, sweep, train
from experiments.commands.serving import (
    archive,
    deploy,
    drift,
    fleet,
    join_clicks,
    package,
    refresh,
    route,
    schema,
    serve,
    sign,
)
from experiments.commands.serving_checks import drift_days, fuzz, loadtest, replay, soak
from experiments.runtime.quiet import quiet_imports


class _InOrder(TyperGroup):
    """Lists its commands in the order of PANELS; typer would list all plain commands before all groups."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        shown = [name for commands in PANELS.values() for name in commands]
        return sorted(self.commands, key=[*shown, *PROOFS].index)


app = typer.Typer(
    name="dashclip",
    cls=_InOrder,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Rank ads and products with semantic embeddings: from raw logs to a five-seed comparison.",
)

proofs = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="How this project tests and measures itself: benchmarks, fuzzing, soak test, ablation, publishing.",
)

#: What `dashclip --help` shows, by job: commands and groups of them.
PANELS: dict[str, dict[str, Callable[..., None] | typer.Typer]] = {
    "Start": {"demo": demo.demo, "init": init.init, "doctor": doctor.doctor, "config": config.config},
    "Data": {
        "generate": generate.generate_marketplace,
        "validate": validate.validate_tables,
        "import": imports.imports,
        "features": features.features,
    },
    "Encoders": {
        "embed": embed.embed,
        "encode": encode.encode,
        "search": search.search,
        "grade": grade_run.grade,
    },
    "Rankers": {
        "train": train.train,
        "sweep": sweep.sweep,
        "report": report.report,
        "importance": importance.importance,
        "predict": predict.predict,
    },
    "Serving": {
        "package": package.package,
        "refresh": refresh.refresh,
        "sign": sign.sign,
        "schema": schema.schema,
        "archive": archive.archive,
        "serve": serve.serve,
        "deploy": deploy.deploy,
        "rollback": deploy.rollback,
        "route": route.route,
        "fleet": fleet.fleet,
        "join-clicks": join_clicks.join_clicks,
        "stop": serve.stop,
    },
    "Experiments": {"abtest": abtest.abtest},
    "Checks": {
        "replay": replay.replay,
        "loadtest": loadtest.loadtest,
        "drift": drift.drift,
        "proofs": proofs,
    },
}
#: How this project tests and measures itself: listed by `dashclip proofs`, called with or without that word.
PROOFS: dict[str, Callable[..., None]] = {
    "bench": bench.bench,
    "fuzz": fuzz.fuzz,
    "soak": soak.soak,
    "publish": publish.publish_command,
}

_PERMIT = "choose another folder, or change who may write there"
#: What to do about what the system says of a file.
_ADVICE = {
    errno.EEXIST: "a file stands where a folder is needed: choose another folder, or delete it",
    errno.ENOTDIR: "a file stands where a folder is needed: choose another folder, or delete it",
    errno.EISDIR: "a folder stands where a file is needed: give a file",
    errno.ENOENT: "check the path",
    errno.ENOSPC: "free some disk, and give the same command again",
    errno.EACCES: _PERMIT,
    errno.EPERM: _PERMIT,
    errno.EROFS: _PERMIT,
}

for panel, commands in PANELS.items():
    for name, command in commands.items():
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, rich_help_panel=panel)
        else:
            app.command(name, rich_help_panel=panel)(command)
for name, proof in PROOFS.items():
    app.command(name, hidden=True)(proof)
    proofs.command(name)(proof)
proofs.command("worlds")(worlds.worlds_command)
proofs.command("publish-worlds")(worlds.publish_worlds_command)
proofs.command("drift-days")(drift_days.drift_days)
proofs.command("ablate")(encode_measure.ablate_command)
proofs.command("publish-encoders")(published_sets.publish_command)


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
        typer.secho(f"error: {_in_words(error)}", err=True, fg=typer.colors.RED)
        typer.secho("(dashclip --traceback … shows where it happened)", err=True, dim=True)
        sys.exit(2)


def _in_words(error: Exception) -> str:
    """What the system says of a file as a sentence that says what to do; our own sentences as they are."""
    if not isinstance(error, OSError) or error.errno is None or error.filename is None:
        return str(error)
    advice = _ADVICE.get(error.errno, "look at the folder that it lies in")
    return f"{error.filename}: {(error.strerror or type(error).__name__).lower()}; {advice}"
