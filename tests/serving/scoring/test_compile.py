"""Programs agree with the module that they were made of, or are not used."""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import serving.scoring.compile
from serving.package.tables import ServingTable, TableError
from serving.scoring.arithmetic import has_bfloat16
from serving.scoring.programs import BackendChoice, BackendName, CompileError, load_compiled
from serving.scoring.ranker_scorer import ScoringError
from serving.scoring.request_ranker import RequestRanker
from tests.serving.scoring.packaged_rankers import CONFIG, SIZES, packaged
from tests.serving.small_rankers import DIM, random_requests

NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")


@pytest.mark.parametrize("backend", ["torchscript", "eager"])
@pytest.mark.parametrize("quantised", [False, True])
def test_a_loaded_program_scores_as_the_module_at_every_size(
    backend: BackendName, quantised: bool, tmp_path: Path
) -> None:
    of = packaged(tmp_path, quantised=quantised)
    assert of.compile(backend) == BackendChoice(backend, "asked for")
    assert of.worst_difference(SIZES) < 1e-6


@pytest.mark.slow
@NEEDS_COMPILER
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


@pytest.mark.slow
@NEEDS_COMPILER
@pytest.mark.skipif(not has_bfloat16(), reason="the processor multiplies no bfloat16")
def test_bfloat16_lies_beside_float32_and_takes_over_where_the_processor_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = packaged(tmp_path)
    choice = of.compile("auto", "bfloat16")
    assert [program.arithmetic == "bfloat16" for program in choice.programs] == [True, False]
    assert load_compiled(of.folder).choice == choice
    assert 1e-6 < of.worst_difference(SIZES) < serving.scoring.compile.TOLERANCE["bfloat16"]
    monkeypatch.setattr("serving.scoring.programs.has_bfloat16", lambda: False)
    elsewhere = load_compiled(of.folder).choice
    assert elsewhere.programs == choice.programs[1:]
    assert "this processor has no bfloat16" in elsewhere.reason
    assert of.worst_difference(SIZES) < 1e-6


class Made:
    """Stands in for the compiler: whatever is asked for costs so many milliseconds and scores so far off."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **ms: float) -> None:
        self.ms, self.off, self.files = ms, dict.fromkeys(ms, 0.0), list[str]()
        module = serving.scoring.compile
        monkeypatch.setattr(module, "has_bfloat16", lambda: "bfloat16" in ms)
        monkeypatch.setattr(module, "_compile", self._compile)
        monkeypatch.setattr(module, "SharedObject", lambda path, shape, types, arithmetic: arithmetic)
        monkeypatch.setattr(module, "_compared", self._compared)
        monkeypatch.setattr(
            module, "milliseconds", lambda programs, inputs: {kind: self.ms[kind] for kind in programs}
        )

    def _compile(self, _module: object, _tables: object, path: Path) -> None:
        path.write_bytes(b"program")

    def _compared(self, _module: object, _tables: object, arithmetic: Any, tolerance: float) -> float:
        if self.off[arithmetic] > tolerance:
            raise CompileError(f"its scores differ by {self.off[arithmetic]:.2g} from the module's")
        return self.off[arithmetic]


def test_float32_is_multiplied_by_whatever_takes_less_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Made(monkeypatch, torch=2.0, onednn=1.5)
    choice = packaged(tmp_path / "a").compile("auto", "auto")
    assert [(one.arithmetic, one.p50_ms) for one in choice.programs] == [("onednn", 1.5)]
    Made(monkeypatch, torch=1.0, onednn=1.5)
    assert packaged(tmp_path / "b").compile("auto", "auto").arithmetic == "torch"


@pytest.mark.parametrize(
    ("ms", "off", "precision", "taken"),
    [
        (1.0, 0.004, "auto", True),
        (1.0, 0.004, "float32", False),
        (1.0, 0.006, "auto", False),  # faster, and another model
        (1.4, 0.0, "auto", False),  # 7 % faster: not worth its rounding
        (1.4, 0.0, "bfloat16", True),
    ],
)
def test_bfloat16_is_taken_where_it_is_a_fifth_faster_and_close_enough(
    ms: float, off: float, precision: str, taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(monkeypatch, torch=2.0, onednn=1.5, bfloat16=ms)
    made.off["bfloat16"] = off
    of = packaged(tmp_path)
    choice = of.compile("auto", precision)
    assert choice.arithmetic == ("bfloat16" if taken else "onednn")
    assert (of.folder / "ranker_bfloat16.so").exists() == taken
    if taken:
        assert [one.arithmetic for one in choice.programs] == ["bfloat16", "onednn"]
        assert choice.programs[0].difference == off


def test_bfloat16_that_is_asked_for_and_cannot_be_had_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CompileError, match=r"needs the backend aotinductor .*, got eager; leave"):
        packaged(tmp_path / "a").compile("eager", "bfloat16")
    Made(monkeypatch, torch=2.0, onednn=1.5)
    with pytest.raises(CompileError, match="this one has neither"):
        packaged(tmp_path / "b").compile("auto", "bfloat16")
    Made(monkeypatch, torch=2.0, onednn=1.5, bfloat16=1.0).off["bfloat16"] = 0.01
    with pytest.raises(CompileError, match=r"differ by 0\.01"):
        packaged(tmp_path / "c").compile("auto", "bfloat16")


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


def test_rows_out_of_range_never_reach_the_program(tmp_path: Path) -> None:
    of = packaged(tmp_path)
    of.compile("torchscript")
    batch = random_requests([3], purchases=2).scoring_batch(of.module.shape, of.ranker)
    batch.product_N[1] = 21
    with pytest.raises(TableError, match=r"product vectors must lie in 0 to 20, got 21"):
        of.scorer().score(batch)
    assert of.module.shape.semantic is not None
    assert of.module.shape.semantic.dim == DIM
