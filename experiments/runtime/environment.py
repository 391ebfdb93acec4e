"""What a result depends on besides its config: versions, commit, hardware."""

import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

_PACKAGES = (
    "torch",
    "torchrec",
    "fbgemm-gpu-cpu",
    "fbgemm-gpu",
    "numpy",
    "pyarrow",
    "duckdb",
    "scikit-learn",
    "transformers",
    "tokenizers",
    "faiss-cpu",
)
_BENCHMARKED = ("torch", "torchrec", "fbgemm-gpu-cpu", "duckdb", "pyarrow", "pandas", "numpy")
_UNKNOWN = "unknown"
_CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def environment() -> dict[str, Any]:
    """Versions of what computes, the commit (with `+changes` if files differ from it), and the machine."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: found for name, found in installed_versions(_PACKAGES).items() if found},
        "system": platform.system(),
        "cpu": cpu_model(),
        "cores": psutil.cpu_count(logical=True),
        "memory_gib": _memory_gib(),
    }


def provenance_of(command: str | None, environments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The command of many runs, and what these recorded about themselves: they may come from elsewhere.

    What an older record lacks is "unknown".
    """

    def distinct(values: Iterable[Any]) -> str:
        return ", ".join(sorted({_UNKNOWN if value is None else str(value) for value in values}))

    return {
        "command": command,
        "commit": distinct(run.get("commit") for run in environments),
        "created": min((run["created"] for run in environments if "created" in run), default=_UNKNOWN),
        "machine": distinct(
            f"{run.get('cores', _UNKNOWN)} cores of {run.get('cpu', _UNKNOWN)}" for run in environments
        ),
        "torch": distinct(run.get("packages", {}).get("torch") for run in environments),
    }


def describe_machine(libraries: Sequence[str] = _BENCHMARKED) -> dict[str, Any]:
    """What a speed was measured on: processor, memory, system, `libraries`, commit and date, as JSON.

    Enough to judge a number by, nothing that identifies the machine.
    """
    fields = _cpuinfo()
    family = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else ""
    flags = fields.get("flags", "").split()
    return {
        "processor": cpu_model() + family,
        "instructions": [feature for feature in _CPU_FEATURES if feature in flags],
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "libraries": {name: found for name, found in installed_versions(libraries).items() if found},
        "commit": _git("describe", "--always", "--dirty", "--abbrev=10", folder=Path(__file__).parent)
        or "unknown",
        "date": datetime.now(UTC).date().isoformat(),
    }


def installed_versions(names: Sequence[str]) -> dict[str, str | None]:
    """Version of each distribution, None when it is not installed."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def commit() -> str | None:
    """Short commit of this source tree, or None outside a checkout."""
    folder = Path(__file__).parent
    revision = _git("rev-parse", "--short", "HEAD", folder=folder)
    if revision and _git("status", "--porcelain", "--untracked-files=no", folder=folder):
        return revision + "+changes"
    return revision


def cpu_model() -> str:
    """Name of the processor as the system gives it."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def _memory_gib() -> float:
    return round(psutil.virtual_memory().total / 2**30, 1)


def _cpuinfo() -> dict[str, str]:
    """What the system says of its first processor; empty where it is not Linux."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    return fields


def _git(*arguments: str, folder: Path) -> str | None:
    try:
        found = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
