"""Operations counted by hand, the schedule of steps, generated products, and the tables of encoders."""

import json
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.models.blip.modeling_blip import BlipAttention
from typer.testing import CliRunner

from embeddings.catalog.images import load_image
from embeddings.encoders.config import EncoderConfig
from embeddings.encoders.modules import ProductEncoder, vision_config
from embeddings.stages.runs import VOCABULARY
from experiments.benchmarks.document import render_document
from experiments.benchmarks.encoders.products import CatalogSize, full_size_tokenizer, write_products
from experiments.benchmarks.encoders.step_timing import Observed, Schedule, StepObserver, count_flop
from experiments.benchmarks.encoders.throughput import (
    EncoderBenchmark,
    EncoderBenchmarkError,
    attention_support,
    compile_transformers,
    run_encoder_benchmark,
    setting,
)
from experiments.benchmarks.tables import tables_of
from experiments.cli import app

CPU = torch.device("cpu")
REPOSITORY = Path(__file__).parents[3]


def _forward_and_backward(module: nn.Module, *inputs: torch.Tensor) -> None:
    output = module(*inputs)
    (output[0] if isinstance(output, tuple) else output).sum().backward()


@settings(deadline=None, max_examples=10)
@given(rows=st.integers(1, 9), wide=st.integers(1, 9), narrow=st.integers(1, 9), input_grad=st.booleans())
def test_a_linear_layer_costs_two_operations_a_weight_and_row_in_each_product(
    rows: int, wide: int, narrow: int, input_grad: bool
) -> None:
    inputs = torch.ones(rows, wide, requires_grad=input_grad)
    counted = count_flop(partial(_forward_and_backward, nn.Linear(wide, narrow), inputs))
    assert counted == (3 if input_grad else 2) * 2 * rows * wide * narrow


def test_an_attention_block_costs_four_projections_and_two_products_of_tokens_with_tokens() -> None:
    config = EncoderConfig.preset("tiny", vocab_size=16)
    block = BlipAttention(vision_config(config))
    rows, tokens, width = 3, 5, config.vision_hidden_dim
    forward = rows * (4 * 2 * tokens * width * width + 2 * 2 * tokens * tokens * width)
    inputs = torch.ones(rows, tokens, width, requires_grad=True)
    assert count_flop(partial(block, inputs)) == forward
    assert count_flop(partial(_forward_and_backward, block, inputs)) == 3 * forward


def test_encoding_costs_what_the_layers_of_the_image_encoder_cost() -> None:
    config = EncoderConfig.preset("tiny", vocab_size=16, image_stem="linear")
    product = ProductEncoder(config, enc_id=6)
    rows, width, patch = 2, config.vision_hidden_dim, config.patch_size
    patches = (config.image_size // patch) ** 2
    tokens = patches + 1
    attention = 4 * 2 * tokens * width * width + 2 * 2 * tokens * tokens * width
    feed_forward = 2 * 2 * tokens * width * 4 * width
    of_one = 2 * patches * 3 * patch * patch * width + config.vision_layers * (attention + feed_forward)
    pixels = torch.zeros(rows, 3, config.image_size, config.image_size)
    assert count_flop(partial(product.image_tokens, pixels)) == rows * of_one


def test_warm_up_and_profiled_steps_are_not_timed() -> None:
    observer, steps = StepObserver(CPU, Schedule(warmup=2, timed=3, profiled=1)), 0
    weight = torch.ones(8, 8)
    with suppress(Observed):
        while steps < 100:
            torch.softmax(torch.bmm(weight[None], weight[None]), dim=-1)
            steps += 1
            observer()
    assert steps == 6
    assert len(observer.wall_s) == len(observer.cpu_s) == 3
    calls = {operator["name"]: operator["calls"] for operator in observer.operators}
    assert calls["aten::bmm"] == 1
    assert observer.attention_share is not None
    in_attention = [o["share"] for o in observer.operators if o["name"] in ("aten::bmm", "aten::_softmax")]
    assert observer.attention_share == pytest.approx(sum(in_attention))


@pytest.fixture
def timed() -> StepObserver:
    observer = StepObserver(CPU, Schedule(1, 3, 0))
    observer.wall_s, observer.cpu_s = [4.0, 2.0, 9.0], [1.0, 2.0, 0.5]
    return observer


def test_rates_are_those_of_the_median_step_and_the_peak_is_shared_by_processor_time(
    timed: StepObserver,
) -> None:
    result = timed.result(rows=8, flop=3e9, peak_gflops=6.0)
    assert (result["rows_per_s"], result["rows_per_cpu_s"]) == (2.0, 8.0)
    assert result["gflop_per_row"] == pytest.approx(0.375)
    assert result["share_of_peak"] == pytest.approx(0.5)
    assert result["wall_s"] == {"median": 4.0, "low": 2.0, "high": 9.0}


def test_the_share_of_a_gpus_peak_goes_by_wall_time(timed: StepObserver) -> None:
    timed.device = torch.device("cuda")
    assert timed.result(rows=8, flop=3e9, peak_gflops=6.0)["share_of_peak"] == pytest.approx(0.125)


def test_generated_products_have_their_own_titles_grades_and_readable_pictures(tmp_path: Path) -> None:
    folder = write_products(tmp_path / "data", CatalogSize(products=60, queries=40), seed=1)
    products = pq.read_table(folder / "products.parquet").to_pydict()
    relevance = pq.read_table(folder / "relevance.parquet").to_pydict()
    assert len(set(products["title"])) == 60
    assert 7 <= np.median([len(title.split()) for title in products["title"]]) <= 13
    pairs = list(zip(relevance["product_id"], relevance["query"], strict=True))
    assert len(set(pairs)) == len(pairs) == 60 * 21
    assert load_image(folder / products["image"][59], size=32).shape == (3, 32, 32)
    again = write_products(tmp_path / "again", CatalogSize(products=60, queries=40), seed=1)
    assert (again / "relevance.parquet").read_bytes() == (folder / "relevance.parquet").read_bytes()


def test_the_tokenizer_has_as_many_ids_as_one_of_a_real_catalogue() -> None:
    texts = ["soft towel", "soft soap"]
    tokenizer = full_size_tokenizer(texts, "tiny")
    assert tokenizer.vocab_size == VOCABULARY["tiny"]
    assert tokenizer(texts, max_tokens=8).known_B.all()


def test_transformers_gives_blip_eager_attention_alone() -> None:
    found = attention_support()
    assert found["eager"] == "accepted"
    assert "ValueError: BlipVisionModel does not support" in found["sdpa"]
    assert "ValueError: BlipTextModel does not support" in found["sdpa"]
    assert "does not support Flash Attention" in found["flash_attention_2"]


def test_both_encoders_of_a_product_are_compiled_and_keep_the_names_of_their_weights() -> None:
    product = ProductEncoder(EncoderConfig.preset("tiny", vocab_size=16), enc_id=6)
    names = list(product.state_dict())
    assert compile_transformers(product) == 2
    assert product.vision._compiled_call_impl is not None
    assert product.text._compiled_call_impl is not None
    assert list(product.state_dict()) == names


def test_cuda_without_a_device_is_refused_before_anything_is_generated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    benchmark = setting("tiny", device="cuda", precision="bfloat16", compiled=False)
    with pytest.raises(EncoderBenchmarkError, match="torch sees no CUDA device"):
        run_encoder_benchmark(benchmark, work=tmp_path / "work", progress=lambda *_: None)
    assert not (tmp_path / "work").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    quick = setting("tiny", device="cpu", precision="float32", compiled=False, batch_rows=4, quick=True)
    benchmark: EncoderBenchmark = replace(quick, queries=60, peak_seconds=0.01)
    work = tmp_path_factory.mktemp("bench")
    threads = torch.get_num_threads()
    found = run_encoder_benchmark(benchmark, work=work, progress=lambda *_: None)
    assert torch.get_num_threads() == threads
    assert not list(work.glob("checkpoints/*"))
    return {"command": "dashclip bench encoders", **json.loads(json.dumps(found))}


def test_a_run_measures_both_stages_and_encoding_with_and_without_reading(run: dict[str, Any]) -> None:
    stages = ("pretrain", "align", "encode")
    assert set(run["eager"]) == {*stages, *(f"{stage}_loop" for stage in stages)}
    for measured in run["eager"].values():
        assert measured["rows_per_s"] > 0
        assert 0 < measured["share_of_peak"] < 1.5  # so little work is timed coarsely
    for stage in stages:
        assert run["eager"][stage]["operators"]
        assert 0 < run["eager"][stage]["attention_share"] < 1
    # Forward, two gradients, grounded text, teacher: far above one forward pass.
    assert run["eager"]["pretrain"]["gflop_per_row"] > 4 * run["eager"]["encode"]["gflop_per_row"]
    assert run["accelerator"] is None


def test_the_tables_say_what_was_measured_where_and_that_no_gpu_was(run: dict[str, Any]) -> None:
    run = run | {"load_average_before": 3.2}
    speed, profile = tables_of("encoders", {"runs": {"tiny, cpu, float32": run}})
    text = f"{speed.markdown()}\n{profile.markdown()}"
    assert [row[0] for row in speed.rows][:2] == [
        "stage 1 step (products)",
        "stage 1, pictures read (products)",
    ]
    for said in (
        "No GPU was measured",
        "**The machine was shared**",
        "load average was 3.2",
        "sdpa: ValueError",
    ):
        assert said in text
    quiet = tables_of("encoders", {"runs": {"tiny, cpu, float32": run | {"load_average_before": 0.1}}})
    assert "shared" not in quiet[0].markdown()
    assert all(len(row) == len(table.columns) for table in (speed, profile) for row in table.rows)


def test_a_compiled_run_stands_beside_the_eager_one_and_a_gpu_is_named(run: dict[str, Any]) -> None:
    compiled = {stage: run["eager"][stage] for stage in ("pretrain", "align", "encode")}
    gpu = {"accelerator": "Example GPU", "accelerator_peak_mib": 1234.0, "compiled": compiled}
    tables = tables_of("encoders", {"runs": {"tiny, cuda, bfloat16, compiled": run | gpu}})
    speed, profile = tables
    assert "stage 2 step (tuples), compiled" in [row[0] for row in speed.rows]
    assert profile.columns[1::2] == ("eager: operator", "compiled: operator")
    text = "\n".join(table.markdown() for table in tables)
    assert "Example GPU, by wall time; 1,234 MiB at most" in text
    assert "No GPU" not in text


def test_the_document_has_a_place_for_the_encoders_and_keeps_it(run: dict[str, Any]) -> None:
    document = (REPOSITORY / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    other = run | {"machine": run["machine"] | {"instructions": ["avx2", "amx_bf16"]}}
    results = {"encoders": {"runs": {"tiny, cpu, float32": run, "tiny, cpu, bfloat16": other}}}
    once = render_document(document, results)
    on_amx = once.split("<!-- bench:encoders -->")[1].split("<!-- on:AMX -->")[1]
    assert "**Encoders: tiny, cpu, bfloat16**" in on_amx.split("<!-- /on:AMX -->")[0]
    assert "**Encoders: tiny, cpu, float32**" in once
    assert render_document(once, results) == once


def test_the_command_keeps_the_runs_of_other_settings(
    run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {name: value for name, value in run.items() if name != "command"}
    monkeypatch.setattr(
        "experiments.benchmarks.encoders.throughput.run_encoder_benchmark", lambda *_, **__: found
    )
    (tmp_path / "encoders.json").write_text(json.dumps({"runs": {"small, cuda, bfloat16": run}}))
    arguments = ["bench", "encoders", "--size", "tiny", "--quick", "--out", str(tmp_path)]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    runs = json.loads((tmp_path / "encoders.json").read_text())["runs"]
    assert set(runs) == {"small, cuda, bfloat16", "tiny, cpu, float32"}
    command = "dashclip bench encoders --quick --size tiny --device cpu --precision float32"
    assert runs["tiny, cpu, float32"]["command"] == command
