"""A program runs where it can, and the module takes its place where it cannot."""

import json
from pathlib import Path

import pytest
import torch

import serving.scoring.programs
from serving.scoring.programs import CompileError, load_compiled, machine_here
from tests.serving.scoring.packaged_rankers import packaged


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
