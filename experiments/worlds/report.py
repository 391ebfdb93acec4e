"""What the worlds came to as files: JSON, Markdown and pictures in OUT, and in the published results."""

import json
from pathlib import Path

from experiments.reports.publish import render_readme
from experiments.worlds.plan import WorldsConfig
from experiments.worlds.plots import differences_png
from experiments.worlds.table1 import build_table1
from experiments.worlds.table2 import build_table2
from experiments.worlds.text import table1_markdown, table2_markdown
from features.artifacts import atomic_write_bytes
from features.progress import Progress, silent

TABLE_1 = "worlds_table1"


def write_report(
    config: WorldsConfig, out: Path, *, command: str | None = None, progress: Progress = silent
) -> list[Path]:
    """Summarise what is finished in `out`: `worlds_<preset>` with .json, .md and .png, `worlds_table1`.

    Returns:
        The written files; none if nothing is finished.
    """
    written = []
    for preset in config.presets:
        table = build_table2(config, out, preset, command=command, progress=progress)
        if table is None:
            continue
        path = out / f"worlds_{preset}.json"
        table.write(path)
        atomic_write_bytes(path.with_suffix(".md"), table2_markdown(table).encode())
        atomic_write_bytes(path.with_suffix(".png"), differences_png(table))
        written += [path, path.with_suffix(".md"), path.with_suffix(".png")]
    table1 = build_table1(config, out, command=command)
    if table1 is not None:
        path = out / f"{TABLE_1}.json"
        table1.write(path)
        atomic_write_bytes(path.with_suffix(".md"), table1_markdown(table1).encode())
        written += [path, path.with_suffix(".md")]
    return written


def publish_worlds(out: Path, *, results: Path, readme: Path) -> list[Path]:
    """Copy the report in `out` to the published results, and write the block of the page `readme` again.

    Returns:
        The written files, that page last.

    Raises:
        FileNotFoundError: `out` holds no report.
        ValueError: parts of it are missing, or `readme` lacks its markers.
    """
    reports = sorted(path for path in out.glob("worlds_*") if path.suffix in (".json", ".md", ".png"))
    tables = {path: json.loads(path.read_bytes()) for path in reports if path.suffix == ".json"}
    if not tables:
        raise FileNotFoundError(f"{out} holds no report on worlds; run `dashclip proofs worlds` first")
    worlds = {tuple(table["worlds"]) for table in tables.values()}
    if len(worlds) > 1:
        raise ValueError(
            f"the reports in {out} are of different worlds; run `dashclip proofs worlds --report-only` with "
            "every preset, or remove the older ones"
        )
    for path, table in tables.items():
        if missing := table["missing"]:
            raise ValueError(
                f"{path} lacks {len(missing)} parts, the first is {missing[0]!r}; run `dashclip proofs "
                "worlds` again, which goes on where it stopped"
            )
    published = {path.stem: json.loads(path.read_bytes()) for path in results.glob("*.json")}
    published |= {path.stem: table for path, table in tables.items()}
    page = render_readme(readme.read_text(encoding="utf-8"), published)
    for path in reports:
        atomic_write_bytes(results / path.name, path.read_bytes())
    atomic_write_bytes(readme, page.encode())
    return [*(results / path.name for path in reports), readme]
