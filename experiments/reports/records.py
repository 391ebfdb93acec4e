"""Results that other commands left in a sweep folder, read and checked."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, Field, ValidationError

from experiments.reports.page import Origin
from features.artifacts import ResultFile


class EvidenceError(ValueError):
    """A result that cannot be shown; the message says what is wrong with it."""


#: Milliseconds (or a ratio) by number of candidates.
ByCandidates = dict[str, float]


class ServingRecord(ResultFile):
    """`serving.json` as far as the page shows it; every measurement may be missing."""

    command: str | None = None
    machine: dict[str, Any] = Field(default_factory=dict)
    added_p99_ms: ByCandidates = Field(default_factory=dict)
    model_p50_ms: ByCandidates = Field(default_factory=dict)
    fetch_p99_over_fused_p99: ByCandidates = Field(default_factory=dict)
    end_to_end_p50_ms: float | ByCandidates | None = None
    end_to_end_p99_ms: float | ByCandidates | None = None
    noop_p50_ms: float | ByCandidates | None = None
    fastapi_p50_ms: float | ByCandidates | None = None
    fastapi_p99_ms: float | ByCandidates | None = None
    onnxruntime_p50_ms: float | ByCandidates | None = None
    #: Of the machine, by when it was read: timings on a busy machine are too long.
    load_average: dict[str, Any] = Field(default_factory=dict)
    extra_worker_pss_share: float | None = None
    json_vs_arrow: Any = None


class SoakRecord(ResultFile):
    """`soak.json`: mixed load with bad requests, killed workers and refreshes."""

    requests: int
    wrong_scores: int
    unexplained_5xx: int
    memory_mib_start: float | None = None
    memory_mib_end: float | None = None


class Measured(NamedTuple):
    """One measurement at the number of candidates that the page answers for."""

    title: str
    value_ms: float


Record = TypeVar("Record", bound=BaseModel)


def read_record(path: Path, kind: type[Record]) -> Record | None:
    """The result in a JSON file; None if there is no such file.

    Raises:
        EvidenceError: the file is not JSON, or lacks what the page shows; the message names the place.
    """
    if not path.exists():
        return None
    try:
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise EvidenceError(f"{path} cannot be shown: {place}: {first['msg']}") from None
    except (OSError, ValueError) as error:
        raise EvidenceError(f"{path} cannot be read: {error}") from None


def origin_of(
    path: Path, command: str | None, made: Mapping[str, Any], *, created: str | None = None
) -> Origin:
    """Command, commit and time of a result as recorded; the time the file was written where none is.

    Args:
        made: the environment or the machine that the result was measured in.
        created: when, where the result itself says so.
    """
    time = _time(created) or _time(made.get("created")) or _time(made.get("date"))
    commit = made.get("commit")
    return Origin(
        command=command,
        commits=(str(commit),) if commit else (),
        created=time or datetime.fromtimestamp(path.stat().st_mtime, UTC),
    )


def _time(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
