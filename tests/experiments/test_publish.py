"""Published results are what the report holds, and say where they come from."""

import json
from pathlib import Path

import pytest

from experiments.publish import publish, render_readme

VARIANT = {
    "title": "DCN",
    "auc_mean": 0.77,
    "auc_sd": 0.001,
    "norm_logloss_mean": 0.88,
    "norm_logloss_sd": 0.002,
}
GAIN = {"auc_diff_mean": 0.01, "auc_diff_low": 0.008, "auc_diff_high": 0.012, "gain_share": 0.25}
TABLE = {
    "name": "small",
    "simulated": True,
    "rows": 1234,
    "seeds": 5,
    "baseline": "dcn",
    "best_auc": 0.81,
    "floor": {"name": "popularity", "auc": 0.6, "norm_logloss": None},
    "variants": {"dcn": VARIANT, "more": {**VARIANT, **GAIN, "title": "more", "auc_mean": 0.78}},
}
RECORD = {
    "command": "dashclip sweep x",
    "environment": {
        "commit": "abc",
        "created": "2026-01-02T03:04:05",
        "cores": 2,
        "cpu": "chip",
        "packages": {"torch": "1"},
    },
}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    (tmp_path / "table2.json").write_text(json.dumps(TABLE))
    (tmp_path / "table2.md").write_text("# the table\n")
    (tmp_path / "sweep.json").write_text(json.dumps(RECORD))
    return tmp_path


def test_a_published_result_says_how_it_was_made(sweep: Path, tmp_path: Path) -> None:
    publish(sweep, "small", tmp_path / "results")
    text = (tmp_path / "results" / "small.md").read_text()
    assert text.startswith("# the table")
    assert "`dashclip sweep x`, commit abc, 2026-01-02, 2 cores of chip, torch 1." in text
    assert json.loads((tmp_path / "results" / "small.json").read_text())["provenance"]["commit"] == "abc"


def test_the_readme_block_is_replaced_and_the_rest_kept(sweep: Path, tmp_path: Path) -> None:
    publish(sweep, "small", tmp_path / "results")
    readme = "before\n<!-- results:begin (generated) -->\nold\n<!-- results:end -->\nafter\n"
    once = render_readme(readme, tmp_path / "results")
    assert once.startswith("before\n<!-- results:begin (generated) -->\n")
    assert once.endswith("<!-- results:end -->\nafter\n")
    assert "old" not in once
    assert "| more | 0.7800 ± 0.0010 | +0.0100 [+0.0080, +0.0120] | 25% | 0.8800 ± 0.0020 |" in once
    assert "| popularity (no model) | 0.6000 | | |  |" in once
    assert "**simulated data**" in once
    assert render_readme(once, tmp_path / "results") == once


def test_a_sweep_without_a_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run `dashclip report"):
        publish(tmp_path, "x", tmp_path / "results")


def test_a_readme_without_markers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="results:begin"):
        render_readme("nothing", tmp_path)
