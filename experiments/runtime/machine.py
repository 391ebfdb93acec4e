"""What a number was measured on: enough to judge it, nothing that identifies the machine."""

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

_LIBRARIES = ("torch", "torchrec", "fbgemm-gpu-cpu", "duckdb", "pyarrow", "pandas", "numpy")
_CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def describe_machine(libraries: Sequence[str] = _LIBRARIES) -> dict[str, Any]:
    """Processor, memory, system, versions of `libraries`, commit and date, as JSON."""
    model, flags = _processor()
    return {
        "processor": model,
        "instructions": [feature for feature in _CPU_FEATURES if feature in flags],
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "libraries": {name: found for name in libraries if (found := _version(name))},
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _processor() -> tuple[str, set[str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown", set()
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    family = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else ""
    return fields.get("model name", "unknown") + family, set(fields.get("flags", "").split())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except ModuleNotFoundError:
        return None


def _commit() -> str:
    """The checked-out commit, with a mark if files differ from it."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=10"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()
