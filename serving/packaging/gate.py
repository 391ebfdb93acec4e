"""The gate of a refresh: a generation that is much poorer, older or other than the live one is refused.

A truncated log makes a perfectly consistent generation: nothing but a comparison with the one that serves
can tell. Counts come from both snapshots; scores are those of the recorded requests without what a snapshot
knows (counters, attributes, purchases), so that they move as live traffic would.

Shapes: C candidates of all recorded requests.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from features.artifacts import StrictModel, atomic_write_bytes
from features.columns.clock import iso
from features.online.plan import impression_columns
from features.online.request import RequestError, ScoreRequest
from features.online.snapshot import SnapshotManifest
from serving.package.generations import GateCheck, GateRecord
from serving.package.sealed_folder import PackageError
from serving.package.toml_settings import read_settings
from serving.packaging.as_of import time_us_of
from serving.scoring.live_generation import LiveGeneration
from serving.wire.reply import ScoreReply

GATE_NAME = "gate.toml"
_BATCH = 16
_HOUR_US = 3_600_000_000
#: Counts of a window of the log vary by their square root even if nothing changes; so many of it may be.
_WINDOWED, _NOISE = ("purchases", "pairs"), 3.0
_COUNTED = ("users", "products", "queries", "purchases", "pairs", "impressions")


class GateLimits(StrictModel):
    """What a refresh may change; all in comparison with the live generation.

    Attributes:
        least_count: users, products, queries, purchases, counted pairs and impressions of the log, as a share
            of what they were; small counts of purchases and pairs may vary by chance, too.
        most_count: the same, upwards.
        most_log_age_hours: between the last impression of the log and the moment of the snapshot.
        more_unknown: by how much the share of recorded candidates whose product is unknown may grow.
        more_without_vector: the same for products of the catalogue, and queries, without a vector.
        most_mean_shift: change of the mean score, as a share of what it was.
        most_movement: mean absolute change of a score, as a share of the mean score.
    """

    least_count: Annotated[float, Field(ge=0, le=1)] = 0.8
    most_count: Annotated[float, Field(ge=1)] = 5.0
    most_log_age_hours: Annotated[float, Field(gt=0)] = 48.0
    more_unknown: Annotated[float, Field(ge=0, le=1)] = 0.05
    more_without_vector: Annotated[float, Field(ge=0, le=1)] = 0.15
    most_mean_shift: Annotated[float, Field(gt=0)] = 0.25
    most_movement: Annotated[float, Field(gt=0)] = 0.5

    @classmethod
    def of(cls, package: Path) -> "GateLimits":
        """Those of PACKAGE/gate.toml; the defaults where there is none, as in older packages.

        Raises:
            PackageError: the file cannot be used; says which key.
        """
        return read_settings(package / GATE_NAME, cls)

    def write(self, package: Path) -> None:
        """Write PACKAGE/gate.toml, for people to change."""
        lines = [f"{name} = {value}" for name, value in self.model_dump().items()]
        head = "# What `dashclip refresh` may change without --force; docs/serving.md says what each means."
        atomic_write_bytes(package / GATE_NAME, "\n".join([head, *lines, ""]).encode())


class GateError(PackageError):
    """A generation that did not pass; `checks` are those that failed."""

    def __init__(self, package: Path, checks: Sequence[GateCheck]) -> None:
        self.checks = tuple(checks)
        failed = "; ".join(check.sentence for check in checks)
        super().__init__(
            f"{package} keeps its generation, the new one does not pass the gate: {failed}. If that is what "
            f"happened, refresh with --force; limits are in {package / GATE_NAME}"
        )


def check_gate(
    before: LiveGeneration, now: LiveGeneration, requests: Sequence[ScoreRequest], limits: GateLimits
) -> tuple[GateCheck, ...]:
    """Every comparison, passed or not."""
    return (
        *_counts(before, now, limits),
        *_ages(before, now, limits),
        *_scores(before, now, requests, limits),
    )


def gate_record(checks: Sequence[GateCheck], *, package: Path, force: bool) -> GateRecord:
    """What a generation keeps of its gate.

    Raises:
        GateError: a check failed, and is not forced.
    """
    failed = [check for check in checks if not check.passed]
    if failed and not force:
        raise GateError(package, failed)
    return GateRecord(checks=tuple(checks), forced=bool(failed))


def without_snapshot_values(request: ScoreRequest, keep: Sequence[str], *, timestamp_us: int) -> ScoreRequest:
    """A recorded request as live traffic sends it: what a snapshot knows, it has to say."""
    return replace(
        request,
        timestamp_us=timestamp_us,
        context={name: value for name, value in request.context.items() if name in keep},
        candidate_columns={
            name: values for name, values in request.candidate_columns.items() if name in keep
        },
        history=None,
    )


def _counts(before: LiveGeneration, now: LiveGeneration, limits: GateLimits) -> list[GateCheck]:
    checks = []
    counts = [_counted(live.features.snapshot.manifest) for live in (before, now)]
    for name in _COUNTED:
        was, is_ = counts[0][name], counts[1][name]
        if was:
            noise = _NOISE * was**0.5 if name in _WINDOWED else 0.0
            low, high = max(0.0, limits.least_count * was - noise), limits.most_count * was + noise
            said = f"{is_:,} {name} after {was:,}, {low:,.0f} to {high:,.0f} may be"
            checks.append(_check(name, was, is_, low <= is_ <= high, said))
    for kind, record in now.manifest.vectors.items():
        catalogue = "products" if kind == "product" else "queries"
        was_share, is_share = (
            live.manifest.vectors[kind].missing / max(1, live.manifest.counts[catalogue])
            for live in (before, now)
        )
        may = was_share + limits.more_without_vector
        said = f"{record.missing:,} {catalogue} ({is_share:.1%}) without a vector, {may:.1%} may be"
        checks.append(_check(f"{catalogue} without a vector", was_share, is_share, is_share <= may, said))
    return checks


def _counted(manifest: SnapshotManifest) -> dict[str, int]:
    return {
        name: manifest.impressions if name == "impressions" else getattr(manifest, f"num_{name}")
        for name in _COUNTED
    }


def _ages(before: LiveGeneration, now: LiveGeneration, limits: GateLimits) -> list[GateCheck]:
    was, is_ = (live.features.snapshot.manifest for live in (before, now))
    said = f"a snapshot of {is_.as_of} after one of {was.as_of}"
    checks = [_check("as of (us)", was.as_of_us, is_.as_of_us, is_.as_of_us >= was.as_of_us, said)]
    was_h, is_h = ((one.as_of_us - time_us_of(one.last_impression)) / _HOUR_US for one in (was, is_))
    said = (
        f"the last impression of the log is {is_h:,.1f} hours older than the snapshot "
        f"({iso(is_.as_of_us)}), {limits.most_log_age_hours:g} may be"
    )
    checks.append(_check("age of the log (hours)", was_h, is_h, is_h <= limits.most_log_age_hours, said))
    return checks


def _scores(
    before: LiveGeneration, now: LiveGeneration, requests: Sequence[ScoreRequest], limits: GateLimits
) -> list[GateCheck]:
    manifests = [live.features.snapshot.manifest for live in (before, now)]
    moment_us = max(manifest.as_of_us for manifest in manifests)
    keep = impression_columns(manifests[1].config)
    asked = [without_snapshot_values(request, keep, timestamp_us=moment_us) for request in requests]
    (was_C, unknown_was), (is_C, unknown_is) = (_scored(live, asked) for live in (before, now))
    may = unknown_was + limits.more_unknown
    said = f"{unknown_is:.1%} of the recorded candidates are unknown, {may:.1%} may be"
    checks = [_check("unknown candidates", unknown_was, unknown_is, unknown_is <= may, said)]
    mean_was, mean_is = float(was_C.mean()), float(is_C.mean())
    shift = abs(mean_is - mean_was) / mean_was
    said = (
        f"recorded requests score {mean_is:.4g} on average after {mean_was:.4g}, a change of {shift:.1%}, "
        f"{limits.most_mean_shift:.1%} may be"
    )
    checks.append(_check("mean score", mean_was, mean_is, shift <= limits.most_mean_shift, said))
    movement = float(np.abs(is_C - was_C).mean()) / mean_was
    said = (
        f"scores of recorded requests moved by {movement:.1%} of the mean score, {limits.most_movement:.1%} "
        "may be"
    )
    checks.append(_check("movement of scores", 0.0, movement, movement <= limits.most_movement, said))
    return checks


def _scored(live: LiveGeneration, requests: Sequence[ScoreRequest]) -> tuple[npt.NDArray[np.float64], float]:
    """Probabilities [C], and the share of candidates whose product is unknown."""
    replies: list[ScoreReply | RequestError] = []
    for start in range(0, len(requests), _BATCH):
        replies += live.score(requests[start : start + _BATCH])
    scored = [reply for reply in replies if isinstance(reply, ScoreReply)]
    if len(scored) < len(replies):
        refused = next(reply for reply in replies if isinstance(reply, RequestError))
        raise PackageError(f"a recorded request is refused by a generation: {refused}")
    score_C = np.concatenate([reply.scores_N for reply in scored]).astype(np.float64)
    return score_C, sum(reply.unknown["products"] for reply in scored) / len(score_C)


def _check(name: str, before: float, now: float, passed: bool, sentence: str) -> GateCheck:
    return GateCheck(name=name, before=float(before), now=float(now), passed=bool(passed), sentence=sentence)
