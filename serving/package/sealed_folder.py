"""Folders that are loaded only as they were written: every file is listed with its size and checksum.

A manifest carries a checksum of itself, so that no file can change or be cut off unseen. That guards against
accidents and mix-ups, not against someone who may write the manifest as well: a signature does.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from features.artifacts import (
    MANIFEST,
    ManifestT,
    StrictModel,
    atomic_write_json,
    checked_manifest,
    sha256_of,
    verify_checksums,
)
from features.progress import Progress, silent

SEAL = "seal"
_FINGERPRINT = 12
#: Beside a manifest, if it is signed (`serving/package/signature.py`).
SIGNATURE = f"{MANIFEST}.sig"


class PackageError(ValueError):
    """A package, or a generation of it, that must not be served; names the file and says what to do."""


class FileRecord(StrictModel):
    """One file as it was written."""

    sha256: str
    size: int


def record_files(folder: Path, parts: Iterable[str]) -> dict[str, FileRecord]:
    """Every file in these files and subfolders by its path relative to `folder`; absent parts are skipped."""
    records: dict[str, FileRecord] = {}
    for part in parts:
        path = folder / part
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in found:
            if file.is_file():
                name = file.relative_to(folder).as_posix()
                records[name] = FileRecord(sha256=sha256_of(file), size=file.stat().st_size)
    return records


def check_files(
    folder: Path,
    records: dict[str, FileRecord],
    *,
    verify: bool,
    advice: str,
    parts: Iterable[str] | None = None,
    progress: Progress = silent,
) -> None:
    """Compare files with what was written: names and sizes always, contents with `verify`.

    Args:
        parts: files and subfolders in which nothing else may lie; by default all but the manifest.

    Raises:
        PackageError: a file is missing, has another size or content, was added or is a link to another place;
            names it, and ends with `advice`.
    """
    _refuse_others(folder, records, parts, advice)
    total, done = sum(record.size for record in records.values()), 0
    for name, record in records.items():
        path = folder / name
        if path.is_file() and (size := path.stat().st_size) != record.size:
            raise PackageError(f"{path} has {size:,} bytes, but {record.size:,} were written; {advice}")
        verify_checksums(folder, {name: record.sha256}, error=PackageError, advice=advice, contents=verify)
        done += record.size
        progress("verifying files", done, total)


def _refuse_others(
    folder: Path, records: dict[str, FileRecord], parts: Iterable[str] | None, advice: str
) -> None:
    """What is not listed might be loaded by a library that looks for it; a link may change without notice."""
    tops = [path for path in folder.glob("*") if path.name not in (MANIFEST, SIGNATURE)]
    if parts is not None:
        tops = [folder / part for part in parts]
    for top in sorted(tops):
        for path in (top, *sorted(top.rglob("*"))):
            if path.is_symlink():
                raise PackageError(f"{path} is a link, and a package holds its files itself; {advice}")
            if path.exists() and not path.is_dir() and path.relative_to(folder).as_posix() not in records:
                raise PackageError(f"{path} was added: the manifest does not list it; {advice}")


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write `folder`/manifest.json with a seal: the checksum of everything else in it."""
    atomic_write_json(folder / MANIFEST, {**content, SEAL: _seal_of(content)})


def fingerprint_of(folder: Path) -> str:
    """Twelve characters of the seal: equal where two folders were written with the same files."""
    return str(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))[SEAL])[:_FINGERPRINT]


def read_manifest(folder: Path, *, what: str, advice: str) -> dict[str, Any]:
    """The content of `folder`/manifest.json without its seal.

    Args:
        what: what the folder should be, for the error: "a package".

    Raises:
        PackageError: there is none, it is cut off, or it is not what was written.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except FileNotFoundError:
        raise PackageError(f"{folder} is not {what}: it has no {MANIFEST}; {advice}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PackageError(f"{path} was cut off or changed: {error}; {advice}") from None
    if not isinstance(content, dict) or SEAL not in content:
        raise PackageError(f"{path} is not the manifest of {what}; {advice}")
    seal = content.pop(SEAL)
    if seal != _seal_of(content) or not text.endswith("}\n"):
        raise PackageError(f"{path} has changed since it was written (its seal differs); {advice}")
    return content


def read_sealed(folder: Path, model: type[ManifestT], *, what: str, advice: str) -> ManifestT:
    """`read_manifest` as `model`."""
    content = read_manifest(folder, what=what, advice=advice)
    path = folder / MANIFEST
    return checked_manifest(path, content, model, what=what, error=PackageError, advice=advice)


def _seal_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
