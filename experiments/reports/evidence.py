"""The evidence page: what other commands measured of a sweep's embeddings and models, beside table 2.

What does not exist, or cannot be read, is named with the command that makes it; nothing else is left out.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.reports.page import Absent, Section
from experiments.reports.records import EvidenceError
from experiments.reports.sections import examples, importance, probes, retrieval, training
from experiments.reports.sections import latency as latency_part


def gather(sweep: Path, *, latency: Path | None = None, queries: bool = True) -> list[Section | Absent]:
    """Importance, retrieval, probes and latency of a sweep, each as found or as absent.

    Args:
        latency: `serving.json` to show, if it is neither in the sweep folder nor in `bench/` beside it.
        queries: whether the sweep's impressions have queries.
    """

    def part(
        anchor: str,
        title: str,
        question: str,
        command: str,
        read: Callable[[Path], Section | None],
        *,
        of_queries: bool = False,
        besides: str = "",
    ) -> Section | Absent:
        if of_queries and not queries:
            found = _part(sweep, anchor, title, question, None, read)
            reason = "These impressions have no queries, which this part is about."
            return replace(found, reason=reason) if isinstance(found, Absent) else found
        return _part(sweep, anchor, title, question, command, read, besides=besides)

    return [
        part(
            "importance",
            importance.TITLE,
            importance.QUESTION,
            _importance_command(sweep),
            importance.importance_section,
        ),
        part(
            "retrieval",
            retrieval.TITLE,
            retrieval.QUESTION,
            f"dashclip encode evaluate DATA {sweep} --row dashclip=TABLES",
            retrieval.retrieval_section,
            of_queries=True,
        ),
        part(
            "probes",
            probes.TITLE,
            probes.QUESTION,
            f"dashclip encode probe DATA TABLES_BEFORE TABLES_AFTER {sweep}",
            probes.probes_section,
            of_queries=True,
        ),
        part(
            "latency",
            latency_part.TITLE,
            latency_part.QUESTION,
            "make bench-serving",
            lambda sweep: latency_part.latency_section(sweep, latency),
            besides=f" {latency_part.MADE_UP}",
        ),
    ]


def gather_encoders(
    folder: Path, *, data: Path | None = None, table: Path | None = None
) -> list[Section | Absent]:
    """What was measured of the encoders in a folder that holds no sweep, and what some queries find.

    Args:
        data: where the products lie; without it no examples are shown.
        table: vectors for the examples; the newest in `folder` if None.

    Raises:
        FileNotFoundError: there is nothing to show.
    """
    held = table or examples.newest_tables(folder)
    tables = f" --table {table}" if table else ""
    command = f"dashclip report {folder} --data DATA{tables}"
    if held is None:
        command = f"dashclip encode run DATA ENCODER {folder / 'tables'}, then {command}"
    parts = [
        _part(
            folder,
            "training",
            training.TITLE,
            training.QUESTION,
            f"dashclip encode pretrain DATA {folder / 'pretrain'}",
            training.training_section,
        ),
        _part(
            folder,
            "retrieval",
            retrieval.TITLE,
            retrieval.QUESTION,
            f"dashclip encode evaluate DATA {folder} --row dashclip=TABLES",
            retrieval.retrieval_section,
        ),
        _part(
            folder,
            "titles",
            retrieval.TITLES_TITLE,
            retrieval.TITLES_QUESTION,
            f"dashclip encode evaluate DATA {folder} --row dashclip=ENCODER",
            retrieval.title_section,
        ),
        _part(
            folder,
            "probes",
            probes.TITLE,
            probes.QUESTION,
            f"dashclip encode probe DATA TABLES_BEFORE TABLES_AFTER {folder}",
            probes.probes_section,
        ),
        _part(
            folder,
            "examples",
            examples.TITLE,
            examples.QUESTION,
            command,
            lambda folder: examples.examples_section(folder, data=data, table=table),
            absent="Say where the products lie." if held else "There are no vectors of products.",
        ),
    ]
    if held is None and all(isinstance(part, Absent) for part in parts):
        raise FileNotFoundError(
            f"{folder} holds neither input tables (products.parquet and others), nor a sweep (sweep.json, of "
            "`dashclip sweep`), nor anything of encoders (training.json, table1.json, title_to_image.json, "
            "probes.json or vectors, of `dashclip encode`)"
        )
    return parts


def _part(
    folder: Path,
    anchor: str,
    title: str,
    question: str,
    command: str | None,
    read: Callable[[Path], Section | None],
    *,
    besides: str = "",
    absent: str = "This was not measured.",
) -> Section | Absent:
    try:
        return read(folder) or Absent(anchor, title, question, f"{absent}{besides}", command)
    except EvidenceError as error:
        return Absent(anchor, title, question, f"{error}.", command)


def _importance_command(sweep: Path) -> str:
    """For the variant whose finished runs read most kinds of pretrained vectors."""
    read = {run.parents[1].name: _kinds_read(run.parent) for run in sorted(sweep.glob("*/seed-*/run.json"))}
    return f"dashclip importance {sweep / max(read, key=read.__getitem__, default='VARIANT')}"


def _kinds_read(run: Path) -> int:
    """How many kinds of pretrained vectors a run reads, by its config; none if it has none."""
    try:
        config: dict[str, Any] = json.loads((run / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0
    semantic = config.get("ranker", {}).get("semantic") or {}
    return len(semantic.get("entities", ())) if semantic.get("initialisation") == "pretrained" else 0
