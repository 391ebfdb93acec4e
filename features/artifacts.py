"""Artifacts: files and folders that are whole or absent, checksums of what they hold, and locks.

What is written stands under a temporary name beside its place until it is complete, then it is fsynced and
renamed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args
from uuid import uuid4

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

#: What says of a folder which artifact it is; it carries the number of its format.
MANIFEST = "manifest.json"
ManifestT = TypeVar("ManifestT", bound=BaseModel)

_HASH_BLOCK_BYTES = 1 << 20


class BusyError(ValueError):
    """Another process is at work where this one wanted to write; nothing was written."""


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`; a reader sees the old file or the new one, never a part.

    Missing parent folders are created. An error (full disk, no permission) leaves the old file as it was.
    """
    with replaced_file(path) as temporary:
        temporary.write_bytes(content)


def atomic_write_json(path: Path, content: Any) -> None:
    """`atomic_write_bytes` of indented JSON.

    Raises:
        ValueError: `content` holds a NaN or an infinity, which JSON has no word for.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write_bytes(path, (text + "\n").encode())


class StrictModel(BaseModel):
    """What configs and manifests are: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ResultFile(BaseModel):
    """A frozen result that is a JSON file: its fields in their order. Reading ignores unknown keys."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    def write(self, path: Path) -> None:
        """Replace `path` by this result."""
        atomic_write_json(path, self.model_dump(mode="json", by_alias=True))


@contextmanager
def atomic_folder(path: Path, *, ours: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path` when the block ends without an error.

    An existing `path` is replaced only then; it stays as it was if the block raises, and the temporary
    folder is removed. After a kill or a power cut a hidden folder `.<name>.<random>.writing` may remain. It
    is safe to delete if `path` exists; if not, the kill came while an older `path` stood aside under such a
    name.

    Args:
        ours: whether an existing folder is of the kind that may be replaced; any is if None.

    Raises:
        FileExistsError: `path` is a file, or a folder with something in it that `ours` does not recognise.
    """
    refuse_foreign_folder(path, ours=ours or (lambda _: True))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                _give_readers(Path(folder) / name, of=temporary)
                _fsync_file(Path(folder) / name)
            _fsync_folder(Path(folder))
        _replace_folder(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _fsync_folder(path.parent)


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file written there takes its place if the block ends well.

    After an error `path` is as it was and the temporary file gone. Missing parent folders are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        yield temporary
        _fsync_file(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync_folder(path.parent)


def refuse_foreign_folder(path: Path, *, ours: Callable[[Path], bool]) -> None:
    """Refuse to replace what a command of another kind, or a person, put at `path`. An empty folder is free.

    Raises:
        FileExistsError: `path` is a file, or is not empty and `ours` does not recognise it.
    """
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file; choose another folder or delete it")
    if not path.is_dir():
        return
    names = sorted(child.name for child in path.iterdir())
    if names and not ours(path):
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        raise FileExistsError(
            f"{path} holds something of another kind ({shown}), which is left as it is; "
            "choose another folder or delete this one"
        )


def remove_folder(path: Path) -> None:
    """Delete a folder; a kill in between leaves no half of it under its name."""
    doomed = _beside(path)
    path.rename(doomed)
    shutil.rmtree(doomed)


def refuse_to_replace_input(out: Path, source: Path) -> None:
    """Refuse an output folder whose replacement would take the input with it.

    Raises:
        ValueError: `out` is `source` or one of the folders around it.
    """
    if out.resolve() in (source.resolve(), *source.resolve().parents):
        raise ValueError(f"{out} would replace the input {source}; choose another folder")


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system has them, else a copy: the folder of `target` stands on its own."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)


#: What tells one state of a file from the next.
FileStamp = tuple[int, int, int]


def file_stamp(path: Path) -> FileStamp | None:
    """Changes whenever the file is replaced, at the cost of one stat; None while it is away."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def json_file_has(path: Path, key: str) -> bool:
    """Whether `path` is a JSON object with this key: how a folder's manifest tells what wrote the folder."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and key in content


def read_manifest(
    folder: Path, model: type[ManifestT], *, what: str, error: Callable[[str], Exception], advice: str
) -> ManifestT:
    """The manifest of a folder.

    Args:
        what: what the folder should be: "an encoder".
        error: makes the exception of a sentence that names what is wrong and ends with `advice`.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{folder} is not {what}: it has no {MANIFEST}; {advice}") from None
    except ValueError as problem:
        why = f"it is not the manifest of {what}"
        raise error(f"{path} cannot be read: {why} ({problem}); {advice}") from None
    return checked_manifest(path, content, model, what=what, error=error, advice=advice)


def checked_manifest(
    path: Path,
    content: Any,
    model: type[ManifestT],
    *,
    what: str,
    error: Callable[[str], Exception],
    advice: str,
) -> ManifestT:
    """The content of a manifest; its `format` must be one that `model` reads. See `read_manifest`."""
    found = content.get("format") if isinstance(content, dict) else None
    known = get_args(model.model_fields["format"].annotation)
    if found not in known:
        why = f"it has format {found!r}, this version reads {' and '.join(map(str, known))}"
        raise error(f"{path} is not the manifest of {what} as it should be: {why}; {advice}")
    try:
        return model.model_validate(content)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        key = ".".join(map(str, first["loc"]))
        why = f"{key!r}: {first['msg']} (got {first['input']!r})"
        raise error(f"{path} cannot be read: {why}; {advice}") from None


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes, read in blocks. An empty file gives e3b0c44298fc1c14..."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def checksums_of(folder: Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """SHA-256 of `names` in a folder, or of all its files in the order of their relative paths."""
    if names is None:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in paths]
    return {name: sha256_of(folder / name) for name in names}


def verify_checksums(
    folder: Path,
    checksums: Mapping[str, str | None],
    *,
    error: Callable[[str], Exception],
    advice: str,
    contents: bool = True,
) -> None:
    """Compare the files of a folder with what `checksums_of` gave when they were written.

    Args:
        error: makes the exception of a sentence that names the file and ends with `advice`.
        contents: False only looks whether the files are there, which reads none of them.
    """
    for name, expected in checksums.items():
        path = folder / name
        if not path.is_file():
            raise error(f"{path} is missing; {advice}")
        if contents and sha256_of(path) != expected:
            raise error(f"{path} has changed since it was written (its checksum differs); {advice}")


@contextmanager
def file_lock(path: Path, *, busy: Exception) -> Iterator[None]:
    """Hold the lock file `path`; the lock goes when the process does, however it ends. The file stays.

    Raises:
        Exception: `busy`, at once, when another process or another block of this one holds the lock.
    """
    try:
        held = FileLock(path, blocking=False).acquire()
    except Timeout:
        raise busy from None
    with held:
        yield


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder of runs. The lock lies beside it: a folder of another kind is left as it is.

    Raises:
        BusyError: another process holds it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    busy = BusyError(f"another process is at work in {folder}; wait for it, or stop it")
    with file_lock(folder.parent / f".{folder.name}.lock", busy=busy):
        yield


def _beside(path: Path) -> Path:
    """A free hidden name in the same folder, hence on the same file system: a rename there is atomic."""
    return path.with_name(f".{path.name}.{uuid4().hex[:12]}.writing")


def _give_readers(path: Path, *, of: Path) -> None:
    """Let whoever may read the folder read the file, which a library may have made private (safetensors)."""
    mode = path.stat().st_mode
    wanted = mode | of.stat().st_mode & 0o444
    if wanted != mode and not path.is_symlink():
        path.chmod(wanted)


def _replace_folder(new: Path, path: Path) -> None:
    """Rename `new` to `path`. A folder cannot be renamed onto a full one, so an old one steps aside first."""
    if not path.exists():
        new.rename(path)
        return
    old = _beside(path)
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old)


def _fsync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _fsync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def differences(found: Any, given: Any, *, most: int = 3) -> str:
    """Which values of two JSON documents differ, by their path: what a person has to set back.

    >>> differences({"training": {"batch_size": 256}, "seed": 1}, {"training": {"batch_size": 64}, "seed": 1})
    'training.batch_size was 256, now 64'
    """
    said = list(_differences(found, given, ""))
    more = f"; {len(said) - most} more" if len(said) > most else ""
    return "; ".join(said[:most]) + more


def _differences(found: Any, given: Any, path: str) -> Iterator[str]:
    if isinstance(found, dict) and isinstance(given, dict):
        for key in {**found, **given}:
            yield from _differences(found.get(key), given.get(key), f"{path}.{key}" if path else str(key))
    elif found != given:
        yield f"{path} was {_shortened(found)}, now {_shortened(given)}"


def _shortened(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
