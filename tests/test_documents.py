"""What the documents promise: the README is short, and its numbers are the published ones."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


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
