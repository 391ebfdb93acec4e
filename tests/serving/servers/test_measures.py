"""Counts of a worker, as sums that add up."""

import numpy as np
import pytest
import yaml

from serving.servers.measures import LATENCY_BUCKETS_S, Measures, increase
from serving.servers.torchserve.files import metrics_text
from serving.wire.reply import ScoreReply


def reply(scores: list[float], *, history_length: int = 0, **unknown: int) -> ScoreReply:
    scores_N = np.array(scores, np.float32)
    return ScoreReply(scores_N, np.arange(len(scores)), "v", "000001", "2026-01-01", unknown, history_length)


def test_two_requests_add_up() -> None:
    counts = Measures()
    counts.scored(reply([0.25, 0.5], users=1), latency_s=0.0007)
    counts.scored(reply([0.25], history_length=3, users=1, products=2), latency_s=0.03)
    counts.refused(400)
    counts.refused(413)
    counts.failed()
    sums = counts.series()
    assert sums["dashclip_requests_total", ""] == 2
    assert sums["dashclip_candidates_total", ""] == 3
    assert sums["dashclip_score_sum_total", ""] == 1
    assert sums["dashclip_unknown_total", "users"] == 2
    assert sums["dashclip_unknown_total", "products"] == 2
    assert sums["dashclip_empty_history_total", ""] == 1
    assert sums["dashclip_refused_total", "413"] == 1
    assert sums["dashclip_failed_total", ""] == 1
    assert sums["dashclip_latency_seconds_sum", ""] == pytest.approx(0.0307)


def test_reads_of_the_disk_are_counted_from_the_start_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [7]
    monkeypatch.setattr("serving.servers.measures._major_faults", lambda: faults[0])
    counts = Measures()
    counts.scored(reply([0.5]), latency_s=0.001)
    assert counts.series()["dashclip_major_faults_total", ""] == 0
    faults[0] = 10
    counts.scored(reply([0.5]), latency_s=0.001)
    counts.scored(reply([0.5]), latency_s=0.001)
    assert counts.series()["dashclip_major_faults_total", ""] == 3


def test_no_digit_of_a_large_sum_is_lost() -> None:
    """2^24 + 1 is the first whole number that a float32 does not have; 1e6 the first of a short exponent."""
    measures = Measures()
    many = reply([0.0])
    object.__setattr__(many, "scores_N", np.full(2**24 + 1, 1, np.float32))
    for _ in range(3):
        measures.scored(many, latency_s=0.001)
    measures.scored(reply([0.25]), latency_s=0.001)
    wanted = {
        "dashclip_score_sum_total": 3 * (2**24 + 1) + 0.25,
        "dashclip_candidates_total": 3 * (2**24 + 1) + 1,
    }
    shown = dict(
        line.split() for line in measures.page().decode().splitlines() if line.startswith(tuple(wanted))
    )
    assert {name: float(value) for name, value in shown.items()} == wanted
    assert measures.series()["dashclip_score_sum_total", ""] == wanted["dashclip_score_sum_total"]


def test_a_latency_bucket_holds_the_ones_below_it() -> None:
    counts = Measures()
    for latency_s in (0.0001, 0.0005, 0.0006, 5.0):
        counts.scored(reply([0.5]), latency_s=latency_s)
    sums = counts.series()
    buckets = [sums["dashclip_latency_seconds_bucket", str(upper_s)] for upper_s in LATENCY_BUCKETS_S]
    assert buckets == [2, *[3] * (len(LATENCY_BUCKETS_S) - 1)]
    assert sums["dashclip_latency_seconds_bucket", "+Inf"] == 4


def test_an_increase_is_what_was_gained_and_adds_up_to_the_sums() -> None:
    counts = Measures()
    counts.scored(reply([0.5]), latency_s=0.001)
    before = counts.series()
    assert increase(before, before) == {}
    counts.scored(reply([0.5, 0.5]), latency_s=0.001)
    assert increase(counts.series(), before)["dashclip_candidates_total", ""] == 2


def test_every_series_is_declared_and_the_text_names_it_once() -> None:
    counts = Measures()
    declared = {entry["name"] for entries in _metrics_file().values() for entry in entries}
    counts.scored(reply([0.5], users=1), latency_s=0.001)
    counts.refused(400)
    counts.failed()
    counts.set_snapshot_age(2_000_001.0)
    assert {name for name, *_ in counts.series()} == {name for name in declared if "dashclip" in name}
    lines = counts.page().decode().splitlines()
    assert 'dashclip_unknown_total{kind="users"} 1.0' in lines
    assert 'dashclip_latency_seconds_bucket{le="+Inf"} 1.0' in lines
    assert "dashclip_snapshot_age_seconds 2.000001e+06" in lines
    assert sum(line.startswith("# TYPE dashclip_requests_total ") for line in lines) == 1


def _metrics_file() -> dict[str, list[dict[str, str]]]:
    return yaml.safe_load(metrics_text())["model_metrics"]
