"""A sweep's table into the repository: `experiments/results/NAME.md` and `.json`, and the README's block."""

import json
import re
from pathlib import Path
from typing import Any

from features.files import atomic_write_bytes, atomic_write_json

_BLOCK = re.compile(r"(<!-- results:begin[^\n]*-->\n).*?(<!-- results:end -->)", re.DOTALL)


def publish(sweep: Path, name: str, results: Path) -> list[Path]:
    """Copy the report that `dashclip report` left in `sweep`, with where and how it was made.

    Raises:
        FileNotFoundError: `sweep` holds no report yet.
    """
    try:
        table = json.loads((sweep / "table2.json").read_text())
        markdown = (sweep / "table2.md").read_text()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error.filename} does not exist; run `dashclip report {sweep}` first"
        ) from None
    record = json.loads((sweep / "sweep.json").read_text())
    provenance = {"command": record["command"], **record["environment"]}
    written = [results / f"{name}.md", results / f"{name}.json"]
    atomic_write_bytes(written[0], f"{markdown.rstrip()}\n\n{_footer(provenance)}\n".encode())
    atomic_write_json(written[1], {**table, "provenance": provenance})
    return written


def render_readme(readme: str, results: Path) -> str:
    """`readme` with one table for each published result between its markers.

    Raises:
        ValueError: the markers are missing.
    """
    if not _BLOCK.search(readme):
        raise ValueError("the README needs <!-- results:begin … --> and then <!-- results:end -->")
    paths = sorted(results.glob("*.json"), key=lambda path: (not _load(path)["simulated"], path.name))
    block = "\n".join(_summary(_load(path), path) for path in paths)
    return _BLOCK.sub(lambda found: f"{found[1]}\n{block}\n{found[2]}", readme)


def _load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _summary(table: dict[str, Any], path: Path) -> str:
    kind = "**simulated data**" if table["simulated"] else "real data"
    lines = [
        f"**{table['name'][0].upper()}{table['name'][1:]}** ({kind}; {table['rows']:,} test impressions, "
        f"{table['seeds']} seeds, mean ± sd; [whole table](experiments/results/{path.stem}.md)):",
        "",
        "| | AUC | difference to baseline [95 % over seeds] | share of reachable gain | normalised LogLoss |",
        "|---|---|---|---|---|",
    ]
    if floor := table["floor"]:
        lines.append(
            f"| {floor['name']} (no model) | {floor['auc']:.4f} | | | {_four(floor['norm_logloss'])} |"
        )
    for name, variant in table["variants"].items():
        difference = _difference(variant, baseline=name == table["baseline"])
        lines.append(
            f"| {variant['title']} | {variant['auc_mean']:.4f} ± {variant['auc_sd']:.4f} | "
            f"{difference} | {_share(variant.get('gain_share'))} | "
            f"{variant['norm_logloss_mean']:.4f} ± {variant['norm_logloss_sd']:.4f} |"
        )
    if table["best_auc"] is not None:
        lines.append(
            f"| best reachable (the true click probabilities) | {table['best_auc']:.4f} | | 100 % | |"
        )
    return "\n".join([*lines, "", _footer(table["provenance"]), ""])


def _difference(variant: dict[str, Any], *, baseline: bool) -> str:
    if baseline:
        return ""
    low, high = variant["auc_diff_low"], variant["auc_diff_high"]
    return f"{variant['auc_diff_mean']:+.4f} [{low:+.4f}, {high:+.4f}]"


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _four(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _footer(provenance: dict[str, Any]) -> str:
    return (
        f"`{provenance['command']}`, commit {provenance['commit']}, {provenance['created'][:10]}, "
        f"{provenance['cores']} cores of {provenance['cpu']}, torch {provenance['packages']['torch']}."
    )
