"""`dashclip config`: the configs that come along, to run as they are or to start one's own from."""

import difflib
from pathlib import Path
from typing import Annotated, Any

import typer

config = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="List and print the configs that come along."
)


@config.command("list")
def list_command() -> None:
    """List the shipped configs: what each is for, and which command reads it.

    Wherever a command takes a TOML file, the bare name of a shipped config does as well.

    Example: `dashclip config list`
    """
    import tomllib

    from rich.markup import escape
    from rich.table import Table

    from experiments.config import KINDS, READ_BY
    from experiments.runtime.terminal import Console

    grid = Table()
    grid.add_column("name", no_wrap=True)
    grid.add_column("kind")
    grid.add_column("what it is")
    for path in _shipped():
        text = path.read_text(encoding="utf-8")
        grid.add_row(path.stem, kind_of(tomllib.loads(text)), escape(first_comment(text)))
    console = Console()
    console.print(grid)
    for _, kind in KINDS:
        console.print(f"{kind:<9} is read by `{READ_BY[kind]}`")


@config.command("show")
def show_command(
    name: Annotated[str, typer.Argument(help="Name of a shipped config, as `dashclip config list` has it.")],
) -> None:
    """Print a shipped config as TOML: the way to start one's own.

    Example: `dashclip config show demo > my_sweep.toml`
    """
    from experiments.config import ConfigError

    paths = {path.stem: path for path in _shipped()}
    if name not in paths:
        close = difflib.get_close_matches(name, paths, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(paths)}"
        raise ConfigError(f"no config named {name!r} is shipped; {hint}")
    typer.echo(paths[name].read_text(encoding="utf-8"), nl=False)


@config.command("explain")
def explain_command(
    key: Annotated[
        str | None,
        typer.Argument(
            help="A kind of config, a key with its sections, or the end of one; the kinds if left out."
        ),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/configuration.md: every key of every config.")
    ] = False,
) -> None:
    """Say what a key of a config means, what may stand there, and what holds without it.

    All of it comes from the models that check the configs. A section brings the keys below it.

    Example: `dashclip config explain split.test_days`, `dashclip config explain features`
    """
    from experiments.config_keys import find_keys
    from experiments.reports.config_text import keys_text, kinds_text, to_markdown

    if markdown:
        typer.echo(to_markdown(), nl=False)
    else:
        typer.echo(keys_text(find_keys(key)) if key else kinds_text(), nl=False)


def kind_of(content: dict[str, Any]) -> str:
    """ablation, encoders, sweep, run, features, mapping: a `base` tells an ablation, `variants` or not."""
    from experiments.config import KINDS

    for key, kind in KINDS:
        if key in content:
            return kind
    raise ValueError(f"not a config of any kind: none of {[key for key, _ in KINDS]} is among its keys")


def first_comment(text: str) -> str:
    """The first line of a config without its mark: `# A sweep.` gives `A sweep.`"""
    return text.split("\n", 1)[0].removeprefix("#").strip()


def _shipped() -> list[Path]:
    from experiments.config import SHIPPED

    return sorted(SHIPPED.glob("*.toml"))
