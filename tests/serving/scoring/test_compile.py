"""Programs agree with the module that they were made of, or are not used."""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import serving.scoring.compile
import serving.scoring.programs
from ranking.model import Ranker, RankerConfig, SemanticConfig
from serving.package.tables import ServingTable, TableError
from serving.packaging.from_ranker import product_projections, vectors_of
from serving.scoring.compile import compile_ranker
from serving.scoring.programs import BackendChoice, BackendName, CompileError, load_compiled, machine_here
from serving.scoring.ranker_scorer import RankerScorer, ScoringError, table_inputs
from serving.scoring.request_ranker import RequestRanker
from tests.serving.small_rankers import (
    DIM,
    plain_tables,
    random_requests,
    request_ranker,
    small_ranker,
    written_tables,
)

CONTEXT = ("user", "query", "hour")
CONFIG = RankerConfig(embedding_dim=4, cross_layers=2, deep_widths=(8,), semantic=SemanticConfig(widths=(8,)))


@dataclass
class Packaged:
    ranker: Ranker
    module: RequestRanker
    tables: dict[str, ServingTable]
    vectors: ServingTable | None
    folder: Path
    projections: ServingTable | None = None

    @property
    def bound(self) -> dict[str, Any]:
        return {"tables": self.tables, "vectors": self.vectors, "projections": self.projections}

    @property
    def examples(self) -> list[torch.Tensor]:
        return table_inputs(self.module.shape, **self.bound)

    def compile(self, backend: str = "auto") -> BackendChoice:
        return compile_ranker(self.module, self.examples, self.folder, backend=backend)

    def scorer(self) -> RankerScorer:
        compiled = load_compiled(self.folder)
        return RankerScorer(compiled.program, compiled.shape, **self.bound)

    def worst_difference(self, sizes: list[tuple[list[int], int]]) -> float:
        """Between the loaded program's probabilities and the module's."""
        mine = RankerScorer(lambda inputs: self.module(*inputs), self.module.shape, **self.bound)
        scorer, worst = self.scorer(), 0.0
        for seed, (candidates, purchases) in enumerate(sizes):
            requests = random_requests(candidates, purchases=purchases, request_columns=CONTEXT, seed=seed)
            batch = requests.scoring_batch(self.module.shape, self.ranker)
            worst = max(worst, float(np.abs(scorer.score(batch) - mine.score(batch)).max()))
        return worst


SIZES = [([1], 0), ([1], 1), ([2], 1), ([1, 1], 0), ([3, 1, 4], 3), ([60], 20)]


def packaged(
    folder: Path, config: RankerConfig = CONFIG, *, quantised: bool = False, projected: bool = False
) -> Packaged:
    ranker = small_ranker(config)
    module = request_ranker(ranker, CONTEXT, quantised=quantised, projected=projected)
    if config.semantic is None:
        return Packaged(ranker, module, *plain_tables(ranker), folder / "model")
    dtype = "int8" if quantised else "float16"
    projections = None
    if projected:
        rows = product_projections(module, vectors_of(ranker)["product"])
        projections = ServingTable(torch.from_numpy(rows), None)
    tables, vectors = written_tables(ranker, folder, vectors_dtype=dtype)
    return Packaged(ranker, module, tables, vectors, folder / "model", projections)


@pytest.mark.parametrize("backend", ["torchscript", "eager"])
@pytest.mark.parametrize("quantised", [False, True])
def test_a_loaded_program_scores_as_the_module_at_every_size(
    backend: BackendName, quantised: bool, tmp_path: Path
) -> None:
    of = packaged(tmp_path, quantised=quantised)
    assert of.compile(backend) == BackendChoice(backend, "asked for")
    assert of.worst_difference(SIZES) < 1e-6


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
@pytest.mark.parametrize("two_towers", [True, False])
def test_a_shared_object_scores_as_the_module_at_every_size(two_towers: bool, tmp_path: Path) -> None:
    changes = {} if two_towers else {"semantic": None, "cross_rank": 2}
    config = CONFIG.model_copy(update=changes)
    of = packaged(tmp_path, config, quantised=two_towers, projected=two_towers)
    choice = of.compile("auto")
    assert choice.name == "aotinductor", choice.reason
    assert of.worst_difference(SIZES) < 1e-6
    names = {"shape.json", "backend.json", "weights.safetensors", "ranker.so"}
    assert {path.name for path in of.folder.iterdir()} == names

    grown = {name: ServingTable(torch.cat([t.values_MD] * 3), None) for name, t in of.tables.items()}
    assert len(grown["user"].values_MD) == 90
    batch = random_requests([3], purchases=2).scoring_batch(of.module.shape, of.ranker)
    before = of.scorer().score(batch)
    of.tables = grown
    assert np.array_equal(of.scorer().score(batch), before), "tables may grow without a new program"

    of.tables = {name: ServingTable(t.values_MD.double(), None) for name, t in grown.items()}
    with pytest.raises(ScoringError, match="compiled for tables of"):
        of.scorer().score(batch)


def test_auto_takes_the_next_program_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*_: object) -> None:
        raise RuntimeError("C++ compiler not found\nand much more")

    monkeypatch.setattr(serving.scoring.compile, "_compile", no_compiler)
    of = packaged(tmp_path)
    reason = "aotinductor failed: RuntimeError: C++ compiler not found"
    with caplog.at_level(logging.WARNING):
        assert of.compile("auto") == BackendChoice("torchscript", reason)
    assert reason in caplog.text
    assert load_compiled(of.folder).choice == BackendChoice("torchscript", reason)
    monkeypatch.setattr(serving.scoring.compile, "_trace", no_compiler)
    assert of.compile("auto").name == "eager"


def test_a_program_with_other_scores_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = serving.scoring.compile._trace

    def wrong(module: RequestRanker, *others: object) -> None:
        with torch.no_grad():
            module.head[0].bias += 0.1
            trace(module, *others)
            module.head[0].bias -= 0.1

    monkeypatch.setattr(serving.scoring.compile, "_trace", wrong)
    with pytest.raises(CompileError, match=r"torchscript failed: .* differ by"):
        packaged(tmp_path).compile("torchscript")


def test_a_program_that_gives_nan_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        serving.scoring.compile, "open_program", lambda *_: lambda inputs: inputs[-1].float() * float("nan")
    )
    with pytest.raises(CompileError, match="differ by inf"):
        packaged(tmp_path).compile("eager")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"torch": "1.0"}, "compiled with torch 1.0"),
        ({"machine": {"processor": "vax", "instructions": "base"}}, "compiled for vax"),
    ],
)
def test_a_program_of_another_machine_gives_way_to_the_module(
    changes: dict[str, object], message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    of = packaged(tmp_path)
    of.compile("eager")
    described = json.loads((of.folder / "backend.json").read_text())
    (of.folder / "backend.json").write_text(json.dumps(described | {"name": "aotinductor"} | changes))
    compiled = load_compiled(of.folder)
    assert compiled.choice.name == "eager"
    assert message in compiled.choice.reason
    assert message in caplog.text
    assert of.worst_difference([([2], 1)]) < 1e-6


@pytest.mark.parametrize(
    ("here", "there", "runs"),
    [
        ("AVX512", "AVX2", True),
        ("AVX2", "AVX2", True),
        ("AVX2", "AVX512", True),  # no program uses more than AVX2
        ("DEFAULT", "AVX2", False),
        ("DEFAULT", "DEFAULT", True),
        ("AVX2", "DEFAULT", False),
    ],
)
def test_a_program_runs_on_every_processor_with_avx2(
    here: str, there: str, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: there)
    described = {"torch": torch.__version__, "machine": machine_here()}
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: here)
    assert (serving.scoring.programs._obstacle(described) is None) == runs


@pytest.mark.parametrize("missing", ["shape.json", "backend.json", "weights.safetensors"])
def test_a_folder_without_one_of_its_files_is_refused(missing: str, tmp_path: Path) -> None:
    of = packaged(tmp_path)
    of.compile("eager")
    (of.folder / missing).unlink()
    with pytest.raises(CompileError, match=missing):
        load_compiled(of.folder)


def test_a_truncated_program_is_refused(tmp_path: Path) -> None:
    of = packaged(tmp_path)
    of.compile("torchscript")
    script = of.folder / "ranker.ts"
    script.write_bytes(script.read_bytes()[:1000])
    with pytest.raises(CompileError, match="no program that can be loaded"):
        load_compiled(of.folder)


def test_rows_out_of_range_never_reach_the_program(tmp_path: Path) -> None:
    of = packaged(tmp_path)
    of.compile("torchscript")
    batch = random_requests([3], purchases=2).scoring_batch(of.module.shape, of.ranker)
    batch.product_N[1] = 21
    with pytest.raises(TableError, match=r"product vectors must lie in 0 to 20, got 21"):
        of.scorer().score(batch)
    assert of.module.shape.semantic is not None
    assert of.module.shape.semantic.dim == DIM
