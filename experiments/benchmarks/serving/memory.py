"""What one more worker costs in memory, and how long a worker takes to start.

PSS (proportional set size) counts a page that k processes share as 1/k of a page in each: sums over processes
are bytes that the machine really spends.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from experiments.benchmarks.measure import REPOSITORY

_RUNNER = "experiments.benchmarks.serving.worker_runner"


def pss_mib(pid: int) -> float:
    """PSS of a process in MiB."""
    return float(psutil.Process(pid).memory_full_info().pss / 2**20)


def measure_extra_worker(package: Path, small: Path, *, requests: Path) -> dict[str, Any]:
    """PSS in MiB of all workers, with one and with two of them; of the package, and of one of small tables.

    Every worker reads every page of every table and scores the requests, the most that it can ever map.
    `small` is the same model with tables of a few rows.
    """
    sums: dict[str, list[float]] = {}
    for mode, served in (("tables", package), ("none", small)):
        with _worker(served, requests) as first:
            alone = pss_mib(first)
            with _worker(served, requests) as second:
                sums[mode] = [alone, pss_mib(first) + pss_mib(second)]
    extra = {mode: two - one for mode, (one, two) in sums.items()}
    return {
        "pss_mib": sums,
        "extra_mib": extra["tables"],
        "extra_mib_without_tables": extra["none"],
        "extra_mib_of_tables": extra["tables"] - extra["none"],
    }


def measure_start(package: Path, *, requests: Path, repeats: int) -> dict[str, Any]:
    """Seconds of a fresh process: importing, opening and verifying, the first score; warm, and cold.

    Cold drops the package's files from the page cache first (those of Python and torch stay); None where the
    system cannot.
    """
    found: dict[str, Any] = {}
    for name, is_cold in (("warm", False), ("cold", True)):
        runs = []
        for _ in range(repeats + (not is_cold)):
            if is_cold and not drop_from_cache(package):
                break
            began = time.perf_counter()
            output = subprocess.run(
                _command(package, "start", requests),
                stdout=subprocess.PIPE,
                check=True,
                cwd=REPOSITORY,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            ).stdout
            runs.append({**json.loads(output.splitlines()[-1]), "process_s": time.perf_counter() - began})
        runs = runs if is_cold else runs[1:]  # the first reads what is not in the cache yet
        found[name] = (
            {key: sorted(run[key] for run in runs)[len(runs) // 2] for key in runs[0]} if runs else None
        )
    return found


#: How a worker's tables lie: (`Tables`, whether the page cache forgets the files once it is open).
TABLES: dict[str, tuple[str, bool]] = {
    "mapped, cache cold": ("mapped", True),
    "mapped, cache warm": ("mapped", False),
    "resident, cache cold": ("resident", True),
    "resident, cache warm": ("resident", False),
    "locked": ("locked", True),
}


def measure_tables(package: Path, *, requests: Path) -> dict[str, Any]:
    """The first requests of a fresh worker, and what the kernel did to them, by how its tables lie.

    What is mapped by no process is dropped from the page cache: what memory pressure does over hours. None
    where a worker could not do so; its standard error says why.
    """
    found: dict[str, Any] = {}
    for name, (tables, is_cold) in TABLES.items():
        mode = f"tables:{tables}:{'cold' if is_cold else 'warm'}"
        process = subprocess.run(
            _command(package, mode, requests),
            stdout=subprocess.PIPE,
            check=False,
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        found[name] = json.loads(process.stdout.splitlines()[-1]) if process.returncode == 0 else None
    return found


@contextmanager
def _worker(package: Path, requests: Path) -> Iterator[int]:
    """A process that has the package open and waits; yields its id."""
    process = subprocess.Popen(
        _command(package, "wait", requests),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != b"ready":
            raise ValueError(f"a worker of {package} ended before it was ready; its output is above")
        yield process.pid
    finally:
        process.communicate()


def _command(package: Path, mode: str, requests: Path) -> Sequence[str]:
    return [sys.executable, "-m", _RUNNER, str(package.resolve()), mode, str(requests.resolve())]


def drop_from_cache(package: Path) -> bool:
    """Ask the kernel to forget a folder's files; whether there is a way to ask."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in package.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True
