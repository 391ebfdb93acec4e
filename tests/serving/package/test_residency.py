"""Tables stay in memory if they are to, and a server says what it may not do."""

import ctypes
import errno
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.package import residency
from serving.package.residency import ServingSettings, hold, mappings_of
from serving.package.sealed_folder import PackageError
from serving.package.tables import open_table, write_table

PAGE = resource.getpagesize()
NEEDS_SMAPS = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")


def written(folder: Path, pages: int = 50) -> Path:
    folder.mkdir(exist_ok=True)
    write_table(folder / "t.npy", np.ones((pages * PAGE // 1024, 256)), dtype="float32")
    return folder


@NEEDS_SMAPS
def test_a_mapped_table_is_found_and_nothing_of_it_is_resident_until_it_is_held(tmp_path: Path) -> None:
    written(tmp_path / "package")
    written(tmp_path / "package_b")
    tables = [open_table(folder / "t.npy") for folder in sorted(tmp_path.iterdir())]
    (found,) = mappings_of(tmp_path / "package")
    assert found.path == str(tmp_path / "package" / "t.npy")
    assert found.size == 50 * PAGE
    assert found.resident < found.size
    assert hold(tmp_path / "package", "mapped") == []
    (held,) = hold(tmp_path / "package", "resident")
    assert held.resident == held.size
    assert mappings_of(tmp_path / "package_b")[0].resident < held.size
    del tables


@NEEDS_SMAPS
def test_an_older_kernel_is_served_by_reading_every_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = open_table(written(tmp_path / "package") / "t.npy")
    monkeypatch.setattr(residency, "_POPULATE_READ", 9999)
    (held,) = hold(tmp_path / "package", "resident")
    assert held.resident == held.size
    del table


@NEEDS_SMAPS
def test_a_link_to_the_package_is_the_package(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(written(tmp_path / "package"))
    table = open_table(tmp_path / "link" / "t.npy")
    assert [one.size for one in mappings_of(tmp_path / "link")] == [50 * PAGE]
    del table


@NEEDS_SMAPS
def test_a_locked_table_is_neither_copied_nor_taken_away(tmp_path: Path) -> None:
    """A private mapping that is locked the usual way is written to, page by page: a copy in every worker."""
    table = open_table(written(tmp_path / "package") / "t.npy")
    try:
        (held,) = hold(tmp_path / "package", "locked")
    except PackageError as error:
        pytest.skip(f"this process may not lock 200 KiB: {error}")
    assert held.locked == held.resident == held.size
    text = Path("/proc/self/smaps").read_text(encoding="utf-8")
    of_it = text[text.index(held.path) :].split("VmFlags")[0]
    assert [line.split()[1] for line in of_it.splitlines() if line.startswith("Anonymous:")] == ["0"]
    del table


class Libc:
    """One that locks what it is told to, or refuses."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.locked: list[int] = []

    def madvise(self, *_: Any) -> int:
        return 0

    def mlock2(self, _first: Any, size: Any, _flags: int) -> int:
        if self.code:
            ctypes.set_errno(self.code)
            return -1
        self.locked.append(size.value)
        return 0


@NEEDS_SMAPS
def test_a_table_that_may_be_locked_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = open_table(written(tmp_path / "package") / "t.npy")
    libc = Libc(0)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: libc)
    hold(tmp_path / "package", "locked")
    assert libc.locked == [50 * PAGE]
    del table


@NEEDS_SMAPS
def test_a_limit_of_locked_memory_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = open_table(written(tmp_path / "package", pages=5120) / "t.npy")
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc(errno.ENOMEM))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8 << 20, 8 << 20))
    with pytest.raises(
        PackageError, match=r"needs 20 MiB of locked memory.* may lock 8 MiB .*ulimit -l.*serving\.toml"
    ):
        hold(tmp_path / "package", "locked")
    del table


def test_where_the_system_does_not_say_what_is_mapped_nothing_can_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency, "_SMAPS", tmp_path / "none")
    assert hold(tmp_path, "resident") == []
    with pytest.raises(PackageError, match=r'needs Linux, .* use "resident"'):
        hold(tmp_path, "locked")


def test_settings_come_back_as_they_were_written_and_older_packages_have_the_defaults(tmp_path: Path) -> None:
    assert ServingSettings.of(tmp_path) == ServingSettings(tables="resident")
    ServingSettings(tables="locked").write(tmp_path)
    assert ServingSettings.of(tmp_path).tables == "locked"
    (tmp_path / "serving.toml").write_text('tables = "pinned"', encoding="utf-8")
    with pytest.raises(PackageError, match=r"serving\.toml: tables: .*\(got 'pinned'\)"):
        ServingSettings.of(tmp_path)


def test_a_file_that_was_cut_off_beneath_its_mapping_is_named(tmp_path: Path) -> None:
    if not Path("/proc/self/smaps").exists():
        pytest.skip("needs Linux")
    table = open_table(written(tmp_path / "package") / "t.npy")
    os.truncate(tmp_path / "package" / "t.npy", PAGE)
    with pytest.raises(PackageError, match=r"t\.npy cannot be read into memory"):
        hold(tmp_path / "package", "resident")
    del table
