"""What `pip install` takes from a built wheel: all that runs, and nothing that only developers have."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGES = ("ranking", "embeddings", "features", "serving", "experiments")
#: What is read or written by developers alone.
NOT_SHIPPED = ("experiments/LOG.md", "experiments/results/")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: What runs with an extra alone.
NEED_AN_EXTRA = {
    "experiments.abtest.aa_check",
    "experiments.abtest.analysis",
    "experiments.abtest.decision",
    "experiments.abtest.estimates",
    "experiments.abtest.planning",
    "experiments.abtest.simulated.coverage",
    "experiments.abtest.simulated.repetition",
    "experiments.abtest.slices",
    "experiments.abtest.unit_sums",
    "experiments.reports.abtest.coverage_text",
    "experiments.reports.abtest.day_sections",
    "experiments.reports.abtest.page",
    "experiments.reports.abtest.plan_page",
    "experiments.reports.abtest.plan_plots",
    "experiments.reports.abtest.sections",
    "experiments.reports.abtest.slices",
    "experiments.benchmarks.serving.onnx_ranker",
    "experiments.benchmarks.training.peers.deepctr_torch_runner",
    "experiments.benchmarks.training.peers.fuxictr_runner",
    "serving.servers.fastapi.app",
    "serving.servers.fastapi.guarded_connection",
    "serving.servers.fastapi.supervisor",
    "serving.servers.tracing",
}
#: Requirements under other names than the modules that they bring.
MODULES = {
    "pytest-xdist": "xdist",
    "import-linter": "importlinter",
    "ir-measures": "ir_measures",
    "opentelemetry-sdk": "opentelemetry",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
}


def required(requirements: list[str]) -> set[str]:
    return {Requirement(line).name for line in requirements}


def shipped_sources() -> set[str]:
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    names = {path.relative_to(ROOT).as_posix() for path in files}
    return {name for name in names if "__pycache__" not in name and not name.startswith(NOT_SHIPPED)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build leaves folders beside what it builds."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(out)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    [built] = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked, beside a hook that hides whatever only an extra would install."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    extras = PROJECT["optional-dependencies"]
    asked = {name for extra in set(extras) - {"cpu", "cuda"} for name in required(extras[extra])}
    hidden = {MODULES.get(name, name.replace("-", "_")) for name in asked - required(PROJECT["dependencies"])}
    assert {"pytest", "mypy", "peft", "fastapi"} <= hidden
    (site / "sitecustomize.py").write_text(
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "class WithoutExtras(PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        f"        hidden = name.partition('.')[0] in {hidden!r}\n"
        "        return None if hidden else super().find_spec(name, path, target)\n"
        "sys.meta_path[:] = [WithoutExtras if found is PathFinder else found for found in sys.meta_path]\n",
        encoding="utf-8",
    )
    return site


def python(site: Path, folder: Path, *arguments: str) -> str:
    """Runs Python with the packages of `site`, away from the sources."""
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_it_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == shipped_sources()


def test_its_metadata_names_the_command_and_every_extra(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [points] = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        assert "dashclip = experiments.cli:main" in archive.read(points).decode().splitlines()
        fields = message_from_bytes(archive.read(metadata))
    assert set(fields.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])


def test_every_module_can_be_imported_without_any_extra(installed: Path, tmp_path: Path) -> None:
    found = list(imported_names(installed))
    assert "serving.servers.torchserve.handler" in found
    code = (
        "import importlib, experiments, sys\n"
        f"assert experiments.__file__.startswith({str(installed)!r}), experiments.__file__\n"
        "failed = []\n"
        f"for name in {found!r}:\n"
        "    try: importlib.import_module(name)\n"
        "    except ImportError as error: failed.append(name)\n"
        "print(*failed)\n"
    )
    assert set(python(installed, tmp_path, "-c", code).split()) == NEED_AN_EXTRA


def imported_names(site: Path) -> Iterator[str]:
    for package in PACKAGES:
        for path in sorted((site / package).rglob("*.py")):
            name = path.relative_to(site).with_suffix("").as_posix().replace("/", ".")
            if not name.endswith(("__main__", "__init__")):
                yield name


def test_data_features_and_a_page_can_be_made_with_nothing_else(installed: Path, tmp_path: Path) -> None:
    command = ("-m", "experiments")
    python(installed, tmp_path, *command, "generate", "data", "--size", "tiny")
    python(
        installed,
        tmp_path,
        *command,
        "features",
        "build",
        "data",
        "features",
        "--config",
        "marketplace_features",
    )
    assert (tmp_path / "features" / "manifest.json").is_file()
    assert "marketplace_features" in python(installed, tmp_path, *command, "config", "list")
