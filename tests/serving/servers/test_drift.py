"""PSI by hand, and counts that add up over workers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.servers.drift import LiveCounts, drift_of, population_stability, read_counts
from tests.serving.package.test_training_record import record


def test_psi_of_halves_against_a_quarter_and_three_quarters_is_a_quarter_of_log_3() -> None:
    psi = population_stability(np.array([0.5, 0.5]), np.array([0.25, 0.75]))
    assert psi == pytest.approx(0.25 * math.log(3))


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=10))
def test_psi_is_zero_for_equal_shares_and_symmetric(masses: list[float]) -> None:
    shares = np.array(masses) / sum(masses)
    other = shares[::-1]
    assert population_stability(shares, shares) == 0
    assert population_stability(shares, other) == pytest.approx(population_stability(other, shares))


def test_the_same_rows_served_have_no_drift_and_shifted_ones_have(tmp_path: Path) -> None:
    trained, scores_N, dense_NF = record()
    same, shifted = (LiveCounts(trained, ["price", "clicks"], every=1) for _ in range(2))
    for start in range(0, len(scores_N), 100):
        rows = slice(start, start + 100)
        same.count(scores_N[rows], dense_NF[rows])
        shifted.count(scores_N[rows], dense_NF[rows] + np.array([2.0, 0.0], np.float32))
    assert [one.psi for one in drift_of(trained, same.as_json())] == pytest.approx([0, 0, 0], abs=1e-9)
    verdicts = {one.name: one.verdict for one in drift_of(trained, shifted.as_json())}
    assert verdicts == {"score": "same", "price": "moved", "clicks": "same"}


def test_few_candidates_give_no_verdict() -> None:
    trained, scores_N, dense_NF = record()
    live = LiveCounts(trained, ["price", "clicks"])
    live.count(scores_N[:50], dense_NF[:50])
    assert {one.verdict for one in drift_of(trained, live.as_json())} == {"too little seen"}


def test_features_are_counted_on_one_request_in_so_many_and_scores_on_all() -> None:
    trained, scores_N, dense_NF = record()
    live = LiveCounts(trained, ["price", "clicks"], every=3)
    for _ in range(7):
        live.count(scores_N[:10], dense_NF[:10])
    counts = live.as_json()
    assert counts["requests"] == 7
    assert sum(counts["scores"]) == 70
    assert sum(counts["features"]["price"]) == 30


def test_counts_of_workers_add_up_and_other_versions_stay_out(tmp_path: Path) -> None:
    trained, scores_N, dense_NF = record()
    live = LiveCounts(trained, ["price", "clicks"], every=1)
    live.count(scores_N, dense_NF)
    live.write(tmp_path, model_version="a")
    once = json.loads(next(tmp_path.glob("*.json")).read_text())
    (tmp_path / "worker-other.json").write_text(json.dumps(once))
    (tmp_path / "worker-old.json").write_text(json.dumps({**once, "model_version": "b"}))
    total = read_counts(tmp_path, model_version="a")
    assert total["requests"] == 2
    assert sum(total["scores"]) == 2 * len(scores_N)
    assert read_counts(tmp_path, model_version="c")["requests"] == 0


def test_a_damaged_file_of_counts_is_named(tmp_path: Path) -> None:
    (tmp_path / "worker-1.json").write_text("{")
    with pytest.raises(ValueError, match=r"worker-1\.json"):
        read_counts(tmp_path, model_version="a")


def test_counts_want_the_features_of_the_record() -> None:
    trained, _, _ = record()
    with pytest.raises(ValueError, match="build the package again"):
        LiveCounts(trained, ["price"])
