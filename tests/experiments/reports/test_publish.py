"""Published results are what the report holds, and say where they come from."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.reports.publish import publish, render_readme
from experiments.reports.table2.page import write_report
from experiments.sweeps.table2 import build_report
from tests.experiments.sweeps.sweep_folders import write_sweep

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
    "missing_runs": [],
    "variants": {"dcn": VARIANT, "more": {**VARIANT, **GAIN, "title": "more", "auc_mean": 0.78}},
}
LIMITS = ("mean", "low", "high")
ENVIRONMENT = {
    "commit": "abc",
    "created": "2026-01-02T03:04:05",
    "cores": 2,
    "cpu": "chip",
    "packages": {"torch": "1"},
}
# The environment of the last call of a sweep, which may have trained nothing.
LAST_CALL = {**ENVIRONMENT, "commit": "later", "created": "2027-01-01T00:00:00"}
RECORD = {
    "command": "dashclip sweep x",
    "environment": LAST_CALL,
    "variants": ["dcn", "more"],
    "seeds": [1, 2],
}
README = "before\n<!-- results:begin (generated) -->\nold\n<!-- results:end -->\nafter\n"


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "sweep"
    for variant in ("dcn", "more"):
        for seed in (1, 2):
            write_environment(folder, variant, seed)
    (folder / "table2.json").write_text(json.dumps(TABLE))
    (folder / "table2.md").write_text("# the table\n")
    (folder / "sweep.json").write_text(json.dumps(RECORD))
    return folder


def write_environment(sweep: Path, variant: str, seed: int, **changes: Any) -> None:
    path = sweep / variant / f"seed-{seed}" / "environment.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(ENVIRONMENT | changes))


def published(sweep: Path, tmp_path: Path, readme: str = README) -> str:
    """The README after publishing as `small`."""
    page = tmp_path / "README.md"
    page.write_text(readme)
    written = publish(sweep, "small", results=tmp_path / "results", readme=page)
    assert [path.name for path in written] == ["small.md", "small.json", "README.md"]
    return page.read_text()


def test_a_published_result_says_how_its_runs_were_made(sweep: Path, tmp_path: Path) -> None:
    published(sweep, tmp_path)
    text = (tmp_path / "results" / "small.md").read_text()
    assert text.startswith("# the table")
    assert "`dashclip sweep x`, commit abc, 2026-01-02, 2 cores of chip, torch 1." in text
    assert json.loads((tmp_path / "results" / "small.json").read_text())["provenance"]["commit"] == "abc"


def test_all_commits_of_the_runs_and_the_first_date_are_given(sweep: Path, tmp_path: Path) -> None:
    write_environment(sweep, "more", 2, commit="def", created="2025-12-31T00:00:00")
    published(sweep, tmp_path)
    assert "commits abc, def, 2025-12-31, 2 cores of chip" in (tmp_path / "results" / "small.md").read_text()


def test_a_sweep_with_missing_runs_is_not_published(sweep: Path, tmp_path: Path) -> None:
    missing = {"variant": "more", "seed": 2, "reason": "was not run"}
    (sweep / "table2.json").write_text(json.dumps(TABLE | {"missing_runs": [missing]}))
    with pytest.raises(ValueError, match="lacks 1 runs \\(more seed 2\\); finish the sweep"):
        published(sweep, tmp_path)
    assert not (tmp_path / "results").exists()


def test_a_sweep_of_one_seed_is_published_without_spread(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "one", seeds=(4,))
    for path in folder.glob("*/*/environment.json"):
        path.write_text(json.dumps(ENVIRONMENT))
    write_report(build_report(folder, bootstrap_resamples=20), folder)
    readme = published(folder, tmp_path)
    assert "one seed, hence no spread" in readme
    assert "None" not in readme
    assert "[+" not in readme


def test_the_readme_block_is_replaced_and_the_rest_kept(sweep: Path, tmp_path: Path) -> None:
    once = published(sweep, tmp_path)
    assert once.startswith("before\n<!-- results:begin (generated) -->\n")
    assert once.endswith("<!-- results:end -->\nafter\n")
    assert "old" not in once
    assert "| more | 0.7800 ± 0.0010 | +0.0100 [+0.0080, +0.0120] | 25% | 0.8800 ± 0.0020 |" in once
    assert "| popularity (no model) | 0.6000 |  |  |  |" in once
    assert "**simulated data**" in once
    assert published(sweep, tmp_path, once) == once


def test_known_click_probabilities_give_a_column_of_expected_auc(sweep: Path, tmp_path: Path) -> None:
    expected = {
        f"expected_auc_diff_{name}": value for name, value in zip(LIMITS, (0.012, 0.011, 0.013), strict=True)
    }
    table = json.loads(json.dumps(TABLE)) | {"best_auc_expected": 0.87}
    table["variants"]["more"] |= expected
    (sweep / "table2.json").write_text(json.dumps(table))
    readme = published(sweep, tmp_path)
    assert "| 0.7800 ± 0.0010 | +0.0100 [+0.0080, +0.0120] | +0.0120 [+0.0110, +0.0130] | 25% |" in readme
    assert "Expected AUC" in readme
    columns = {line.count("|") for line in readme.splitlines() if line.startswith("|")}
    assert columns == {7}


def test_a_second_baseline_gives_a_column(sweep: Path, tmp_path: Path) -> None:
    table = json.loads(json.dumps(TABLE)) | {"second_baseline": "cheap"}
    over = {"auc_diff_mean": 0.004, "auc_diff_low": 0.003, "auc_diff_high": 0.005}
    table["variants"]["more"]["over_second_baseline"] = over
    table["variants"]["cheap"] = {**VARIANT, **GAIN, "title": "one cosine"}
    (sweep / "table2.json").write_text(json.dumps(table))
    readme = published(sweep, tmp_path)
    assert "| 0.7800 ± 0.0010 | +0.0100 [+0.0080, +0.0120] | +0.0040 [+0.0030, +0.0050] | 25% |" in readme
    assert "| one cosine | 0.7700 ± 0.0010 | +0.0100 [+0.0080, +0.0120] |  | 25% |" in readme
    assert "Second baseline: one cosine." in readme
    assert {line.count("|") for line in readme.splitlines() if line.startswith("|")} == {7}


def test_a_sweep_without_a_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run `dashclip report"):
        publish(tmp_path, "x", results=tmp_path / "results", readme=tmp_path / "README.md")


def test_a_readme_without_markers_is_refused_before_anything_is_written(sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="results:begin"):
        published(sweep, tmp_path, "nothing")
    assert not (tmp_path / "results").exists()


def test_simulated_results_come_first() -> None:
    table = {
        **TABLE,
        "provenance": {"command": "c", "commit": "a", "created": "2026-01-01", "machine": "m", "torch": "1"},
    }
    text = render_readme(README, {"a": {**table, "simulated": False}, "b": table})
    assert text.index("results/b.md") < text.index("results/a.md")


@pytest.mark.parametrize(("record", "drawn"), [({}, "queries"), ({"drawn": "intents"}, "intents")])
def test_table_1_says_what_its_intervals_are_over(record, drawn):
    row = dict.fromkeys(("graded_rel", "recall_at_10", "precision_at_10", "ndcg_at_10", "mrr"), 0.5)
    row |= {"ndcg_at_10_low": 0.4, "ndcg_at_10_high": 0.6}
    table = {
        "pool": "catalogue",
        "simulated": True,
        "queries": 9,
        "description": "made up",
        "rows": {"lsa": row},
    }
    assert f"nDCG@10 [95 % over {drawn}]" in render_readme(README, {"t": table | record})
