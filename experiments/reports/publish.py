"""Results into the repository: `experiments/results/NAME.md` and `.json`, and `docs/results.md`.

A sweep gives table 2. What the demo measured on its encoders beside it, table 1 and the probes, goes along.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.reports.table1_text import row_title
from experiments.runtime.environment import provenance_of
from experiments.statistics.cells import markdown_table, number, with_limits, with_sd
from experiments.statistics.intervals import Interval
from experiments.worlds.text import worlds_summary
from features.artifacts import atomic_write_bytes, atomic_write_json

_BLOCK = re.compile(r"(<!-- results:begin[^\n]*-->\n).*?(<!-- results:end -->)", re.DOTALL)


def publish(sweep: Path, name: str, *, results: Path, readme: Path) -> list[Path]:
    """Copy the report that `dashclip report` left in `sweep`, with where and how its runs were made.

    Everything is rendered before anything is written. The block of the page `readme` gets all results.

    Returns:
        The written files, that page last.

    Raises:
        FileNotFoundError: `sweep` holds no report yet, or a run lacks its environment.json.
        ValueError: runs of the sweep are missing, or `readme` lacks its markers.
    """
    try:
        table = _load(sweep / "table2.json")
        markdown = (sweep / "table2.md").read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error.filename} does not exist; run `dashclip report {sweep}` first"
        ) from None
    if missing := table["missing_runs"]:
        names = ", ".join(f"{run['variant']} seed {run['seed']}" for run in missing)
        raise ValueError(
            f"{sweep} lacks {len(missing)} runs ({names}); finish the sweep and run `dashclip report {sweep}`"
        )
    provenance = _provenance(sweep)
    published = {**table, "provenance": provenance}
    tables = {path.stem: _load(path) for path in results.glob("*.json")} | {name: published}
    encoders = _encoder_results(sweep, name, provenance)
    tables |= {
        Path(file).stem: json.loads(found) for file, found in encoders.items() if file.endswith("json")
    }
    page = render_readme(readme.read_text(encoding="utf-8"), tables)
    written = [results / f"{name}.md", results / f"{name}.json"]
    atomic_write_bytes(written[0], f"{markdown.rstrip()}\n\n{_footer(provenance)}\n".encode())
    atomic_write_json(written[1], published)
    for target, content in encoders.items():
        written.append(results / target)
        atomic_write_bytes(written[-1], content)
    atomic_write_bytes(readme, page.encode())
    return [*written, readme]


def _encoder_results(sweep: Path, name: str, provenance: dict[str, Any]) -> dict[str, bytes]:
    """Content of table 1 and the probes by the name of the file to write, where `sweep` has them."""
    found = {}
    for source in ("table1.md", "table1.json", "probes.md", "probes.json"):
        if (sweep / source).is_file():
            content = (sweep / source).read_bytes()
            if source.endswith("md"):
                content = content.rstrip() + f"\n\n{_footer(provenance)}\n".encode()
            found[f"{name.removesuffix('_table2')}_{source}"] = content
    return found


def render_readme(readme: str, tables: Mapping[str, dict[str, Any]]) -> str:
    """`readme` with each published table, by its file name, between the markers: those over worlds first,
    then other simulated ones.

    Raises:
        ValueError: the markers are missing.
    """
    if not _BLOCK.search(readme):
        raise ValueError("the page needs <!-- results:begin … --> and then <!-- results:end -->")
    worlds = sorted((name, table) for name, table in tables.items() if "worlds" in table)
    second = [
        (name, table) for name, table in tables.items() if "baseline" in table and "worlds" not in table
    ]
    ordered = sorted(second, key=lambda named: (not named[1]["simulated"], named[0]))
    first = sorted((name, table) for name, table in tables.items() if "pool" in table)
    blocks = [worlds_summary(table, name) + _footer(table["provenance"]) + "\n" for name, table in worlds]
    blocks += [_retrieval_summary(table, name) for name, table in first]
    block = "\n".join([*blocks, *(_summary(table, name) for name, table in ordered)])
    return _BLOCK.sub(lambda found: f"{found[1]}\n{block}\n{found[2]}", readme)


def _provenance(sweep: Path) -> dict[str, Any]:
    """The command of the sweep, and what its runs recorded about themselves: a sweep may resume elsewhere."""
    record = _load(sweep / "sweep.json")
    runs = []
    for variant in record["variants"]:
        for seed in record["seeds"]:
            path = sweep / variant / f"seed-{seed}" / "environment.json"
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path} does not exist, so there is no record of how this run was made"
                )
            runs.append(_load(path))
    return provenance_of(record["command"], runs)


def _load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _summary(table: dict[str, Any], name: str) -> str:
    constructed = "**constructed impressions**" if table.get("constructed") else "real data"
    kind = "**simulated data**" if table["simulated"] else constructed
    expects = table.get("best_auc_expected") is not None
    heading = ["", "AUC", "difference to baseline [95 % over seeds]"]
    second = table.get("second_baseline")
    heading += ["the same in expected AUC"] * expects + ["difference to second baseline"] * bool(second)
    heading += ["share of reachable gain", "normalised LogLoss"]
    rows = []
    if floor := table["floor"]:
        logloss = "" if floor["norm_logloss"] is None else number(floor["norm_logloss"])
        cells = [f"{floor['name']} (no model)", number(floor["auc"]), ""]
        rows.append([*cells, *[""] * (expects + bool(second)), "", logloss])
    for key, variant in table["variants"].items():
        compared = key != table["baseline"]
        cells = [variant["title"], with_sd(variant["auc_mean"], variant["auc_sd"])]
        cells.append(_difference(variant, "auc_diff") if compared else "")
        cells += [_difference(variant, "expected_auc_diff") if compared else ""] * expects
        cells += [_difference(variant.get("over_second_baseline", {}), "auc_diff")] * bool(second)
        share = variant.get("gain_share")
        cells.append("" if share is None else f"{share:.0%}")
        rows.append([*cells, with_sd(variant["norm_logloss_mean"], variant["norm_logloss_sd"])])
    if table["best_auc"] is not None:
        cells = ["best reachable (the true click probabilities)", number(table["best_auc"]), ""]
        rows.append([*cells, *[""] * (expects + bool(second)), "100 %", ""])
    lines = [
        f"**{table['name'][0].upper()}{table['name'][1:]}** ({kind}; {table['rows']:,} test impressions, "
        f"{_seeds(table['seeds'])}; [whole table](../experiments/results/{name}.md)):",
        "",
        *markdown_table(heading, rows, text_columns=len(heading), compact=True),
        "",
    ]
    if expects:
        lines += ["Expected AUC: clicks drawn anew from the true probabilities, on average.", ""]
    if second:
        lines += [f"Second baseline: {table['variants'][second]['title']}.", ""]
    return "\n".join([*lines, _footer(table["provenance"]), ""])


def _retrieval_summary(table: dict[str, Any], name: str) -> str:
    kind = "**simulated data**" if table["simulated"] else "real data"
    measures = ("graded_rel", "recall_at_10", "precision_at_10", "ndcg_at_10", "mrr")
    rows = []
    for key, row in table["rows"].items():
        cells = [row_title(key), *(f"{row[measure]:.3f}" for measure in measures)]
        cells[4] += f" [{row['ndcg_at_10_low']:.3f}, {row['ndcg_at_10_high']:.3f}]"
        rows.append(cells)
    interval = f"nDCG@10 [95 % over {table.get('drawn', 'queries')}]"
    heading = ("", "Graded Rel", "Recall@10", "Precision@10", interval, "MRR@10")
    lines = [
        f"**Table 1, retrieval** ({kind}; {table['queries']:,} held-out queries, {table['description']}; "
        f"[whole table](../experiments/results/{name}.md)):",
        "",
        *markdown_table(heading, rows, text_columns=len(heading), compact=True),
        "",
    ]
    return "\n".join(lines)


def _seeds(seeds: int) -> str:
    return "one seed, hence no spread and no interval" if seeds == 1 else f"{seeds} seeds, mean ± sd"


def _difference(variant: dict[str, Any], name: str) -> str:
    if variant.get(f"{name}_mean") is None:
        return ""
    ends = (variant[f"{name}_{end}"] for end in ("mean", "low", "high"))
    return with_limits(Interval(*ends), sign=True, square=True)


def _footer(provenance: dict[str, Any]) -> str:
    several = "s" if "," in provenance["commit"] else ""
    return (
        f"`{provenance['command']}`, commit{several} {provenance['commit']}, {provenance['created'][:10]}, "
        f"{provenance['machine']}, torch {provenance['torch']}."
    )
