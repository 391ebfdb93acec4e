"""Processor time, wall time and peak memory of a command, its children included."""

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import psutil

REPOSITORY = Path(__file__).parents[2]
#: A look goes through all processes of the machine, so a long run is looked at less often.
_SAMPLE_S = (0.05, 1.0)
_LOOKS = 200
#: One thread in every numerical library, so that processor seconds compare.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class BenchmarkError(ValueError):
    """A measured command failed; the message ends with its last line of error output."""


@dataclass(frozen=True)
class Measurement:
    """What one command cost.

    `peak_mib` is the largest sum of resident memory over the process tree, `scratch_mib` how much more the
    watched folder held in between than at the end.
    """

    cpu_s: float
    wall_s: float
    peak_mib: float
    output: str
    scratch_mib: float = 0.0


def measure_module(
    module: str,
    *arguments: object,
    python: Path | None = None,
    imports: Sequence[Path] = (),
    watched: Path | None = None,
) -> Measurement:
    """Run `python -m module arguments` on one thread and measure it; with our own interpreter if None.

    It also finds what lies in the folders `imports`.

    Processor seconds are user + system of the process and all its finished children. The peak is sampled: the
    sum of resident memory over the process tree, or one process's own high-water mark where that is larger.
    (The `ru_maxrss` that `wait4` reports would include the memory of *this* process at the fork.)

    Raises:
        BenchmarkError: the command exits with an error.
    """
    with TemporaryFile("w+") as output, TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            [str(python or sys.executable), "-m", module, *map(str, arguments)],
            stdout=output,
            stderr=errors,
            cwd=REPOSITORY,
            env={**os.environ, **_ONE_THREAD, **_import_path(imports)},
        )
        try:
            usage, peak_bytes, most_on_disk = _follow(process, watched)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall_s = time.perf_counter() - started
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            lines = errors.read().strip().splitlines() or ["nothing"]
            raise BenchmarkError(f"{module} ended with exit code {process.returncode}; it said: {lines[-1]}")
        return Measurement(
            cpu_s=usage.ru_utime + usage.ru_stime,
            wall_s=wall_s,
            peak_mib=peak_bytes / 2**20,
            output=output.read(),
            scratch_mib=(most_on_disk - bytes_in(watched)) / 2**20 if watched else 0.0,
        )


def _import_path(folders: Sequence[Path]) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(map(str, folders))} if folders else {}


def last_json(measurement: Measurement) -> Any:
    """The JSON that a runner printed as the last line of its output."""
    lines = measurement.output.strip().splitlines()
    return json.loads(lines[-1]) if lines else None


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range of a figure over its rounds."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def bytes_in(folder: Path) -> int:
    """What all files of a folder hold together, as far as they stay while they are counted."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _follow(
    process: subprocess.Popen[bytes], watched: Path | None
) -> tuple[resource.struct_rusage, int, int]:
    """Wait for the end of the process; its usage, peak memory and peak of the watched folder in bytes."""
    peak_bytes = most_on_disk = 0
    root = psutil.Process(process.pid)
    started = time.perf_counter()
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            if watched is not None:
                most_on_disk = max(most_on_disk, bytes_in(watched))
            return usage, peak_bytes, most_on_disk
        peak_bytes = max(peak_bytes, _tree_bytes(root), _high_water_bytes(process.pid))
        if watched is not None:
            most_on_disk = max(most_on_disk, bytes_in(watched))
        shortest, longest = _SAMPLE_S
        time.sleep(min(max((time.perf_counter() - started) / _LOOKS, shortest), longest))


def _tree_bytes(root: psutil.Process) -> int:
    total = 0
    with contextlib.suppress(psutil.Error):
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it ended between the listing and the look
                total += process.memory_info().rss
    return total


def _high_water_bytes(pid: int) -> int:
    """The kernel's peak of one process, which no sampling can miss; 0 where there is no /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
