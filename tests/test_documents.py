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
    table = json.loads((ROOT / "experiments/results/worlds_mixed.json").read_text(encoding="utf-8"))
    rows = re.findall(r"^\|([^|]+)\| (0\.\d{4}) \|([^|]*)\|([^|]*)\|$", README, flags=re.MULTILINE)
    left_out = ("dcn_pq_sim_history_random", "dcn_pq_sim_history_oracle", "dcn_pq_sim_paper")
    left_out += ("dcn_pq_sim_history_tiers_paper",)
    shown = [variant for name, variant in table["variants"].items() if name not in left_out]
    assert len(rows) == len(shown)
    for (_, mean, difference, share), variant in zip(rows, shown, strict=True):
        assert mean == f"{variant['auc']['mean']:.4f}"
        gain = variant["auc_diff"]
        assert difference.strip() == ("" if gain is None else _interval(gain))
        expected = variant["ceiling_share"]
        assert share.strip() == ("" if expected is None else f"{expected['mean']:.0%}".replace("%", " %"))


def test_the_retrieval_of_the_readme_is_that_of_the_published_table() -> None:
    table = json.loads((ROOT / "experiments/results/worlds_table1.json").read_text(encoding="utf-8"))
    rows = re.findall(r"^\|([^|]+)\| (0\.\d{3}) \| (0\.\d{3}) \| (0\.\d{3}) \|$", README, flags=re.MULTILINE)
    names = ("bm25_stemmed", "char_tfidf", "paper", "dashclip")
    assert len(rows) == len(names)
    everything, misspelt = (table["slices"][name]["rows"] for name in ("all", "misspelt"))
    for (_, *cells), name in zip(rows, names, strict=True):
        expected = (everything[name]["ndcg_at_10"], everything[name]["mrr"], misspelt[name]["ndcg_at_10"])
        assert cells == [f"{found['mean']:.3f}" for found in expected]


def _interval(found: dict[str, float]) -> str:
    return f"{found['mean']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"


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
