"""Long work that survives a kill: vectors kept in checksummed shards until the table is complete.

A work folder holds `shard-00001.npy`, its record `shard-00001.json`, and so on. A shard counts only once its
record, written last, is there and agrees with it; anything else is computed again.

Shapes: C vectors in a shard, N vectors in all, D embedding width.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from features.artifacts import atomic_write_json, file_lock, replaced_file, sha256_of

LOCK, JOINED = "lock", "vectors.npy"
#: How often a part looks whether the whole is open, and between two looks.
_LOOKS, _LOOK_EVERY_S = 50, 0.1


class WorkFolderBusyError(ValueError):
    """Another process is computing the same table."""


@dataclass(frozen=True, eq=False)
class Shard:
    """Finished vectors and what was noted about them (anything that JSON can hold)."""

    vectors_CD: npt.NDArray[np.floating]
    notes: dict[str, Any]


@dataclass(frozen=True)
class WorkFolder:
    """The shards of one table that is being computed; numbers start at 1."""

    folder: Path

    def read(self, number: int, *, key: str) -> Shard | None:
        """A finished shard, memory-mapped; None if it is absent, damaged or was made from other inputs.

        `key` stands for everything that the vectors depend on, and must equal the one it was written with.
        """
        path = self._path(number)
        try:
            record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            if record["key"] != key or record["sha256"] != sha256_of(path):
                return None
            return Shard(np.load(path, mmap_mode="r", allow_pickle=False), record["notes"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, number: int, shard: Shard, *, key: str) -> None:
        """Keep a finished shard."""
        path = self._path(number)
        path.with_suffix(".json").unlink(missing_ok=True)  # or it would vouch for vectors half replaced
        with replaced_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, shard.vectors_CD)
        record = {"key": key, "sha256": sha256_of(path), "notes": shard.notes}
        atomic_write_json(path.with_suffix(".json"), record)

    def join(self, count: int, *, dtype: npt.DTypeLike, dim: int) -> npt.NDArray[np.floating]:
        """The vectors of shards 1 to `count` one after the other, memory-mapped, (N, D).

        Copied as bytes shard by shard: memory does not grow with their number.

        Raises:
            FileNotFoundError: a shard is absent.
        """
        paths = [self._path(number) for number in range(1, count + 1)]
        rows = sum(np.load(path, mmap_mode="r", allow_pickle=False).shape[0] for path in paths)
        joined = self.folder / JOINED
        with joined.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, {**header, "shape": (rows, dim)})
            for path in paths:
                np.load(path, allow_pickle=False).tofile(file)
        return np.load(joined, mmap_mode="r", allow_pickle=False)

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.npy"


@contextmanager
def work_folder(folder: Path) -> Iterator[WorkFolder]:
    """Open or go on with a work folder; it is removed when the block ends well and stays after an error.

    Raises:
        WorkFolderBusyError: another living process has it, or a part of it, open.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        held.enter_context(file_lock(folder / LOCK, busy=_busy(folder)))
        for lock in sorted(folder.glob(f"{LOCK}-*")):
            held.enter_context(file_lock(lock, busy=_busy(folder)))
        yield WorkFolder(folder)
        shutil.rmtree(folder)


@contextmanager
def part_of_work_folder(
    folder: Path, *, number: int, count: int, sleep: Callable[[float], None] = time.sleep
) -> Iterator[WorkFolder]:
    """Open a work folder for the shards of one part, beside other parts; it stays.

    Raises:
        WorkFolderBusyError: another living process has this part or the whole open.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / f"{LOCK}-{number}-of-{count}", busy=_busy(folder)):
        # Who has the whole open keeps its lock; another part that looks, too, only holds it for a moment.
        for look in range(_LOOKS):
            try:
                with file_lock(folder / LOCK, busy=_busy(folder)):
                    break
            except WorkFolderBusyError:
                if look == _LOOKS - 1:
                    raise
                sleep(_LOOK_EVERY_S)
        yield WorkFolder(folder)


def _busy(folder: Path) -> WorkFolderBusyError:
    return WorkFolderBusyError(
        f"{folder} is in use by another process that writes the same output; wait until it ends, or choose "
        "another output"
    )
