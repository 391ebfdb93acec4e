"""What a result depends on besides its config: versions, commit, hardware."""

import os
import platform
import subprocess
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


def environment() -> dict[str, Any]:
    """Versions of what computes, the commit (with `+changes` if files differ from it), and the machine."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "system": platform.system(),
        "cpu": cpu_model(),
        "cores": psutil.cpu_count(logical=True),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def commit() -> str | None:
    """Short commit of this source tree, or None outside a checkout."""
    folder = Path(__file__).parent
    revision = _git("rev-parse", "--short", "HEAD", folder=folder)
    if revision and _git("status", "--porcelain", "--untracked-files=no", folder=folder):
        return revision + "+changes"
    return revision


def cpu_model() -> str:
    """Name of the processor as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may use: those it may run on, or fewer if a container has a smaller quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(cores, cpu_quota(Path("/sys/fs/cgroup/cpu.max")) or cores))


def cpu_quota(cpu_max: Path) -> int | None:
    """Whole cores of a control group's quota ("200000 100000" is 2); None where there is none ("max ...")."""
    if not cpu_max.exists():
        return None
    quota, period = cpu_max.read_text().split()
    return None if quota == "max" else int(quota) // int(period)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*arguments: str, folder: Path) -> str | None:
    try:
        found = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
