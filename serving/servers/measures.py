"""What a worker counts while it serves: Prometheus metrics of the same names and units on every server.

Measures are sums over requests, so that those of several workers add up; shares and means are for the query
that reads them (`rate(dashclip_unknown_total[5m]) / rate(dashclip_candidates_total[5m])`). Nothing here holds
an id or a query.
"""

import resource
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.samples import Sample

from serving.drift.count_files import KINDS, kind_of
from serving.drift.watch import WindowReport
from serving.wire.reply import ScoreReply

#: Upper ends of the latency buckets.
LATENCY_BUCKETS_S = tuple(ms / 1e3 for ms in (0.5, 1, 1.5, 2, 3, 4, 5, 7.5, 10, 15, 25, 50, 100, 250, 1000))
SNAPSHOT_AGE = "dashclip_snapshot_age_seconds"
MODEL_OPEN, REFUSED_GENERATION = "dashclip_model_open", "dashclip_generation_refused"
ROUTING_REFUSED = "dashclip_routing_refused"
DRIFT_MOVED, DRIFT_REQUESTS = "dashclip_drift_columns_moved", "dashclip_drift_requests"
DRIFT_SHIFT = "dashclip_drift_shift"
#: What goes up and down; all else only grows.
GAUGES = (
    SNAPSHOT_AGE,
    MODEL_OPEN,
    REFUSED_GENERATION,
    ROUTING_REFUSED,
    DRIFT_MOVED,
    DRIFT_REQUESTS,
    DRIFT_SHIFT,
)
_REFUSALS = ("400", "413")
#: Of `serving.wire.reply.Unavailable`.
SHED_REASONS = ("no_model", "queue_full", "too_slow", "memory")
_UNKNOWN_KINDS = ("users", "queries", "products", "history", "product_vectors", "query_vectors")

#: (name, values of its labels, or "" without any) to value.
Series = dict[tuple[str, ...], float]


class Measures:
    """Sums over what one worker served; safe to read from another thread."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(name, meaning, labels, registry=registry)

        self._requests = counter("dashclip_requests_total", "Requests answered with scores.")
        self._refused = counter("dashclip_refused_total", "Requests answered with 400 or 413.", "status")
        self._shed = counter("dashclip_shed_total", "Requests answered with 503, by the reason.", "reason")
        self._failed = counter("dashclip_failed_total", "Requests answered with 500: faults of the server.")
        self._candidates = counter("dashclip_candidates_total", "Candidates scored.")
        self._unknown = counter("dashclip_unknown_total", "Ids that the package does not know.", "kind")
        self._empty_history = counter("dashclip_empty_history_total", "Requests without a known purchase.")
        self._score_sum = counter("dashclip_score_sum_total", "Sum of the scores of all candidates.")
        self._variant_requests = counter(
            "dashclip_variant_requests_total",
            "Requests answered, where there are several packages.",
            *("variant", "model_version", "salt"),
        )
        self._variant_candidates = counter(
            "dashclip_variant_candidates_total", "Candidates scored, by variant.", "variant"
        )
        self._variant_score_sum = counter(
            "dashclip_variant_score_sum_total", "Sum of their scores, by variant.", "variant"
        )
        self._variant_fallbacks = counter(
            "dashclip_variant_fallbacks_total",
            "Requests of a challenger that it refused or failed at, so that the champion answered.",
            "variant",
        )
        self._shadow_candidates = counter(
            "dashclip_shadow_candidates_total", "Candidates scored for nobody, by variant.", "variant"
        )
        self._shadow_gap_sum = counter(
            "dashclip_shadow_difference_sum_total",
            "Sum of the differences between the scores of a shadow and those that were served.",
            "variant",
        )
        self._shadow_lost = counter(
            "dashclip_shadow_lost_total",
            "Requests that a shadow refused, failed at or had no time for.",
            "variant",
        )
        self._logged = counter("dashclip_feature_log_requests_total", "Requests written to the feature log.")
        self._log_lost = counter(
            "dashclip_feature_log_lost_total", "Requests that were to be logged and could not be."
        )
        self._major_faults = counter(
            "dashclip_major_faults_total", "Page faults of workers that had to read from the disk."
        )
        self._faults_before = _major_faults()
        self._latency_s = Histogram(
            "dashclip_latency_seconds",
            "Time in the worker, decoding to encoding.",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )

        # Of several workers, that of the last to say it: a worker that died says nothing more.
        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            return Gauge(name, meaning, labels, registry=registry, multiprocess_mode="mostrecent")

        self._snapshot_age_s = gauge(SNAPSHOT_AGE, "Since the time of the snapshot.")
        self._model_open = gauge(MODEL_OPEN, "1 if a worker can score, 0 if it answers 503 and tries again.")
        self._refused_generation = gauge(
            REFUSED_GENERATION, "1 if the current generation is refused and an older one served."
        )
        self._routing_refused = gauge(ROUTING_REFUSED, "1 while routing.json cannot be used.")
        self._drift_moved = gauge(
            DRIFT_MOVED, "Columns that moved in the newest finished hour or day, of all workers.", "window"
        )
        self._drift_requests = gauge(DRIFT_REQUESTS, "Requests that were counted in it.", "window")
        self._drift_shift = gauge(
            DRIFT_SHIFT,
            "Share of a column's values that moved in it; 0 with too few requests or users.",
            "window",
            "column",
        )
        for window in KINDS:
            self._drift_moved.labels(window)
            self._drift_requests.labels(window)
            self._drift_shift.labels(window, "score")
        self._variant_requests.labels("champion", "", "")
        for of_variant in (
            self._variant_candidates,
            self._variant_score_sum,
            self._variant_fallbacks,
            self._shadow_candidates,
            self._shadow_gap_sum,
            self._shadow_lost,
        ):
            of_variant.labels("champion")
        for status in _REFUSALS:  # zero from the start
            self._refused.labels(status)
        for kind in _UNKNOWN_KINDS:
            self._unknown.labels(kind)
        for reason in SHED_REASONS:
            self._shed.labels(reason)

    def scored(self, reply: ScoreReply, *, latency_s: float) -> None:
        """Count one request that got its scores."""
        self._requests.inc()
        self._candidates.inc(len(reply.scores_N))
        # A float32 sum of many candidates would have four digits left after the point.
        self._score_sum.inc(float(reply.scores_N.sum(dtype=np.float64)))
        self._latency_s.observe(latency_s)
        if (faults := _major_faults()) > self._faults_before:
            self._major_faults.inc(faults - self._faults_before)
            self._faults_before = faults
        if reply.history_length == 0:
            self._empty_history.inc()
        for kind, count in reply.unknown.items():
            if count:
                self._unknown.labels(kind).inc(count)
        if reply.variant is not None:
            self._variant_requests.labels(reply.variant, reply.model_version, reply.salt or "").inc()
            self._variant_candidates.labels(reply.variant).inc(len(reply.scores_N))
            self._variant_score_sum.labels(reply.variant).inc(float(reply.scores_N.sum(dtype=np.float64)))
        if reply.instead_of is not None:
            self._variant_fallbacks.labels(reply.instead_of).inc()

    def shadowed(self, variant: str, shadow: ScoreReply | None, served: ScoreReply) -> None:
        """Count one request that was scored for nobody; None if it was not."""
        if shadow is None:
            self._shadow_lost.labels(variant).inc()
            return
        gap_N = np.abs(shadow.scores_N.astype(np.float64) - served.scores_N)
        self._shadow_candidates.labels(variant).inc(len(gap_N))
        self._shadow_gap_sum.labels(variant).inc(float(gap_N.sum()))

    def logged(self, requests: int) -> None:
        """Count requests that are in a file of the feature log."""
        self._logged.inc(requests)

    def log_lost(self, requests: int) -> None:
        """Count requests that the feature log had no room or no disk for."""
        self._log_lost.inc(requests)

    def refused(self, status: int) -> None:
        """Count one request that was the client's fault."""
        self._refused.labels(str(status)).inc()

    def shed(self, reason: str) -> None:
        """Count one request that was told to come back."""
        self._shed.labels(reason).inc()

    def failed(self) -> None:
        """Count one request that was the server's fault."""
        self._failed.inc()

    def set_snapshot_age(self, age_s: float) -> None:
        """Say how old the snapshot is now."""
        self._snapshot_age_s.set(age_s)

    def set_routing_refused(self, refused: bool) -> None:
        """Say whether routing.json cannot be used now."""
        self._routing_refused.set(refused)

    def set_drift(self, report: WindowReport) -> None:
        """Say what moved in a window that is over."""
        kind = kind_of(report.window)
        self._drift_moved.labels(kind).set(len(report.alarms))
        self._drift_requests.labels(kind).set(report.requests)
        for one in report.columns:
            shift = 0.0 if one.verdict.startswith("too few") else one.shift
            self._drift_shift.labels(kind, one.name).set(shift)

    def set_state(self, *, model_open: bool, refused: bool) -> None:
        """Say whether there is something to score with, and whether it is older than it should be."""
        self._model_open.set(model_open)
        self._refused_generation.set(refused)

    def samples(self) -> list[Sample]:
        """All values now, without the times at which the counters were made."""
        families = self._registry.collect()
        return [one for family in families for one in family.samples if not one.name.endswith("_created")]

    def series(self) -> Series:
        """All values now. Latency buckets are cumulative: each holds the ones below it."""
        return {(one.name, *(one.labels.values() or [""])): one.value for one in self.samples()}

    def page(self, workers_folder: Path | None = None) -> bytes:
        """Prometheus' text; of all workers that count in `workers_folder` if it is given."""
        registry = self._registry
        if workers_folder is not None:
            registry = CollectorRegistry()
            MultiProcessCollector(registry, path=str(workers_folder))
        return generate_latest(registry)


def _major_faults() -> int:
    """Of this process since it began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def increase(now: Mapping[tuple[str, ...], float], before: Mapping[tuple[str, ...], float]) -> Series:
    """What counters gained between two readings; series without a gain are left out."""
    gained = {key: value - before.get(key, 0) for key, value in now.items()}
    return {key: value for key, value in gained.items() if value > 0}
