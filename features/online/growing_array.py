"""A `.npy` file that is written piece by piece, when nobody knows yet how long it will be."""

from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy


class GrowingArray:
    """Appends to one axis; what is written is what `np.save` would write of all pieces together.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "ids.npy"
    >>> with GrowingArray(path, np.int32) as array:
    ...     array.append(np.array([1, 2]))
    ...     array.append(np.array([3]))
    >>> np.load(path).tolist()
    [1, 2, 3]
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._length = 0
        self._file = path.open("wb")
        self._write_header()

    def append(self, piece_N: npt.NDArray[Any]) -> None:
        """Add values, as the array's type."""
        piece_N.astype(self._dtype, copy=False).tofile(self._file)
        self._length += len(piece_N)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        # NumPy leaves room in it for any length of the first axis.
        header = {"descr": npy.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (self._length,)}
        npy.write_array_header_1_0(self._file, header)
