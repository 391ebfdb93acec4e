"""What a container lets a process use is read from its control groups, and the smallest limit counts."""

from pathlib import Path

import psutil
import pytest

from features import machine
from features.machine import cpu_quota, memory_limit, usable_cores, usable_memory_bytes

GB = 10**9


def groups(root: Path, files: dict[str, str], own: str) -> dict[str, Path]:
    """Control groups of a machine, and which of them are a process's own."""
    for name, content in files.items():
        path = root / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    (root / "own").write_text(own)
    return {"cgroups": root / "cgroup", "own_groups": root / "own"}


@pytest.mark.parametrize(
    ("content", "cores"), [("max 100000", None), ("200000 100000", 2), ("50000 100000", 0)]
)
def test_the_quota_of_a_container_is_read_in_whole_cores(
    tmp_path: Path, content: str, cores: int | None
) -> None:
    assert cpu_quota(**groups(tmp_path, {"cpu.max": content}, "0::/\n")) == cores


@pytest.mark.parametrize(("content", "limit"), [("max", None), ("3000000000", 3 * GB)])
def test_the_memory_of_a_container_is_read_in_bytes(tmp_path: Path, content: str, limit: int | None) -> None:
    assert memory_limit(**groups(tmp_path, {"memory.max": content}, "0::/\n")) == limit


def test_the_smallest_limit_of_a_group_and_those_around_it_counts(tmp_path: Path) -> None:
    files = {
        "jobs/memory.max": str(2 * GB),
        "jobs/one/memory.max": str(5 * GB),
        "jobs/one/cpu.max": "max 100000",
        "jobs/cpu.max": "400000 100000",
        "other/memory.max": str(GB),
    }
    found = groups(tmp_path, files, "0::/jobs/one\n")
    assert (memory_limit(**found), cpu_quota(**found)) == (2 * GB, 4)


def test_groups_of_version_1_count_and_their_word_for_no_limit_does_not(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/docker/a/memory.limit_in_bytes": str(4 * GB),
        "cpu,cpuacct/docker/a/cpu.cfs_quota_us": "300000",
        "cpu,cpuacct/docker/a/cpu.cfs_period_us": "100000",
        "cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
    }
    found = groups(tmp_path, files, "4:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n0::/\n")
    assert (memory_limit(**found), cpu_quota(**found)) == (4 * GB, 3)


def test_where_the_own_group_is_mounted_as_the_root_its_limits_count(tmp_path: Path) -> None:
    """As in a container that sees its own groups alone, under the paths of the machine."""
    files = {"memory/memory.limit_in_bytes": str(4 * GB), "cpu.max": "100000 100000"}
    found = groups(tmp_path, files, "4:memory:/docker/a\n0::/../../b\n")
    assert (memory_limit(**found), cpu_quota(**found)) == (4 * GB, 1)


def test_a_machine_without_control_groups_has_no_limits(tmp_path: Path) -> None:
    nothing = {"cgroups": tmp_path / "cgroup", "own_groups": tmp_path / "own"}
    assert (cpu_quota(**nothing), memory_limit(**nothing)) == (None, None)


def test_a_container_with_less_than_a_core_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for quota, cores in ((0, 1), (3, 3), (None, 8)):
        monkeypatch.setattr(machine, "cpu_quota", lambda quota=quota: quota)
        monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: range(8), raising=False)
        assert usable_cores() == cores


def test_memory_is_the_machines_or_less_in_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    total = psutil.virtual_memory().total
    for limit, usable in ((None, total), (total + GB, total), (1_000, 1_000)):
        monkeypatch.setattr(machine, "memory_limit", lambda limit=limit: limit)
        assert usable_memory_bytes() == usable
