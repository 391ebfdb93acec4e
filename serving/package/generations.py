"""Generations of a package: vectors and feature snapshot that are replaced while the model stays.

PACKAGE/generations/000001/ is whole or absent and never changes; PACKAGE/CURRENT names the live one and is
replaced atomically, so a worker sees the old generation or the new one. The older ones stay for a rollback.
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal

from features.artifacts import StrictModel, atomic_folder, atomic_write_bytes, file_lock, remove_folder
from serving.package.sealed_folder import (
    FileRecord,
    PackageError,
    read_sealed,
    record_files,
    write_manifest,
)

GENERATIONS, CURRENT = "generations", "CURRENT"
#: Names the live generation where no other one is to become it.
PINNED = "PINNED"
SNAPSHOT, VECTORS, PARITY_SCORES = "snapshot", "vectors", "parity_scores.npy"
#: Generations kept: the live one and what a rollback, and one more, would go back to.
KEPT = 3
ADVICE = (
    "`dashclip refresh` writes a new generation, `dashclip refresh --rollback` goes back to the one before"
)
_NAME = re.compile(r"\d{6,}")


class VectorRecord(StrictModel):
    """The vectors of one kind in a generation; `missing` of the catalogue's ids have none."""

    encoder_id: str
    dim: int
    dtype: str
    count: int
    created: str
    missing: int


class GateCheck(StrictModel):
    """One comparison of a generation with the one that was live before it."""

    name: str
    before: float
    now: float
    passed: bool
    sentence: str


class GateRecord(StrictModel):
    """Every comparison that a refresh made; `forced` if one failed and was overridden."""

    checks: tuple[GateCheck, ...]
    forced: bool


class GenerationManifest(StrictModel):
    """manifest.json of a generation.

    Attributes:
        based_on: the generation that was live when this one was written: where a rollback goes.
        as_of: the moment of the snapshot, ISO 8601 in UTC.
        counts: users, products, queries of the snapshot.
        gate: how it compared with the generation before; None for the first one, and for those of before
            there was a gate.
    """

    format: Literal[1] = 1
    name: str
    based_on: str | None
    created: datetime
    as_of: str
    schema_fingerprint: str
    counts: Mapping[str, int]
    vectors: Mapping[str, VectorRecord]
    files: Mapping[str, FileRecord]
    gate: GateRecord | None = None

    @classmethod
    def read(cls, folder: Path) -> "GenerationManifest":
        """Read it.

        Raises:
            PackageError: no generation, or its manifest is damaged.
        """
        return read_sealed(folder, cls, what="a generation of a package", advice=ADVICE)


def generation_folder(package: Path, name: str) -> Path:
    """Where a generation lies."""
    return package / GENERATIONS / name


def current_generation(package: Path) -> str:
    """Name of the live generation.

    Raises:
        PackageError: CURRENT is missing, or names a generation that is not there.
    """
    path = package / CURRENT
    try:
        name = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise PackageError(
            f"{path} is missing: {package} is not a package; `dashclip package` makes one"
        ) from None
    except UnicodeDecodeError:
        name = ""
    if not _NAME.fullmatch(name) or not generation_folder(package, name).is_dir():
        raise PackageError(
            f"{path} names generation {name!r}, but there are "
            f"{', '.join(generation_names(package)) or 'none'}; write one of these names into it, or make "
            "the package again"
        )
    return name


def generation_names(package: Path) -> list[str]:
    """Names of the generations there are, oldest first."""
    folder = package / GENERATIONS
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path.name for path in found if _NAME.fullmatch(path.name)), key=int)


def next_name(package: Path) -> str:
    """Name for a generation to be written: one more than the highest, whatever was rolled back."""
    names = generation_names(package)
    return f"{int(names[-1]) + 1 if names else 1:06d}"


def new_generation(package: Path, name: str) -> AbstractContextManager[Path]:
    """A temporary folder that becomes generation `name` once the block ends without an error.

    The block fills it and ends with `seal_generation`. It does not become the live one; `activate` does that.
    """
    return atomic_folder(generation_folder(package, name), ours=lambda _: False)


def seal_generation(folder: Path, about: GenerationManifest) -> GenerationManifest:
    """Write the manifest of a filled folder: `about` with the checksums of all its files."""
    files = record_files(folder, sorted(path.name for path in folder.iterdir()))
    manifest = about.model_copy(update={"files": files})
    write_manifest(folder, manifest.model_dump(mode="json"))
    return manifest


def activate(package: Path, name: str) -> None:
    """Make `name` the live generation: one rename, seen by workers at their next look."""
    if not generation_folder(package, name).is_dir():
        raise PackageError(
            f"{package} has no generation {name}; there are {', '.join(generation_names(package))}"
        )
    atomic_write_bytes(package / CURRENT, f"{name}\n".encode())
    if pinned(package):
        atomic_write_bytes(package / PINNED, f"{name}\n".encode())


def pinned(package: Path) -> bool:
    """Whether a refresh is refused."""
    return (package / PINNED).exists()


def pin(package: Path) -> str:
    """Have the live generation stay, whoever refreshes; returns its name."""
    with locked(package):
        name = current_generation(package)
        atomic_write_bytes(package / PINNED, f"{name}\n".encode())
        return name


def unpin(package: Path) -> None:
    """Let it be refreshed again."""
    with locked(package):
        (package / PINNED).unlink(missing_ok=True)


def refuse_pinned(package: Path) -> None:
    """Raises PackageError if the live generation is to stay."""
    if pinned(package):
        raise PackageError(
            f"generation {current_generation(package)} of {package} is pinned; `dashclip refresh {package} "
            "--unpin` ends that, and --force goes on all the same"
        )


def use(package: Path, name: str) -> tuple[str, str]:
    """Make a generation that is still there the live one, by its name; returns (from, to). A pin stays.

    Raises:
        PackageError: it is not there, or damaged.
    """
    with locked(package):
        left = current_generation(package)
        if name not in generation_names(package):
            raise PackageError(
                f"{package} has no generation {name}; there are {', '.join(generation_names(package))}"
            )
        GenerationManifest.read(generation_folder(package, name))
        activate(package, name)
        return left, name


def rollback(package: Path) -> tuple[str, str]:
    """Go back to the generation that was live before the current one; returns (from, to). A pin stays.

    Raises:
        PackageError: there is none, or it is no longer there.
    """
    with locked(package):
        name = current_generation(package)
        before = GenerationManifest.read(generation_folder(package, name)).based_on
        if before is None:
            raise PackageError(f"generation {name} of {package} is its first; there is none to go back to")
        if not generation_folder(package, before).is_dir():
            raise PackageError(
                f"generation {before}, which was live before {name}, is no longer in {package}, which keeps "
                f"{KEPT}; write a new one with `dashclip refresh`"
            )
        GenerationManifest.read(generation_folder(package, before))
        activate(package, before)
        return name, before


def remove_old(package: Path, *, kept: int = KEPT) -> list[str]:
    """Delete the generations that neither serve nor can be rolled back to; returns their names.

    Kept are the live one and those it goes back to, `kept` in all. Workers that still map a deleted file keep
    it until they let go of it. What a killed refresh left half-written goes, too; call it with the lock held.
    """
    keep: list[str] = []
    name: str | None = current_generation(package)
    while name is not None and len(keep) < kept and generation_folder(package, name).is_dir():
        keep.append(name)
        name = GenerationManifest.read(generation_folder(package, name)).based_on
    removed = [name for name in generation_names(package) if name not in keep]
    for name in removed:
        remove_folder(generation_folder(package, name))
    for path in (package / GENERATIONS).glob(".*.writing"):  # other hidden things are none of ours
        shutil.rmtree(path)
    return removed


@contextmanager
def locked(package: Path) -> Iterator[None]:
    """Keep a second refresh out; the lock goes when the process does, however it ends.

    Raises:
        PackageError: another process holds it.
    """
    if not package.is_dir():
        raise PackageError(f"{package} is not a package; `dashclip package` makes one")
    busy = PackageError(f"another process is refreshing {package}; wait for it, or stop it")
    with file_lock(package / ".lock", busy=busy):
        yield
