"""`dashclip abtest run` and `offpolicy`: what cannot run is said before anything is written."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from experiments.cli import app
from serving.package.sealed_folder import PackageError

RUN = ["abtest", "run"]


def test_a_folder_that_is_no_package_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [*RUN, str(tmp_path), str(out), "--control", str(tmp_path), "--treatment", "http://h/score"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, PackageError)
    assert "dashclip package" in str(result.exception)
    assert not out.exists()


def test_a_folder_that_is_no_world_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    urls = ["--control", "http://127.0.0.1:9/a", "--treatment", "http://127.0.0.1:9/b"]
    result = CliRunner().invoke(app, [*RUN, str(tmp_path), str(out), *urls])
    assert "dashclip generate" in str(result.exception)
    assert not out.exists()


@pytest.mark.parametrize("name", ["control", "treatment"])
def test_a_served_package_goes_with_a_url(tmp_path: Path, name: str) -> None:
    package = tmp_path / "package"
    (package / "generations" / "000001").mkdir(parents=True)
    (package / "CURRENT").write_text("000001")
    named = {"control": "http://h/a", "treatment": "http://h/b", name: str(package)}
    options = [part for option, value in named.items() for part in (f"--{option}", value)]
    arguments = [*RUN, str(tmp_path), str(tmp_path / "out"), *options, f"--{name}-package", str(package)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "goes with a URL" in result.output


def test_a_run_without_exploration_has_no_off_policy_estimates(tmp_path: Path) -> None:
    settings = {"world": str(tmp_path), "control": "a", "treatment": "b", "explore": 0.0}
    (tmp_path / "run.json").write_text(json.dumps(settings))
    result = CliRunner().invoke(app, ["abtest", "offpolicy", str(tmp_path)])
    assert "--explore" in str(result.exception)
    settings["explore"] = 0.1
    (tmp_path / "run.json").write_text(json.dumps(settings))
    result = CliRunner().invoke(app, ["abtest", "offpolicy", str(tmp_path)])
    assert "no finished day" in str(result.exception)
