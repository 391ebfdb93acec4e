"""Rows scattered to buckets of keys on disk, and what is computed there gathered back in row order.

A bucket is a range of consecutive key numbers with about equal traffic, so memory is bounded by the largest
bucket (at least the hottest key). Rows keep their time order in a bucket; hence no row numbers are stored.
Files are opened for each access, so any number of buckets stays within the open files that a system allows.

Shapes: N rows of a batch, K keys, C columns of a result.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Columns = dict[str, npt.NDArray[Any]]
Int32s = npt.NDArray[np.int32]
Ints = npt.NDArray[np.integer]

#: Rows wait until each bucket gets about so many at once: opening its file costs as much as writing them.
_WAITING_ROWS = 256
#: What a reader of results reads ahead, all buckets together.
_AHEAD_BYTES = 8 * 2**20


def bucket_of_keys(weight_K: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """The bucket of each key: `count` ranges of about equal weight, of which some may hold no key."""
    before_K = np.cumsum(weight_K) - weight_K
    bucket_K: npt.NDArray[np.int64] = before_K * count // max(int(weight_K.sum()), 1)
    return bucket_K


class Buckets:
    """One partition of the rows, by one key. Append all batches, `finish`, then read bucket by bucket."""

    def __init__(self, folder: Path, *, weight_K: npt.NDArray[np.int64], count: int) -> None:
        """
        Args:
            folder: made here; holds one file for each bucket and result.
            weight_K: expected rows of each key, to balance the buckets.
        """
        folder.mkdir(parents=True)
        self._folder = folder
        self.count = count
        # NumPy sorts 16 bits several times as fast.
        self._bucket_of_K = bucket_of_keys(weight_K, count).astype(np.int16 if count < 2**15 else np.int32)
        self._waiting: list[tuple[Int32s, Columns]] = []
        self._waiting_rows = 0
        self._row = np.dtype([])

    def keys(self, bucket: int) -> tuple[int, int]:
        """The bucket's keys: first, and one after the last."""
        first, last = np.searchsorted(self._bucket_of_K, [bucket, bucket + 1])
        return int(first), int(last)

    def append(self, key_N: Int32s, columns: Columns) -> None:
        """Scatter one batch; rows with key -1 belong to no bucket. All batches have the same columns."""
        self._waiting.append((key_N, columns))
        self._waiting_rows += len(key_N)
        if self._waiting_rows >= _WAITING_ROWS * self.count:
            self._scatter()

    def finish(self) -> None:
        """Write what waits; nothing can be appended afterwards."""
        self._scatter()

    def read(self, bucket: int) -> Columns | None:
        """All rows of one bucket in time order, None without any."""
        if not self._path(bucket).exists():
            return None
        rows = np.fromfile(self._path(bucket), dtype=self._row)
        return {name: np.ascontiguousarray(rows[name]) for name in self._row.names or ()}

    def discard(self, bucket: int) -> None:
        """Free the disk of a bucket that has been read."""
        self._path(bucket).unlink(missing_ok=True)

    def write_result(self, name: str, bucket: int, value_NC: Ints) -> None:
        """Keep integers of each row of a bucket, in the order of `read`."""
        value_NC.tofile(self._result(name, bucket))

    def results(self, name: str, *, columns: int, dtype: npt.DTypeLike = np.int32) -> "ResultReader":
        """The results of all rows, batch by batch; `dtype` is that of what was written."""
        paths = [self._result(name, bucket) for bucket in range(self.count)]
        return ResultReader(self, paths, columns, np.dtype(dtype))

    def order(self, key_N: Int32s) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Row numbers by (bucket, row) without those of no bucket, and rows in each bucket."""
        if self.count == 1:
            rows = np.flatnonzero(key_N >= 0)
            return rows, np.array([len(rows)])
        present = np.flatnonzero(key_N >= 0)
        bucket_N = self._bucket_of_K[key_N[present]]
        order_N = present[np.argsort(bucket_N, kind="stable")]
        return order_N, np.bincount(bucket_N, minlength=self.count)

    def _scatter(self) -> None:
        """Append the rows that wait to the files of their buckets."""
        if not self._waiting:
            return
        key_N = np.concatenate([keys for keys, _ in self._waiting])
        batches = [columns for _, columns in self._waiting]
        self._row = np.dtype([(name, column.dtype) for name, column in batches[0].items()])
        rows_N = np.empty(len(key_N), self._row)
        for name in batches[0]:
            rows_N[name] = np.concatenate([columns[name] for columns in batches])
        self._waiting, self._waiting_rows = [], 0
        order_N, sizes = self.order(key_N)
        rows_N = rows_N[order_N]
        end = 0
        for bucket in np.flatnonzero(sizes).tolist():
            start, end = end, end + int(sizes[bucket])
            with self._path(bucket).open("ab") as file:
                rows_N[start:end].tofile(file)

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket:05d}.rows"

    def _result(self, name: str, bucket: int) -> Path:
        return self._folder / f"{name}-{bucket:05d}.integers"


class ResultReader:
    """Gathers results in the order in which batches were appended, each file front to back."""

    def __init__(self, buckets: Buckets, paths: list[Path], columns: int, dtype: np.dtype[Any]) -> None:
        self._buckets = buckets
        self._paths = paths
        self._columns = columns
        self._dtype = dtype
        self._bytes_read = [0] * len(paths)
        self._ahead: list[Ints] = [np.zeros((0, columns), dtype)] * len(paths)
        self._rows_ahead = max(_AHEAD_BYTES // (len(paths) * columns * dtype.itemsize), 1)

    def next(self, key_N: Int32s) -> Ints:
        """[N, C] of the next batch, whose keys must be those that were appended.

        0 for key -1, and for a bucket without results.
        """
        order_N, sizes = self._buckets.order(key_N)
        value_NC = np.zeros((len(key_N), self._columns), self._dtype)
        end = 0
        for bucket in np.flatnonzero(sizes).tolist():
            start, end = end, end + int(sizes[bucket])
            value_NC[order_N[start:end]] = self._take(bucket, end - start)
        return value_NC

    def _take(self, bucket: int, rows: int) -> Ints:
        """The next results of a bucket."""
        ahead = self._ahead[bucket]
        if len(ahead) < rows:
            path = self._paths[bucket]
            if not path.exists():
                return np.zeros((rows, self._columns), self._dtype)
            wanted = max(rows - len(ahead), self._rows_ahead) * self._columns
            values = np.fromfile(path, self._dtype, count=wanted, offset=self._bytes_read[bucket])
            self._bytes_read[bucket] += values.nbytes
            ahead = np.concatenate([ahead, values.reshape(-1, self._columns)])
        self._ahead[bucket] = ahead[rows:]
        return ahead[:rows]
