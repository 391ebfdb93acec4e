"""Counts of a worker, as sums that add up."""

import numpy as np

from serving.servers.measures import BY_NAME, LATENCY_BUCKETS_MS, RequestCounts, increase, prometheus_text
from serving.wire.reply import ScoreReply


def reply(scores: list[float], *, history_length: int = 0, **unknown: int) -> ScoreReply:
    scores_N = np.array(scores, np.float32)
    return ScoreReply(scores_N, np.arange(len(scores)), "v", "000001", "2026-01-01", unknown, history_length)


def test_two_requests_add_up() -> None:
    counts = RequestCounts()
    counts.scored(reply([0.25, 0.5], users=1), latency_ms=0.7)
    counts.scored(reply([0.25], history_length=3, users=1, products=2), latency_ms=30.0)
    counts.refused(400)
    counts.refused(413)
    counts.failed()
    sums = counts.sums()
    assert sums["dashclip_requests", ""] == 2
    assert sums["dashclip_candidates", ""] == 3
    assert sums["dashclip_score_sum", ""] == 1
    assert sums["dashclip_unknown", "users"] == 2
    assert sums["dashclip_unknown", "products"] == 2
    assert sums["dashclip_empty_history", ""] == 1
    assert sums["dashclip_refused", "413"] == 1
    assert sums["dashclip_failed", ""] == 1
    assert sums["dashclip_latency_ms_sum", ""] == 30.7


def test_a_latency_bucket_holds_the_ones_below_it() -> None:
    counts = RequestCounts()
    for latency_ms in (0.1, 0.5, 0.6, 5000.0):
        counts.scored(reply([0.5]), latency_ms=latency_ms)
    sums = counts.sums()
    buckets = [sums["dashclip_latency_bucket", f"{upper_ms:g}"] for upper_ms in LATENCY_BUCKETS_MS]
    assert buckets == [2, *[3] * (len(LATENCY_BUCKETS_MS) - 1)]
    assert sums["dashclip_latency_bucket", "+Inf"] == 4


def test_an_increase_is_what_was_gained_and_adds_up_to_the_sums() -> None:
    counts = RequestCounts()
    counts.scored(reply([0.5]), latency_ms=1)
    before = counts.sums()
    assert increase(before, before) == {}
    counts.scored(reply([0.5, 0.5]), latency_ms=1)
    assert increase(counts.sums(), before)["dashclip_candidates", ""] == 2


def test_every_series_is_declared_and_the_text_names_it_once() -> None:
    counts = RequestCounts()
    counts.scored(reply([0.5], users=1), latency_ms=1)
    counts.refused(400)
    counts.failed()
    series = counts.sums() | {("dashclip_snapshot_age_seconds", ""): 2_000_000.0}
    assert {name for name, _ in series} == set(BY_NAME)
    lines = prometheus_text(series).splitlines()
    assert 'dashclip_unknown{kind="users"} 1' in lines
    assert 'dashclip_latency_bucket{le="+Inf"} 1' in lines
    assert "dashclip_snapshot_age_seconds 2000000" in lines
    assert sum(line.startswith("# TYPE dashclip_requests ") for line in lines) == 1
