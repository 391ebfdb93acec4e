"""Embedding tables as files that all workers of a machine map: one copy in memory, none in the process.

A table is one `.npy` file whose rows begin at a page boundary. int8 is row-wise: 8-bit numbers, and beside
them `<name>.scale.npy` with a scale and an offset for each row. Quantise wide tables only: a row of 16
float16 numbers takes 32 bytes, quantised 24, and small tables make nearly all of the error.

Shapes: M rows of the table, B rows looked up, D its width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from features.artifacts import replaced_file

TableDtype = Literal["float16", "float32", "int8"]

_PAGE_BYTES = 4096
_CHUNK_ROWS = 16_384
_LEVELS = 255


class TableError(ValueError):
    """A table that cannot be written or mapped, or a row that it does not have; names the file."""


@dataclass(frozen=True, eq=False)
class ServingTable:
    """A mapped table.

    Attributes:
        values_MD: float16, float32 or uint8, over the pages of the file.
        scales_M2: float32 scale and offset of each row if `values_MD` is uint8, else None.
    """

    values_MD: torch.Tensor
    scales_M2: torch.Tensor | None

    @property
    def rows(self) -> int:
        """M."""
        return int(self.values_MD.shape[0])

    @property
    def dim(self) -> int:
        """D."""
        return int(self.values_MD.shape[1])

    @property
    def dtype(self) -> TableDtype:
        """As `write_table` was asked for."""
        if self.scales_M2 is not None:
            return "int8"
        return "float16" if self.values_MD.dtype == torch.float16 else "float32"

    def lookup(self, rows_B: NDArray[np.integer] | Sequence[int]) -> NDArray[np.float32]:
        """Vectors as float32 [B, D].

        Raises:
            TableError: a row is not in the table.
        """
        rows = np.asarray(rows_B, dtype=np.int64)
        check_rows("row", rows, self.rows)
        values_BD = self.values_MD.numpy()[rows].astype(np.float32)
        if self.scales_M2 is None:
            return values_BD
        scales_B2 = self.scales_M2.numpy()[rows]
        scaled: NDArray[np.float32] = values_BD * scales_B2[:, :1] + scales_B2[:, 1:]
        return scaled


def write_table(path: Path, array_MD: NDArray[np.floating], *, dtype: TableDtype) -> list[Path]:
    """Write `path` (`….npy`), for int8 the scales beside it as well.

    Rows are converted in pieces, so the array may be a mapped file larger than memory. Zeros stay zeros in
    every type. Each file appears whole or not at all.

    Returns:
        The files written.

    Raises:
        TableError: the array is not two-dimensional, or a number is not finite in `dtype`.
    """
    if array_MD.ndim != 2:
        raise TableError(f"{path}: a table must have two dimensions, got shape {array_MD.shape}")
    rows, dim = array_MD.shape
    if dtype != "int8":
        with _npy_file(path, (rows, dim), np.dtype(dtype)) as file:
            for chunk_CD in _chunks(path, array_MD, np.dtype(dtype)):
                file.write(chunk_CD.tobytes())
        scale_path(path).unlink(missing_ok=True)
        return [path]
    with (
        _npy_file(path, (rows, dim), np.dtype(np.uint8)) as file,
        _npy_file(scale_path(path), (rows, 2), np.dtype(np.float32)) as scale_file,
    ):
        for chunk_CD in _chunks(path, array_MD, np.dtype(np.float32)):
            quantised_CD, scales_C2 = quantise_rows(chunk_CD)
            file.write(quantised_CD.tobytes())
            scale_file.write(scales_C2.tobytes())
    return [path, scale_path(path)]


def open_table(path: Path) -> ServingTable:
    """Map what `write_table` wrote. Reads nothing yet; pages are shared by all processes that map the file.

    Raises:
        TableError: a file is missing, truncated or not of the right type.
    """
    values_MD = _mapped(path)
    if values_MD.dtype != torch.uint8:
        return ServingTable(values_MD, None)
    scales_M2 = _mapped(scale_path(path))
    if tuple(scales_M2.shape) != (len(values_MD), 2) or scales_M2.dtype != torch.float32:
        raise TableError(
            f"{scale_path(path)} must hold float32 of shape ({len(values_MD)}, 2), got {scales_M2.dtype} of "
            f"{tuple(scales_M2.shape)}; write the table again"
        )
    return ServingTable(values_MD, scales_M2)


def scale_path(path: Path) -> Path:
    """Where the scales of an int8 table lie."""
    return path.with_suffix(".scale.npy")


def quantise_rows(array_CD: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Each row in 256 even steps from its smallest to its largest number.

    Returns:
        steps [C, D] and float32 (scale, offset) [C, 2]. No number is off by more than half a step.
    """
    low_C1, high_C1 = array_CD.min(axis=1, keepdims=True), array_CD.max(axis=1, keepdims=True)
    scale_C1 = (high_C1 - low_C1) / _LEVELS
    steps_CD = np.rint((array_CD - low_C1) / np.where(scale_C1 == 0, 1, scale_C1))
    scales_C2 = np.concatenate([scale_C1, low_C1], axis=1).astype(np.float32)
    return np.minimum(steps_CD, _LEVELS).astype(np.uint8), scales_C2


def zero_rows(array_MD: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which rows are all zeros [M]: a vector that says no more than a missing one; map its id to row 0."""
    found_M = np.empty(len(array_MD), dtype=bool)
    for start in range(0, len(array_MD), _CHUNK_ROWS):
        found_M[start : start + _CHUNK_ROWS] = ~array_MD[start : start + _CHUNK_ROWS].any(axis=1)
    return found_M


def check_rows(name: str, rows: NDArray[np.integer], count: int) -> None:
    """Refuse rows outside of 0 to `count` - 1: a compiled program wraps negative ones, or aborts.

    Raises:
        TableError: names the table and the row.
    """
    # One pass over what is right: without its sign a negative row is beyond every table.
    if not (rows.view(f"u{rows.itemsize}") >= count).any():
        return
    lowest, highest = int(rows.min()), int(rows.max())
    raise TableError(
        f"rows of {name} must lie in 0 to {count - 1}, got {lowest if lowest < 0 else highest}; map ids that "
        "are unknown to row 0"
    )


def _chunks(path: Path, array_MD: NDArray[np.floating], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    for start in range(0, len(array_MD), _CHUNK_ROWS):
        with np.errstate(over="ignore"):  # looked for below
            chunk_CD = np.asarray(array_MD[start : start + _CHUNK_ROWS], dtype=dtype)
        finite_C = np.isfinite(chunk_CD).all(axis=1)
        if not finite_C.all():
            raise TableError(
                f"{path}: row {start + int(np.argmin(finite_C))} holds a number that is not finite in "
                f"{dtype}; repair the vectors, or write the table as float32"
            )
        yield chunk_CD


@contextmanager
def _npy_file(path: Path, shape: tuple[int, int], dtype: np.dtype[Any]) -> Iterator[IO[bytes]]:
    """A `.npy` file behind its header, which is padded to a page: mapped rows then start at one."""
    with replaced_file(path) as temporary, temporary.open("wb") as file:
        described = repr(
            {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        )
        magic = np.lib.format.magic(1, 0)
        room = _PAGE_BYTES - len(magic) - 2
        header = described.ljust(room - 1).encode("latin1") + b"\n"
        file.write(magic + room.to_bytes(2, "little") + header)
        yield file


def _mapped(path: Path) -> torch.Tensor:
    try:
        # Copy-on-write keeps torch from warning of a read-only array; nobody writes, so pages stay shared.
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError:
        raise TableError(f"{path} is missing; write the table again") from None
    except (ValueError, EOFError, OSError) as error:
        raise TableError(f"{path} is truncated or not a .npy file: {error}; write the table again") from None
    if array.ndim != 2 or array.dtype.name not in ("float16", "float32", "uint8"):
        raise TableError(
            f"{path} must be a table of float16, float32 or uint8, got {array.dtype} of shape {array.shape}; "
            "write the table again"
        )
    return torch.from_numpy(array)
