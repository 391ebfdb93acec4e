"""Generated benchmark data, the roofline's arithmetic and the summary of runs. Nothing here is timed."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.measure import REPOSITORY, BenchmarkError, last_json, measure_module
from experiments.benchmarks.training.criteo_like import (
    FIRST_ID_ROW,
    NUM_DENSE,
    SPARSE_COLUMNS,
    TABLE_ROWS,
    VOCABULARY_SIZES,
    CriteoLikeRows,
    TrainingParts,
    draw_rows,
    write_feature_set,
    write_peer_arrays,
)
from experiments.benchmarks.training.roofline import DcnShape, MachinePeaks, roofline_rows_per_s
from experiments.benchmarks.training.step_profile import KINDS
from experiments.benchmarks.training.training import SHAPE, Run, Trainer, summarise, thread_speeds
from features.batches.loader import BatchLoader
from features.feature_set import FeatureSet

PARTS = TrainingParts({"train": 900, "train_short": 100}, first_test_row=900)


@pytest.fixture(scope="module")
def rows() -> CriteoLikeRows:
    return draw_rows(1000, seed=3)


def test_the_same_seed_draws_the_same_rows_and_another_does_not(rows: CriteoLikeRows) -> None:
    again, other = draw_rows(1000, seed=3), draw_rows(1000, seed=4)
    np.testing.assert_array_equal(rows.ids_NS, again.ids_NS)
    np.testing.assert_array_equal(rows.clicked_N, again.clicked_N)
    assert (rows.ids_NS != other.ids_NS).any()


def test_ids_stay_inside_their_tables_and_leave_the_first_two_rows_free(rows: CriteoLikeRows) -> None:
    assert rows.ids_NS.min() == FIRST_ID_ROW
    assert (rows.ids_NS.max(axis=0) < np.array(TABLE_ROWS)).all()
    assert VOCABULARY_SIZES[0] == 10
    assert VOCABULARY_SIZES[-1] == 1_000_000


def test_the_expected_share_of_clicked_rows_is_31_percent(rows: CriteoLikeRows) -> None:
    assert rows.probability_N.mean() == pytest.approx(0.31, abs=1e-9)


def test_frequent_ids_come_first() -> None:
    ids_N = draw_rows(20_000, seed=0).ids_NS[:, 10]
    counts = np.bincount(ids_N - FIRST_ID_ROW)
    assert counts[0] > counts[10] > counts[100]


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="must be positive, but 0"):
        draw_rows(0, seed=0)


def test_peers_and_our_loader_read_the_same_rows(rows: CriteoLikeRows, tmp_path: Path) -> None:
    write_peer_arrays(rows, PARTS, tmp_path)
    write_feature_set(rows, PARTS, tmp_path)
    assert json.loads((tmp_path / "table_rows.json").read_text()) == dict(
        zip(SPARSE_COLUMNS, TABLE_ROWS, strict=True)
    )
    feature_set = FeatureSet.open(tmp_path)
    for part, length in (("train", 900), ("train_short", 100), ("test", 100)):
        with np.load(tmp_path / f"{part}.npz") as arrays:
            (batch,) = BatchLoader(feature_set, part, batch_size=1000)
            assert len(batch) == length
            np.testing.assert_array_equal(batch.clicked_B.numpy(), arrays["clicked"])
            for name in SPARSE_COLUMNS:
                np.testing.assert_array_equal(batch.sparse[name].values().numpy(), arrays[name])
            np.testing.assert_array_equal(batch.dense_BF[:, 1].numpy(), arrays["number_01"])


def test_the_flop_of_a_row_are_those_that_torch_counts_in_a_training_step() -> None:
    shape = DcnShape(dense_features=3, sparse_features=2, embedding_dim=4, cross_layers=2, deep_widths=(8, 5))
    width = shape.input_width
    cross = [nn.Linear(width, width) for _ in range(2)]
    deep = [nn.Linear(width, 8), nn.Linear(8, 5)]
    head = nn.Linear(width + 5, 1)
    batch = 16
    with FlopCounterMode(display=False) as counter:
        x0_BD = torch.randn(batch, width, requires_grad=True)
        x_BD, h_BH = x0_BD, x0_BD
        for layer in cross:
            x_BD = x_BD + x0_BD * layer(x_BD)
        for layer in deep:
            h_BH = layer(h_BH).relu()
        head(torch.cat([x_BD, h_BH], dim=1)).sum().backward()
    assert counter.get_total_flops() == batch * shape.flop_per_row


def test_the_benchmark_model_needs_5_6_million_flop_a_row() -> None:
    assert SHAPE.input_width == NUM_DENSE + 26 * 16
    weights = 3 * 429**2 + 429 * 512 + 512 * 256 + 256 * 128 + 429 + 128
    assert SHAPE.flop_per_row == 6 * weights
    assert SHAPE.embedding_bytes_per_row == 26 * 4 * (5 * 16 + 2)


@given(gflops=st.floats(1, 1e4), copy=st.floats(1, 1e3), factor=st.floats(1.01, 100))
def test_the_roofline_rises_with_either_peak_and_scales_with_both(
    gflops: float, copy: float, factor: float
) -> None:
    limit = roofline_rows_per_s(SHAPE, gflops=gflops, copy_gb_per_s=copy)
    assert roofline_rows_per_s(SHAPE, gflops=gflops * factor, copy_gb_per_s=copy) > limit
    assert roofline_rows_per_s(SHAPE, gflops=gflops, copy_gb_per_s=copy * factor) > limit
    both = roofline_rows_per_s(SHAPE, gflops=gflops * factor, copy_gb_per_s=copy * factor)
    assert both == pytest.approx(limit * factor)


def test_the_roofline_of_one_row_by_hand() -> None:
    shape = DcnShape(dense_features=0, sparse_features=1, embedding_dim=4, cross_layers=1, deep_widths=())
    # 6 x (4 x 4 cross + 2 x 4 head weights, the deep path being the input itself) FLOP and 88 bytes
    assert shape.flop_per_row == 6 * (16 + 8)
    assert shape.embedding_bytes_per_row == 88
    assert roofline_rows_per_s(shape, gflops=1.44, copy_gb_per_s=0.88) == pytest.approx(1e9 / 200)


def _run(
    trainer: str,
    part: str,
    rows_per_cpu_s: float,
    *,
    auc: float = 0.7,
    precision: str = "float32",
    profile: dict[str, Any] | None = None,
) -> Run:
    cost = {"rows": 1000, "cpu_s": 1000 / rows_per_cpu_s, "wall_s": 2000 / rows_per_cpu_s}
    outcome = {
        "loop": cost,
        "step": cost,
        "auc": auc,
        "parameters": 1,
        "precision": precision,
        "versions": {},
        "profile": profile,
    }
    return Run(trainer, part, outcome, peak_mib=100)


def _trainer(name: str, precision: str = "float32") -> Trainer:
    return Trainer(name, name, "module", precision)


def test_more_threads_are_compared_with_one_within_each_round_by_wall_time() -> None:
    """A slow minute of the machine slows both runs of its round."""
    rounds = [{1: _run("ours", "train_short", one), 2: _run("ours", "train_short", two)}
              for one, two in ((100, 180), (10, 19), (200, 340))]  # fmt: skip
    speeds = thread_speeds(rounds, threads=2)
    for part in ("loop", "step"):
        assert speeds[part]["one"]["median"] == pytest.approx(50.0), "wall seconds are twice those of the CPU"
        assert speeds[part]["many"]["median"] == pytest.approx(90.0)
        assert speeds[part]["ratio"] == pytest.approx({"median": 1.8, "low": 1.7, "high": 1.9})


def test_ratios_are_medians_against_the_fastest_peer() -> None:
    runs = [
        *(_run("ours", "train_short", speed) for speed in (90, 100, 400)),
        *(_run("slow", "train_short", speed) for speed in (10, 20, 30)),
        *(_run("fast", "train_short", speed) for speed in (50, 40, 45)),
        _run("ours", "train", 100, auc=0.75),
    ]
    trainers = {name: _trainer(name) for name in ("ours", "slow", "fast")}
    result = summarise(runs, trainers=trainers, peaks=MachinePeaks(100, 10, 10), best_auc=0.9)
    assert result["ours_rows_per_cpu_s"] == pytest.approx(100)
    assert result["peers"] == pytest.approx({"slow": 20, "fast": 45})
    assert result["ratio_to_fastest_peer"] == pytest.approx(100 / 45)
    assert result["auc"] == {"best_reachable": 0.9, "ours": 0.75}


def test_emulated_bfloat16_is_reported_but_neither_chosen_nor_mixed_into_float32() -> None:
    runs = [
        _run("ours", "train", 100, auc=0.75),
        _run("ours", "train_tiny", 10, auc=0.62),
        _run("ours_bfloat16", "train_tiny", 1, auc=0.61, precision="bfloat16"),
    ]
    trainers = {"ours": _trainer("ours"), "ours_bfloat16": _trainer("ours_bfloat16", "bfloat16")}
    result = summarise(runs, trainers=trainers, peaks=MachinePeaks(100, 1, 10), best_auc=0.9)
    assert result["precision"] == "float32"
    assert result["ours_rows_per_cpu_s"] == pytest.approx(100)
    assert result["ratio_to_fastest_peer"] is None
    assert result["precisions"]["auc"] == {"bfloat16": 0.61, "float32": 0.62}
    assert result["precisions"]["difference"] == pytest.approx(-0.01)
    assert result["auc"] == {"best_reachable": 0.9, "ours": 0.75}


def test_each_precision_is_compared_with_peers_of_its_own() -> None:
    speeds = {"ours": 90, "ours_bfloat16": 200, "torcheasyrec": 60, "torcheasyrec_bfloat16": 100, "other": 30}
    of = {name: "bfloat16" if "bfloat16" in name else "float32" for name in speeds}
    runs = [_run(name, "train", speed, precision=of[name]) for name, speed in speeds.items()]
    trainers = {name: _trainer(name, of[name]) for name in speeds}
    result = summarise(runs, trainers=trainers, peaks=MachinePeaks(100, 100, 10), best_auc=0.9)
    assert result["precision"] == "bfloat16"
    assert result["ratio_to_torcheasyrec"] == pytest.approx(2.0)
    assert result["float32_ratio_to_torcheasyrec"] == pytest.approx(1.5)
    assert result["ratio_to_fastest_peer"] == pytest.approx(2.0)
    assert result["float32_ratio_to_fastest_peer"] == pytest.approx(1.5)
    without = [run for run in runs if "torcheasyrec" not in run.trainer]
    result = summarise(
        without,
        trainers={name: trainers[name] for name in ("ours", "ours_bfloat16", "other")},
        peaks=MachinePeaks(100, 100, 10),
        best_auc=0.9,
    )
    assert result["ratio_to_torcheasyrec"] is None


def test_the_profile_of_each_precision_is_in_the_result() -> None:
    kinds = {kind: {"ms": 10.0, "mb": 0.0} for kind in KINDS}
    profile = {"kinds": kinds, "operators": [], "rows": 100, "loader": {"rows": 1000, "cpu_s": 0.05}}
    runs = [_run("ours", "train", 1000, profile=profile), _run("fast", "train", 10)]
    trainers = {name: _trainer(name) for name in ("ours", "fast")}
    result = summarise(runs, trainers=trainers, peaks=MachinePeaks(100, 10, 10), best_auc=0.9)
    found = result["profile"]["float32"]
    # a step of 100 rows takes 100 ms, its operators 7 x 10; the loader 5 ms more
    assert found["kinds"]["rest"]["ms"] == pytest.approx(30)
    assert found["kinds"]["loader"]["ms"] == pytest.approx(5)
    assert set(result["profile"]) == {"float32"}


def test_a_measured_command_reports_its_memory_and_output() -> None:
    measurement = measure_module("tests.experiments.benchmarks.allocate_memory", "200")
    assert last_json(measurement) == {"allocated_mib": 200}
    assert 200 < measurement.peak_mib < 400
    assert measurement.cpu_s > 0


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "experiments" / "benchmarks").rglob("*.py")), ids=lambda path: path.stem
)
def test_modules_that_run_in_processes_of_their_own_exist(path: Path) -> None:
    named = re.findall(r"f?\"((?:\{__package__\}|experiments\.benchmarks)\.[\w.]+)\"", path.read_text())
    package = ".".join(path.relative_to(REPOSITORY).parent.parts)
    for name in named:
        assert importlib.util.find_spec(name.replace("{__package__}", package)), name


def test_a_failing_command_is_quoted() -> None:
    with pytest.raises(BenchmarkError, match=r"exit code 1; it said: .*No module named no_such_module"):
        measure_module("no_such_module")


@settings(max_examples=5, deadline=None)
@given(train=st.integers(1, 40), total=st.integers(41, 60))
def test_no_part_reaches_into_the_test_rows(train: int, total: int) -> None:
    slices = TrainingParts({"train": train, "longer": 1000}, first_test_row=40).slices(total)
    assert slices["test"] == slice(40, total)
    assert all(part.stop <= 40 for name, part in slices.items() if name != "test")


def test_the_feature_set_form_has_row_groups_that_the_loader_can_shuffle(
    rows: CriteoLikeRows, tmp_path: Path
) -> None:
    write_feature_set(rows, PARTS, tmp_path)
    assert pq.ParquetFile(tmp_path / "train.parquet").metadata.num_rows == 900
    shuffled = BatchLoader(FeatureSet.open(tmp_path), "train", batch_size=64, shuffle_seed=1)
    seen = np.concatenate([batch.row_B.numpy() for batch in shuffled])
    assert (np.sort(seen) == np.arange(900)).all()
