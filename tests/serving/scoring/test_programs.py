"""A program runs where it can, and the module takes its place where it cannot."""

import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import serving.scoring.programs
from serving.scoring.arithmetic import Arithmetic
from serving.scoring.programs import CompileError, SharedObject, load_compiled, machine_here
from serving.scoring.ranker_scorer import RankerScorer
from tests.serving.scoring.packaged_rankers import CONTEXT, packaged
from tests.serving.small_rankers import random_requests


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


class Runner:
    """Stands in for AOTInductor's: notes what it is called with."""

    called: ClassVar[list[list[tuple[int, ...]]]] = []

    def __init__(self, _path: str, _count: int) -> None:
        pass

    def run(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        self.called.append([tuple(one.shape) for one in inputs])
        return [torch.arange(len(inputs[-1])) + 0.5]


@pytest.mark.parametrize(("arithmetic", "rows"), [("torch", 17), ("onednn", 18)])
def test_candidates_are_filled_up_for_one_dnn_and_only_the_asked_ones_come_back(
    arithmetic: Arithmetic, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._C._aoti, "AOTIModelContainerRunnerCpu", Runner)
    of = packaged(tmp_path)
    shape, tables = of.module.shape, of.examples
    program = SharedObject(tmp_path / "ranker.so", shape, [str(one.dtype) for one in tables], arithmetic)
    batch = random_requests([17], purchases=2, request_columns=CONTEXT).scoring_batch(shape, of.ranker)
    scores_N = RankerScorer(program, shape, **of.bound).score(batch)
    assert scores_N.tolist() == [number + 0.5 for number in range(17)]
    sizes = dict(zip(shape.inputs, Runner.called[-1], strict=True))
    of_candidates = {name: size[0] for name, size in sizes.items() if name.startswith("candidate_")}
    assert {**of_candidates, "product": sizes["product"][0], "request_of": sizes["request_of"][0]} == {
        "candidate_dense": rows,
        "candidate_sparse": rows,
        "product": rows,
        "request_of": rows,
    }
    assert sizes["request_dense"][0] == 1


def test_a_folder_of_before_there_was_a_choice_has_one_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = packaged(tmp_path)
    of.compile("eager")
    described = json.loads((of.folder / "backend.json").read_text()) | {"name": "aotinductor"}
    del described["programs"]
    (of.folder / "backend.json").write_text(json.dumps(described))
    monkeypatch.setattr(torch._C._aoti, "AOTIModelContainerRunnerCpu", Runner)
    compiled = load_compiled(of.folder)
    assert (compiled.choice.name, compiled.choice.arithmetic) == ("aotinductor", "torch")
