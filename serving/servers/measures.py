"""What a worker counts while it serves, in a form that every server can export to Prometheus.

Measures are sums over requests, so that those of several workers add up; shares and means are for the query
that reads them (`rate(unknown_products) / rate(candidates)`). Nothing here holds an id or a query.
"""

import bisect
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from serving.wire.reply import ScoreReply

Kind = Literal["counter", "gauge"]

#: Upper ends of the latency buckets.
LATENCY_BUCKETS_MS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0, 25.0, 50.0, 100.0, 250.0, 1000.0)


@dataclass(frozen=True)
class Measure:
    """One exported series, or a family of them if `label` names what tells its members apart."""

    name: str
    kind: Kind
    unit: str
    meaning: str
    label: str | None = None


MEASURES = (
    Measure("dashclip_requests", "counter", "count", "Requests answered with scores."),
    Measure("dashclip_refused", "counter", "count", "Requests answered with 400 or 413.", "status"),
    Measure("dashclip_failed", "counter", "count", "Requests answered with 500: faults of the server."),
    Measure("dashclip_candidates", "counter", "count", "Candidates scored."),
    Measure("dashclip_unknown", "counter", "count", "Ids that the package does not know.", "kind"),
    Measure("dashclip_empty_history", "counter", "count", "Requests whose user has no known purchase."),
    Measure("dashclip_score_sum", "counter", "sum", "Sum of all scores: their mean is this by candidates."),
    Measure("dashclip_latency_ms_sum", "counter", "ms", "Time in the handler, decoding to encoding."),
    Measure("dashclip_latency_bucket", "counter", "count", "Requests within `le` milliseconds.", "le"),
    Measure("dashclip_snapshot_age_seconds", "gauge", "seconds", "Since the moment of the snapshot."),
)
BY_NAME = {measure.name: measure for measure in MEASURES}

#: (name, value of the label or "") to value.
Series = dict[tuple[str, str], float]


class RequestCounts:
    """Sums over what one worker served; safe to read from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: Series = {}
        self._buckets = [0] * (len(LATENCY_BUCKETS_MS) + 1)

    def scored(self, reply: ScoreReply, *, latency_ms: float) -> None:
        """Count one request that got its scores."""
        with self._lock:
            self._add("dashclip_requests", 1)
            self._add("dashclip_candidates", len(reply.scores_N))
            self._add("dashclip_score_sum", float(reply.scores_N.sum()))
            self._add("dashclip_latency_ms_sum", latency_ms)
            self._buckets[bisect.bisect_left(LATENCY_BUCKETS_MS, latency_ms)] += 1
            if reply.history_length == 0:
                self._add("dashclip_empty_history", 1)
            for kind, count in reply.unknown.items():
                if count:
                    self._add("dashclip_unknown", count, kind)

    def refused(self, status: int) -> None:
        """Count one request that was the client's fault."""
        with self._lock:
            self._add("dashclip_refused", 1, str(status))

    def failed(self) -> None:
        """Count one request that was the server's fault."""
        with self._lock:
            self._add("dashclip_failed", 1)

    def sums(self) -> Series:
        """All sums since the start. Latency buckets are cumulative: each holds the ones below it."""
        with self._lock:
            series = dict(self._sums)
            below = 0
            for upper_ms, count in zip((*LATENCY_BUCKETS_MS, float("inf")), self._buckets, strict=True):
                below += count
                series["dashclip_latency_bucket", "+Inf" if upper_ms == float("inf") else f"{upper_ms:g}"] = (
                    below
                )
        return series

    def _add(self, name: str, value: float, label: str = "") -> None:
        self._sums[name, label] = self._sums.get((name, label), 0) + value


def increase(now: Mapping[tuple[str, str], float], before: Mapping[tuple[str, str], float]) -> Series:
    """What counters gained between two readings; series without a gain are left out."""
    gained = {key: value - before.get(key, 0) for key, value in now.items()}
    return {key: value for key, value in gained.items() if value > 0}


def prometheus_text(series: Mapping[tuple[str, str], float]) -> str:
    """Readings in Prometheus' text format."""
    lines = []
    for measure in MEASURES:
        lines += [f"# HELP {measure.name} {measure.meaning}", f"# TYPE {measure.name} {measure.kind}"]
        for (name, label), value in sorted(series.items()):
            if name == measure.name:
                labels = f'{{{measure.label}="{label}"}}' if measure.label else ""
                lines.append(f"{name}{labels} {value:g}" if value < 1e6 else f"{name}{labels} {value:.0f}")
    return "\n".join(lines) + "\n"
