"""What users have named is shown as they have named it."""

import doctest
import io
import re
from pathlib import Path

import pytest
from rich.table import Table
from typer.testing import CliRunner

from experiments.cli import app
from experiments.runtime import doctor, terminal
from experiments.runtime.terminal import Console

EXPERIMENTS = Path(__file__).resolve().parents[3] / "experiments"


def shown(*objects, **settings) -> str:
    file = io.StringIO()
    Console(file=file, width=60, **settings).print(*objects)
    return file.getvalue()


def test_the_example_runs() -> None:
    assert doctest.testmod(terminal).failed == 0


@pytest.mark.parametrize(
    "text",
    [
        "pip install 'dashclip-ranker[spark]'",
        "written to runs[old]",
        "Milk [organic] [/x] [@home] [#1]",
        "of ['a', 'b'] and [1, 2]",
        ":apple: juice",
    ],
)
def test_brackets_and_colons_of_users_are_shown(text: str) -> None:
    assert shown(text) == f"{text}\n"
    grid = Table("title", title=text)
    grid.add_row(text)
    assert re.sub(r"\s+", "", shown(grid)).count(re.sub(r"\s+", "", text)) == 2


def test_our_own_styles_are_styles() -> None:
    styled = shown(
        "[yellow]note:[/yellow] x [bold red]y[/] [dim]z[/dim]", force_terminal=True, color_system="standard"
    )
    assert "\x1b[" in styled
    assert re.sub(r"\x1b\[[\d;]*m", "", styled) == "note: x y z\n"


def test_what_was_escaped_is_shown_once() -> None:
    assert shown(r"a \[b] c") == "a [b] c\n"


def test_a_sentence_that_goes_to_a_file_is_one_line_and_is_wrapped_on_a_terminal() -> None:
    sentence = "written to " + "/a/long/folder" * 10
    assert shown(sentence) == f"{sentence}\n"
    assert shown(sentence, force_terminal=True).count("\n") > 1


def test_no_command_prints_on_another_console() -> None:
    others = [
        str(path.relative_to(EXPERIMENTS))
        for path in EXPERIMENTS.rglob("*.py")
        if "rich.console" in path.read_text(encoding="utf-8")
    ]
    assert others == ["runtime/terminal.py"]


def test_doctor_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = doctor.check_extras(['no-such-distribution; extra == "spark"'])
    monkeypatch.setattr(doctor, "diagnose", lambda folder: lines)
    assert "pip install 'dashclip-ranker[spark]'" in CliRunner().invoke(app, ["doctor"]).output
