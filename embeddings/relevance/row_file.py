"""A `.npy` file of rows whose number is known only at the end, so that memory does not grow with it."""

from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt


class RowFile:
    """Rows of one width and type, appended; closing writes their number into the header.

    `np.load`, also memory-mapped, gives the same array as if all rows had been saved at once.
    """

    def __init__(self, path: Path, width: int, dtype: np.dtype[Any]) -> None:
        self.rows = 0
        self._width, self._dtype = width, dtype
        self._file: IO[bytes] = path.open("w+b")
        self._header_bytes = self._write_header()

    def append(self, rows_NW: npt.NDArray[Any]) -> None:
        """Add rows, cast to the file's type."""
        assert rows_NW.shape[1:] == (self._width,), rows_NW.shape
        self._file.write(np.ascontiguousarray(rows_NW, self._dtype).tobytes())
        self.rows += len(rows_NW)

    def close(self) -> None:
        """Complete the header and close the file."""
        self._file.seek(0)
        header_bytes = self._write_header()
        self._file.close()
        # NumPy leaves room for any number of rows in the header, so that it can be written again in place.
        assert header_bytes == self._header_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write_header(self) -> int:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.rows, self._width),
        }
        np.lib.format.write_array_header_1_0(self._file, header)
        return self._file.tell()
