"""Folders and files that appear whole or not at all: written under a temporary name, fsynced, renamed.

`features` has its own primitives of the same kind; the two packages never import each other.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target` that takes its place when the block ends without an error.

    Whatever stood at `target` stays untouched until then, and comes back if the exchange itself fails. After
    an error the temporary folder is gone. After a kill hidden folders `.<name>.<random>.tmp` or `.old` may
    remain. They are safe to delete if `target` exists; if not, `.old` holds what stood there before.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes private folders; an artifact is readable like its siblings
        for path in sorted(temporary.rglob("*")):
            if path.is_file() and not path.is_symlink():
                path.chmod(path.stat().st_mode | 0o444)  # and so does safetensors with files
            _fsync(path)
        _fsync(temporary)
        if target.exists():
            replaced = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
            target.rename(replaced / target.name)
            try:
                temporary.rename(target)
            except BaseException:
                (replaced / target.name).rename(target)
                replaced.rmdir()
                raise
            shutil.rmtree(replaced)
        else:
            temporary.rename(target)
        _fsync(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file written there takes its place if the block ends well.

    After an error `path` is as it was and the temporary file gone.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        _fsync(temporary)
        temporary.replace(path)
        _fsync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
