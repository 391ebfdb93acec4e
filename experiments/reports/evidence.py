"""The evidence page: what other commands measured of a sweep's embeddings and models, beside table 2.

What does not exist, or cannot be read, is named with the command that makes it; nothing else is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments.reports.page import Absent, Section
from experiments.reports.records import EvidenceError
from experiments.reports.sections import importance, latency, probes, retrieval

#: Words in the names of variants that stand for what they read.
_READ = {"p", "q", "pq", "sim", "history"}


@dataclass(frozen=True)
class Part:
    """One part of the page beside table 2: what it answers, how it is made, how it is read."""

    anchor: str
    title: str
    question: str
    #: The command that makes it, for a sweep folder.
    command: Callable[[Path], str]
    #: Whether it is about queries, which a log need not have.
    needs_queries: bool
    #: The section, or None if nothing was measured; EvidenceError if what was measured cannot be shown.
    read: Callable[[Path], Section | None]


def gather(sweep: Path, *, latency: Path | None = None, queries: bool = True) -> list[Section | Absent]:
    """Importance, retrieval, probes and latency of a sweep, each as found or as absent.

    Args:
        latency: `serving.json` to show, if it is neither in the sweep folder nor in `bench/` beside it.
        queries: whether the sweep's impressions have queries.
    """
    return [_section(part, sweep, queries=queries) for part in _parts(latency)]


def _parts(serving_record: Path | None) -> tuple[Part, ...]:
    return (
        Part(
            "importance",
            importance.TITLE,
            importance.QUESTION,
            _importance_command,
            False,
            importance.importance_section,
        ),
        Part(
            "retrieval",
            retrieval.TITLE,
            retrieval.QUESTION,
            lambda sweep: f"dashclip encode evaluate DATA {sweep} --row dashclip=TABLES",
            True,
            retrieval.retrieval_section,
        ),
        Part(
            "probes",
            probes.TITLE,
            probes.QUESTION,
            lambda sweep: f"dashclip encode probe DATA TABLES_BEFORE TABLES_AFTER {sweep}",
            True,
            probes.probes_section,
        ),
        Part(
            "latency",
            latency.TITLE,
            latency.QUESTION,
            lambda _: "make bench-serving",
            False,
            lambda sweep: latency.latency_section(sweep, serving_record),
        ),
    )


def _importance_command(sweep: Path) -> str:
    """For the variant with pretrained vectors whose name has most of what can be read."""
    found = sorted({run.parent.name for run in sweep.glob("*/seed-*")})
    pretrained = [name for name in found if "random" not in name]
    parts = {name: len(set(name.split("_")) & _READ) for name in pretrained}
    return f"dashclip importance {sweep / max(parts, key=parts.__getitem__, default='VARIANT')}"


def _section(part: Part, sweep: Path, *, queries: bool) -> Section | Absent:
    command: str | None = part.command(sweep)
    try:
        found = part.read(sweep)
        reason = "This was not measured."
        if part.needs_queries and not queries:
            reason, command = "These impressions have no queries, which this part is about.", None
    except EvidenceError as error:
        found, reason = None, f"{error}."
    return found or Absent(part.anchor, part.title, part.question, reason, command)
