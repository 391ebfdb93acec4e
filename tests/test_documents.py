"""What the documents promise: a short README with published numbers, and walks along code that exists."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
STOPS = re.findall(r"^\d+\. `([\w/]+\.py): ([\w.]+)`", ARCHITECTURE, flags=re.MULTILINE)


def test_the_readme_has_at_most_a_thousand_words() -> None:
    assert len(README.split()) <= 1000


def test_the_results_of_the_readme_are_those_of_the_published_table() -> None:
    table = json.loads((ROOT / "experiments/results/marketplace_table2.json").read_text(encoding="utf-8"))
    rows = re.findall(
        r"^\|([^|]+)\| (0\.\d{4}) ± (0\.\d{4}) \|([^|]*)\|([^|]*)\|$", README, flags=re.MULTILINE
    )
    assert len(rows) == len(table["variants"])
    for (_, mean, sd, difference, share), variant in zip(rows, table["variants"].values(), strict=True):
        assert (mean, sd) == (f"{variant['auc_mean']:.4f}", f"{variant['auc_sd']:.4f}")
        if "auc_diff_mean" in variant:
            mean, low, high = (f"{variant[f'auc_diff_{name}']:+.4f}" for name in ("mean", "low", "high"))
            assert difference.strip() == f"{mean} [{low}, {high}]"
            assert share.strip() == f"{variant['gain_share']:.0%}".replace("%", " %")
    assert f"{table['rows']:,} test impressions" in README


def test_there_are_four_walks_of_at_most_ten_stops() -> None:
    walks = ARCHITECTURE.split("## Four walks")[1].split("\n## ")[0].split("\n### ")[1:]
    assert len(walks) == 4
    for walk in walks:
        steps = re.findall(r"^\d+\. `[\w/]+\.py: ", walk, flags=re.MULTILINE)
        assert len(steps) == len(re.findall(r"^\d+\. ", walk, flags=re.MULTILINE))
        assert 1 < len(steps) <= 10


@pytest.mark.parametrize("file, name", STOPS, ids=lambda value: value)
def test_a_stop_of_a_walk_exists(file: str, name: str) -> None:
    body: list[ast.stmt] = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = [
            node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == part
        ]
        assert found, f"docs/architecture.md names {name}, which {file} does not define"
        body = found[0].body
