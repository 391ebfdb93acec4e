"""The doctor: each check on made-up facts, and the real op library once."""

import tomllib
from pathlib import Path

import pytest

from experiments.runtime import doctor
from experiments.runtime.doctor import Finding

RIGHT = {
    "torch": "2.13.0+cpu",
    "fbgemm-gpu-cpu": "1.8.0",
    "fbgemm-gpu": None,
    "torchrec": "1.8.0",
    "torchmetrics": "1.0.3",
}


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_the_tested_triple_is_fine() -> None:
    assert {finding.status for finding in doctor.check_versions(RIGHT)} == {"ok"}
    assert doctor.check_builds(RIGHT).status == "ok"


def test_a_cuda_build_of_fbgemm_is_as_good() -> None:
    versions = RIGHT | {"fbgemm-gpu-cpu": None, "fbgemm-gpu": "1.8.0", "torch": "2.13.0+cu130"}
    assert {finding.status for finding in doctor.check_versions(versions)} == {"ok"}
    assert doctor.check_builds(versions).found == "fbgemm-gpu"


@pytest.mark.parametrize(
    "changed, check, status, fix",
    [
        ({"torch": None}, "torch", "fail", "pip install torch==2.13.0"),
        ({"torch": "2.14.0"}, "torch", "fail", "pip install torch==2.13.0"),
        ({"torch": "2.13.1"}, "torch", "warn", "pip install torch==2.13.0"),
        ({"fbgemm-gpu-cpu": None}, "fbgemm", "fail", "pip install fbgemm-gpu-cpu==1.8.0"),
        ({"fbgemm-gpu-cpu": None, "fbgemm-gpu": "1.9.0"}, "fbgemm", "fail", "pip install fbgemm-gpu==1.8.0"),
        ({"torchrec": None}, "torchrec", "fail", "pip install --no-deps torchrec==1.8.0"),
        ({"torchrec": "1.9.2"}, "torchrec", "fail", "pip install --no-deps torchrec==1.8.0"),
        ({"torchmetrics": "1.4.0"}, "torchmetrics", "fail", "pip install torchmetrics==1.0.3"),
    ],
)
def test_a_wrong_or_missing_version_gets_its_exact_fix(
    changed: dict, check: str, status: str, fix: str
) -> None:
    findings = by_name(doctor.check_versions(RIGHT | changed))
    assert (findings[check].status, findings[check].fix) == (status, fix)
    assert {finding.status for name, finding in findings.items() if name != check} == {"ok"}


def test_both_builds_of_fbgemm_at_once_fail() -> None:
    finding = doctor.check_builds(RIGHT | {"fbgemm-gpu": "1.8.0"})
    assert finding.status == "fail"
    assert "pip uninstall --yes fbgemm-gpu fbgemm-gpu-cpu" in finding.fix


def test_the_reason_of_a_failed_probe_is_its_last_line() -> None:
    output = "Traceback (most recent call last):\n  ...\nOSError: undefined symbol: _ZN3c10\n\n"
    finding = doctor.check_op_library(1, output)
    assert (finding.status, finding.found) == ("fail", "OSError: undefined symbol: _ZN3c10")
    assert "--force-reinstall torch==2.13.0 fbgemm-gpu-cpu==1.8.0" in finding.fix


def test_a_crash_of_the_probe_names_the_signal() -> None:
    assert "signal 11" in doctor.check_op_library(-11, "").found


def test_old_python_fails() -> None:
    assert doctor.check_python((3, 10, 9)).status == "fail"
    assert doctor.check_python((3, 11, 0)).status == "ok"


def test_bf16_without_hardware_is_a_warning_that_says_keep_float32() -> None:
    finding = doctor.check_cpu("Some CPU", "AVX2", bf16=False)
    assert finding.status == "warn"
    assert "keep float32" in finding.fix
    assert doctor.check_cpu("Some CPU", "AVX512", bf16=True).status == "ok"
    assert "AVX2" in doctor.check_cpu("Old CPU", "DEFAULT", bf16=False).fix


def test_a_gpu_without_the_cuda_build_of_fbgemm_is_a_warning() -> None:
    assert doctor.check_gpu([], "fbgemm-gpu-cpu", torch_cuda=None).status == "ok"
    assert doctor.check_gpu(["A100"], "fbgemm-gpu", torch_cuda="13.0").status == "ok"
    finding = doctor.check_gpu(["A100"], "fbgemm-gpu-cpu", torch_cuda="13.0")
    assert (finding.status, "pip install fbgemm-gpu==1.8.0" in finding.fix) == ("warn", True)


def test_more_threads_than_cores_are_a_warning_with_the_number_to_set() -> None:
    assert doctor.check_threads(2, 2).status == "ok"
    assert doctor.check_threads(8, 2).fix == "export OMP_NUM_THREADS=2"


def test_cores_that_other_work_keeps_busy_count_as_taken() -> None:
    assert doctor.check_threads(2, 2, busy=0.3).status == "ok"
    assert doctor.check_threads(1, 2, busy=5.0).status == "ok", "one thread waits for no other"
    found = doctor.check_threads(8, 8, busy=2.9)
    assert (found.status, found.fix[-len("OMP_NUM_THREADS=5") :]) == ("warn", "OMP_NUM_THREADS=5")
    assert doctor.check_threads(2, 2, busy=5.0).fix.endswith("OMP_NUM_THREADS=1")


@pytest.mark.parametrize("check", [doctor.check_memory, doctor.check_disk])
def test_little_room_warns_and_too_little_fails(check) -> None:
    statuses = [check(gib * doctor.GIB).status for gib in (1, 3, 100)]
    assert statuses == ["fail", "warn", "ok"]


def test_missing_java_is_only_a_warning() -> None:
    assert doctor.check_java(None).status == "warn"
    assert doctor.check_java('openjdk version "17"').status == "ok"


def test_only_failures_give_exit_code_one() -> None:
    fine, warned, failed = (Finding("x", status, "y") for status in ("ok", "warn", "fail"))
    assert doctor.exit_code([fine, warned]) == 0
    assert doctor.exit_code([fine, failed]) == 1


def test_a_missing_distribution_has_no_version() -> None:
    assert doctor.installed_versions(["pytest", "no-such-distribution"])["no-such-distribution"] is None


def test_a_wrong_triple_is_not_loaded_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "installed_versions", lambda names: RIGHT | {"torch": "2.14.0"})
    monkeypatch.setattr(doctor, "run_probe", lambda: pytest.fail("the probe ran on a wrong triple"))
    findings = doctor.diagnose(tmp_path / "not" / "yet")
    assert doctor.exit_code(findings) == 1
    assert {"memory", "disk", "Java", "processor"} <= set(by_name(findings))


def test_the_installed_op_library_trains_a_fused_table() -> None:
    assert doctor.check_op_library(*doctor.run_probe()).status == "ok"


def test_every_finding_that_is_not_ok_has_a_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "run_probe", lambda: (1, ""))
    for finding in doctor.diagnose(tmp_path):
        assert finding.found
        assert bool(finding.fix) == (finding.status != "ok"), finding


def test_a_missing_extra_is_optional_and_says_what_it_would_give(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["numpy>=2", 'fastapi>=0.1; extra == "fastapi"', 'uvicorn; extra == "fastapi"']
    asked += ['pytest>=8; extra == "dev"', 'fbgemm-gpu-cpu==1.8.0; extra == "cpu"']
    versions = {"fastapi": "1.0", "uvicorn": None, "pytest": "8.0"}
    monkeypatch.setattr(doctor, "installed_versions", lambda names: {name: versions[name] for name in names})
    fastapi, dev = doctor.check_extras(asked)
    assert (fastapi.name, fastapi.status, fastapi.found) == (
        *("extra fastapi", "optional", "not installed (uvicorn)"),
    )
    assert "serving without Java" in fastapi.fix
    assert "pip install 'dashclip-ranker[fastapi]'" in fastapi.fix
    assert (dev.status, dev.fix) == ("ok", "")
    assert doctor.exit_code([fastapi, dev]) == 0


def test_every_declared_extra_but_the_builds_says_what_it_is_for() -> None:
    text = (Path(__file__).resolve().parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    assert {*doctor.EXTRAS, *doctor.BUILD_EXTRAS} == {*extras}
