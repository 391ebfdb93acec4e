"""The tree keeps its own rules: names, docstrings, sizes, light imports, documents that name what exists."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ranking", "embeddings", "features", "serving", "experiments")
DISTRIBUTION = "dashclip-ranker"
SOFT_CAP_LINES = 400
#: Files above the soft cap, each with the reason.
LONG_FILES: dict[str, str] = {
    "embeddings/training/loop.py": "one loop: its settings, what a stage is to it, its steps and evaluations",
    "embeddings/stages/stage1.py": "the config, the losses and the batches of one stage of training",
    "embeddings/stages/stage2.py": "one stage as the loop sees it: its batches in chunks, and its evaluation",
    "features/inputs/tables.py": "what a folder of tables holds: the files, columns, types and rows of each",
    "ranking/run.py": "one run: its config, its inputs, its folder, and what executes it",
    "features/online/request.py": "one request and every refusal of a value in it",
}
BANNED_WORDS = {"util", "utils", "helper", "helpers", "manager", "item", "items", "data", "info", "misc"}

MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("package", PACKAGES)
def test_no_other_installed_distribution_owns_our_import_names(package: str) -> None:
    owners = set(importlib.metadata.packages_distributions().get(package, []))
    assert owners <= {DISTRIBUTION}, f"`import {package}` also belongs to {owners - {DISTRIBUTION}}"


def test_our_import_names_are_imported_from_this_tree() -> None:
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin == str(ROOT / package / "__init__.py")


@pytest.mark.parametrize("path", MODULES + TESTS, ids=relative)
def test_a_file_with_code_opens_with_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not tree.body or ast.get_docstring(tree), f"{relative(path)} has no module docstring"


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=relative)
def test_a_package_file_holds_a_docstring_and_nothing_else(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert len(tree.body) == 1
    assert ast.get_docstring(tree)


def test_every_folder_of_modules_or_tests_is_a_package() -> None:
    folders = {path.parent for path in MODULES + TESTS}
    assert [relative(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_no_source_file_is_longer_than_the_soft_cap() -> None:
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    too_long = {name: length for name, length in lengths.items() if length > SOFT_CAP_LINES}
    assert set(too_long) - set(LONG_FILES) == set(), f"above {SOFT_CAP_LINES} lines: {too_long}"


def test_no_module_has_a_name_that_says_nothing() -> None:
    named = [relative(path) for path in MODULES if BANNED_WORDS & set(path.stem.split("_"))]
    assert named == []


def test_the_command_line_starts_without_heavy_imports() -> None:
    heavy = ("torch", "torchrec", "duckdb", "pandas", "pyarrow", "sklearn", "scipy", "matplotlib")
    code = f"import sys, experiments.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_of_the_command_line_lists_the_commands() -> None:
    command = [sys.executable, "-m", "experiments", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in ("doctor", "embed", "features", "sweep", "train"):
        assert name in done.stdout


def test_no_environment_variable_switches_behaviour() -> None:
    reads = re.compile(r"os\.environ\.get|os\.getenv|(?<!= )os\.environ\[")
    readers = [relative(path) for path in MODULES if reads.search(path.read_text(encoding="utf-8"))]
    assert readers == []


def test_constraints_pin_every_dependency_of_the_cpu_build() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = {
        re.split(r"[=<>\[]", line)[0].lower().replace("_", "-")
        for line in [*project["dependencies"], *extras["cpu"], *extras["dev"]]
    }
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert wanted - pinned == set()


@pytest.mark.parametrize(
    "document", sorted((ROOT / "docs").rglob("*.md")) + sorted(ROOT.glob("*.md")), ids=relative
)
def test_documents_only_name_files_that_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    suffixes = "py|md|toml|txt|html|yml"
    named = set(re.findall(rf"`((?:[\w.-]+/)+[\w.-]+\.(?:{suffixes}))(?:::\w+)?`", text))
    linked = {
        (document.parent / target).resolve().relative_to(ROOT).as_posix()
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
    }
    generated = ("runs/",)
    missing = [name for name in sorted(named | linked) if not name.startswith(generated)]
    assert [name for name in missing if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("document", [ROOT / "docs" / "paper_map.md"], ids=relative)
def test_the_tests_that_the_paper_map_names_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for path, name in re.findall(r"`([\w./-]+\.py)::(test_\w+)`", text):
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path} has no {name}"
