"""`dashclip abtest loop` and `agreement`: what cannot run is said before anything is written."""

from pathlib import Path

from typer.testing import CliRunner

from experiments.cli import app


def test_a_loop_in_no_world_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["abtest", "loop", str(tmp_path), str(out), "--config", "run"])
    assert "dashclip generate" in str(result.exception)
    assert not out.exists()


def test_an_agreement_of_what_is_no_run_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["abtest", "agreement", str(tmp_path), str(out), str(tmp_path)])
    assert "not a finished run" in str(result.exception)
    assert not out.exists()
