"""The benchmark of a GPU, tried on a CPU with tiny sizes: the whole way, and the place of its tables."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from experiments.benchmarks.document import render_document, update_document
from experiments.benchmarks.gpu import TINY, GpuBenchmark, GpuBenchmarkError, run_gpu_benchmark
from experiments.benchmarks.tables import GPU, tables_of
from experiments.cli import app

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    benchmark = replace(TINY, impressions=12_000, purchases=5_000, precisions=("float32", "bfloat16"))
    found = run_gpu_benchmark(
        benchmark, work=tmp_path_factory.mktemp("gpu"), quick=True, progress=lambda *_: None
    )
    return {"command": "dashclip bench gpu --device cpu", **json.loads(json.dumps(found))}


def test_without_a_gpu_it_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(GpuBenchmarkError, match="torch sees no CUDA device"):
        run_gpu_benchmark(GpuBenchmark(), work=tmp_path / "work", progress=lambda *_: None)
    assert not (tmp_path / "work").exists()


def test_ranker_and_encoders_are_measured_with_their_shares_of_both_peaks(result: dict[str, Any]) -> None:
    assert [(run["batch_rows"], run["precision"]) for run in result["ranker"]] == [
        (512, "float32"),
        (512, "bfloat16"),
    ]
    for run in result["ranker"]:
        for name in ("step_rows_per_s", "loop_rows_per_s", "share_of_products", "share_of_copies"):
            assert run[name] > 0
        assert run["share_of_limit"] == pytest.approx(run["share_of_products"] + run["share_of_copies"])
        assert run["operators"]
        assert run["waits_per_step"] == 0
    stages = result["encoders"]["tiny"]["eager"]
    for stage in ("pretrain", "align", "encode"):
        assert stages[stage]["rows_per_s"] > 0
        assert stages[stage]["share_of_copies"] > 0
        assert stages[stage]["operators"]
    assert result["accelerator"] is None


def test_operations_are_the_same_in_both_precisions(result: dict[str, Any]) -> None:
    """float32 goes to another library on some processors, whose products must be counted, too."""
    in_float32, in_bfloat16 = (run["mflop_per_row"] for run in result["ranker"])
    assert in_float32 == pytest.approx(in_bfloat16)
    first, second = (run["kb_per_row"] for run in result["ranker"])
    assert first > second, "activations are half as large"


def test_encoders_that_would_begin_too_late_are_left_out_by_name(tmp_path: Path) -> None:
    late = replace(TINY, impressions=12_000, purchases=5_000, minutes=0.0)
    found = run_gpu_benchmark(late, work=tmp_path, quick=True, progress=lambda *_: None)
    assert (found["encoders"], found["left_out"]) == ({}, ["tiny"])


def test_the_tables_say_that_a_processor_is_no_gpu(result: dict[str, Any]) -> None:
    tables = tables_of(GPU, result)
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)
    text = "\n".join(table.markdown() for table in tables)
    assert "On the processor: this shows that the way is passable, and nothing else." in text
    on_gpu = "\n".join(table.markdown() for table in tables_of(GPU, result | {"accelerator": "Example GPU"}))
    assert "On Example GPU." in on_gpu
    assert "On the processor" not in on_gpu


def test_the_document_takes_the_tables_of_a_gpu_and_not_those_of_a_trial(
    result: dict[str, Any], tmp_path: Path
) -> None:
    document = (REPOSITORY / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    once = render_document(document, {GPU: result | {"accelerator": "Example GPU"}})
    assert "### On a GPU: Example GPU" in once
    assert render_document(once, {GPU: result | {"accelerator": "Example GPU"}}) == once
    (tmp_path / "benchmarks.md").write_text(document)
    (tmp_path / "gpu.json").write_text(json.dumps(result))
    assert update_document(tmp_path / "benchmarks.md", tmp_path) == []
    assert (tmp_path / "benchmarks.md").read_text() == document


def test_the_command_says_that_it_was_a_trial(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {name: value for name, value in result.items() if name != "command"}
    seen: list[GpuBenchmark] = []

    def measured(benchmark: GpuBenchmark, **_: Any) -> dict[str, Any]:
        seen.append(benchmark)
        return found

    monkeypatch.setattr("experiments.benchmarks.gpu.run_gpu_benchmark", measured)
    arguments = ["bench", "gpu", "--out", str(tmp_path), "--docs", str(tmp_path / "none.md")]
    ran = CliRunner().invoke(app, [*arguments, "--device", "cpu"])
    assert ran.exit_code == 0, ran.output
    assert json.loads((tmp_path / "gpu.json").read_text())["command"] == "dashclip bench gpu --device cpu"
    CliRunner().invoke(app, arguments)
    assert [(one.device, one.impressions) for one in seen] == [
        ("cpu", TINY.impressions),
        ("cuda", GpuBenchmark().impressions),
    ]
