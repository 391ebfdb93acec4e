"""What of this machine a process may use: cores and memory, as a container limits them.

Limits are those of the process's control groups, its own and those around it, of versions 2 and 1
(https://docs.kernel.org/admin-guide/cgroup-v2.html).
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
#: Version 1 writes a limit that no machine has where there is none.
_NO_LIMIT = 2**60


def usable_cores() -> int:
    """Cores that this process may use: those it may run on, or fewer if a container has a smaller quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, quota))


def usable_memory_bytes() -> int:
    """Memory that processes here may have together: the machine's, or less if a container is limited."""
    total = int(psutil.virtual_memory().total)
    limit = memory_limit()
    return total if limit is None else min(total, limit)


def cpu_quota(*, cgroups: Path = _CGROUPS, own_groups: Path = _OWN_GROUPS) -> int | None:
    """Whole cores of the smallest quota of the control groups; None where there is none.

    "200000 100000" is 2, and half a core is 0.
    """
    quotas = []
    for group in _groups("cpu", cgroups, own_groups):
        quota, period = [*_read(group / "cpu.max").split(), "", ""][:2]
        if not quota:
            quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():  # neither "max" nor -1
            quotas.append(int(quota) // int(period))
    return min(quotas, default=None)


def memory_limit(*, cgroups: Path = _CGROUPS, own_groups: Path = _OWN_GROUPS) -> int | None:
    """Bytes of the smallest memory limit of the control groups; None where there is none."""
    limits = []
    for group in _groups("memory", cgroups, own_groups):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _read(group / name)
            if limit.isdecimal() and int(limit) < _NO_LIMIT:
                limits.append(int(limit))
    return min(limits, default=None)


def _groups(controller: str, cgroups: Path, own_groups: Path) -> Iterator[Path]:
    """The folders of the control groups that bind this process; some may not exist."""
    yield cgroups
    yield cgroups / controller
    for line in _read(own_groups).splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for root in (cgroups / controllers, cgroups / controller) if controllers else (cgroups,):
            for folder in (PurePosixPath(group), *PurePosixPath(group).parents):
                if ".." not in folder.parts:  # of a group outside what is mounted here
                    yield root / folder.relative_to("/")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
