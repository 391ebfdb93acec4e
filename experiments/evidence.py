"""The evidence page: what other commands measured of a sweep's embeddings and models, beside table 2.

What does not exist, or cannot be read, is named with the command that makes it; nothing else is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments import evidence_importance, evidence_latency, evidence_probes, evidence_retrieval
from experiments.evidence_files import EvidenceError
from experiments.page_parts import Absent, Section

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


def _parts(latency: Path | None) -> tuple[Part, ...]:
    return (
        Part(
            "importance",
            evidence_importance.TITLE,
            evidence_importance.QUESTION,
            _importance_command,
            False,
            evidence_importance.importance_section,
        ),
        Part(
            "retrieval",
            evidence_retrieval.TITLE,
            evidence_retrieval.QUESTION,
            lambda sweep: f"dashclip encode evaluate DATA {sweep} --row dashclip=TABLES",
            True,
            evidence_retrieval.retrieval_section,
        ),
        Part(
            "probes",
            evidence_probes.TITLE,
            evidence_probes.QUESTION,
            lambda sweep: f"dashclip encode probe DATA TABLES_BEFORE TABLES_AFTER {sweep}",
            True,
            evidence_probes.probes_section,
        ),
        Part(
            "latency",
            evidence_latency.TITLE,
            evidence_latency.QUESTION,
            lambda _: "make bench-serving",
            False,
            lambda sweep: evidence_latency.latency_section(sweep, latency),
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
