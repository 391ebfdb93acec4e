"""Keeps in memory what a process has mapped of a package, so that no request waits for a disk.

Opening a table reads nothing: its pages come when they are touched, and go when memory is short. Here they
are found in the kernel's list of this process's mappings, whoever made them: tables, snapshot, id maps,
program.

Pages are read, never written: `mlock`, or MAP_POPULATE, would copy a mapping that is private to the process
as these are, once for every worker. So they are populated for reading, then locked as they lie.
"""

import ctypes
import errno
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from features.artifacts import StrictModel, atomic_write_bytes
from serving.package.sealed_folder import PackageError
from serving.package.toml_settings import read_settings

SETTINGS = "serving.toml"
#: What becomes of the pages: as requests touch them; read when the package opens; kept there, too.
Tables = Literal["mapped", "resident", "locked"]

_SMAPS = Path("/proc/self/smaps")
#: Of madvise, since Linux 5.14; Python 3.11 does not name it.
_POPULATE_READ = 22
#: Of mlock2: lock what is there, and fault in nothing.
_ONFAULT = 1
_KIB = 1024


class ServingSettings(StrictModel):
    """How a package is served, in PACKAGE/serving.toml."""

    tables: Tables = "resident"

    @classmethod
    def of(cls, package: Path) -> "ServingSettings":
        """Those of the package; the defaults where it has no such file.

        Raises:
            PackageError: the file cannot be used; says which key.
        """
        return read_settings(package / SETTINGS, cls)

    def write(self, package: Path) -> None:
        """Write PACKAGE/serving.toml, for people to change."""
        head = "# docs/serving.md says what each means: mapped, resident or locked."
        atomic_write_bytes(package / SETTINGS, f'{head}\ntables = "{self.tables}"\n'.encode())


@dataclass(frozen=True)
class Mapping:
    """A file of a package in this process's memory.

    Attributes:
        first, size: address and length in bytes.
        resident: bytes that need no fault.
        locked: bytes that the kernel may not take away.
    """

    path: str
    first: int
    size: int
    resident: int
    locked: int


def mappings_of(folder: Path) -> list[Mapping]:
    """Files in `folder` that this process has mapped; none where the system does not say."""
    try:
        lines = _SMAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    root = os.path.realpath(folder) + os.sep
    return [one for one in _parsed(lines) if one.path.startswith(root)]


def hold(folder: Path, tables: Tables) -> list[Mapping]:
    """Make pages of a folder's mapped files resident, and lock them if that is asked for.

    Returns:
        What is mapped now; nothing if it may come and go.

    Raises:
        PackageError: the system does not let this process lock so much, or a file cannot be read.
    """
    if tables == "mapped":
        return []
    found = mappings_of(folder)
    if tables == "locked" and not found:
        raise PackageError(
            f'{folder}: tables = "locked" needs Linux, whose /proc says what is mapped; use "resident"'
        )
    libc = ctypes.CDLL(None, use_errno=True)
    for one in found:
        _populate(libc, one)
        if tables == "locked" and _lock(libc, one):
            raise _not_locked(folder, sum(each.size for each in found), ctypes.get_errno())
    return mappings_of(folder)


def _populate(libc: ctypes.CDLL, one: Mapping) -> None:
    if not libc.madvise(ctypes.c_void_p(one.first), ctypes.c_size_t(one.size), _POPULATE_READ):
        return
    if (code := ctypes.get_errno()) != errno.EINVAL:
        raise PackageError(f"{one.path} cannot be read into memory: {os.strerror(code)}")
    pages = (ctypes.c_char * one.size).from_address(one.first)  # a kernel before 5.14
    sum(pages[at][0] for at in range(0, one.size, resource.getpagesize()))


def _lock(libc: ctypes.CDLL, one: Mapping) -> bool:
    """Whether that failed."""
    return bool(libc.mlock2(ctypes.c_void_p(one.first), ctypes.c_size_t(one.size), _ONFAULT))


def _not_locked(folder: Path, size: int, code: int) -> PackageError:
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    allowed = "any amount" if limit == resource.RLIM_INFINITY else f"{limit / 2**20:,.0f} MiB"
    return PackageError(
        f'{folder}: tables = "locked" needs {size / 2**20:,.0f} MiB of locked memory, and twice that during '
        f"a refresh; this process may lock {allowed} ({os.strerror(code)}). Raise the limit (ulimit -l; "
        'LimitMEMLOCK= of a unit; --ulimit memlock=-1 of a container), or use tables = "resident" in '
        f"{folder / SETTINGS}"
    )


def _parsed(lines: list[str]) -> Iterator[Mapping]:
    """Mappings of files in the text of /proc/self/smaps."""
    about: tuple[str, int, int] | None = None
    kib: dict[str, int] = {}
    for line in (*lines, "0-0 ---p 0 0:0 0"):
        name, _, rest = line.partition(" ")
        if name.endswith(":"):
            if name in ("Rss:", "Locked:"):
                kib[name] = int(rest.split()[0])
            continue
        if about is not None:
            yield Mapping(*about, kib.get("Rss:", 0) * _KIB, kib.get("Locked:", 0) * _KIB)
        permissions, _, _, _, *path = rest.split(maxsplit=4)
        first, end = (int(one, 16) for one in name.split("-"))
        about = (path[0], first, end - first) if path and permissions.startswith("r") else None
        kib = {}
