"""Rows scattered to buckets of keys on disk, and what is computed there gathered back in row order.

A bucket is a range of consecutive key numbers with about equal traffic, so memory is bounded by the largest
bucket (at least the hottest key). Rows keep their time order in a bucket; hence no row numbers are stored.
Files are opened for each access, so any number of buckets stays within the open files that a system allows.

Shapes: N rows of a batch, K keys, C columns of a result.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Columns = dict[str, npt.NDArray[Any]]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
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


@dataclass(frozen=True, eq=False)
class BucketOrder:
    """The rows of a batch, bucket by bucket.

    Attributes:
        rows: of the batch, N.
        row_M: row numbers by (bucket, row), without those of no bucket.
        size_B: rows in each bucket.
    """

    rows: int
    row_M: Int64s
    size_B: Int64s

    def slices(self) -> "list[tuple[int, slice]]":
        """The buckets that have rows, each with its place in `row_M`."""
        end_B = np.cumsum(self.size_B).tolist()
        return [
            (bucket, slice(end_B[bucket] - int(self.size_B[bucket]), end_B[bucket]))
            for bucket in np.flatnonzero(self.size_B).tolist()
        ]

    @cached_property
    def place_N(self) -> Int64s:
        """Where in `row_M` each row stands; M for one of no bucket."""
        place_N = np.full(self.rows, len(self.row_M))
        place_N[self.row_M] = np.arange(len(self.row_M))
        return place_N


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
        #: Of each file of results.
        self._dtypes: dict[Path, np.dtype[Any]] = {}

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
        """Keep integers of each row of a bucket, in the order of `read`, in any type of integers."""
        path = self._result(name, bucket)
        self._dtypes[path] = value_NC.dtype
        value_NC.tofile(path)

    def results(self, name: str, *, columns: int, dtype: npt.DTypeLike = np.int32) -> "ResultReader":
        """The results of all rows, batch by batch, as `dtype`, which must hold what was written."""
        paths = [self._result(name, bucket) for bucket in range(self.count)]
        return ResultReader([(path, self._dtypes.get(path)) for path in paths], columns, np.dtype(dtype))

    def order(self, key_N: Int32s) -> BucketOrder:
        """The rows with these keys, bucket by bucket."""
        present = None if key_N.min(initial=0) >= 0 else np.flatnonzero(key_N >= 0)
        bucket_M = self._bucket_of_K.take(key_N if present is None else key_N[present])
        row_M = np.argsort(bucket_M, kind="stable")
        if present is not None:
            row_M = present.take(row_M)
        return BucketOrder(len(key_N), row_M, np.bincount(bucket_M, minlength=self.count))

    def _scatter(self) -> None:
        """Append the rows that wait to the files of their buckets."""
        if not self._waiting:
            return
        key_N = np.concatenate([keys for keys, _ in self._waiting])
        batches = [columns for _, columns in self._waiting]
        self._row = np.dtype([(name, column.dtype) for name, column in batches[0].items()])
        rows_N = np.empty(len(key_N), self._row)
        for name in batches[0]:
            np.concatenate([columns[name] for columns in batches], out=rows_N[name])
        self._waiting, self._waiting_rows = [], 0
        order = self.order(key_N)
        rows_M = rows_N.take(order.row_M)
        for bucket, rows in order.slices():
            with self._path(bucket).open("ab") as file:
                rows_M[rows].tofile(file)

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket:05d}.rows"

    def _result(self, name: str, bucket: int) -> Path:
        return self._folder / f"{name}-{bucket:05d}.integers"


class ResultReader:
    """Gathers results in the order in which batches were appended, each file front to back."""

    def __init__(
        self, files: list[tuple[Path, np.dtype[Any] | None]], columns: int, dtype: np.dtype[Any]
    ) -> None:
        """
        Args:
            files: of each bucket, with the type of what is in it; None for one that was never written.
        """
        self._files = files
        self._columns = columns
        self._dtype = dtype
        self._bytes_read = [0] * len(files)
        self._ahead: list[Ints] = [np.zeros((0, columns), kind or dtype) for _, kind in files]
        self._rows_ahead = max(_AHEAD_BYTES // (len(files) * columns * dtype.itemsize), 1)

    def next(self, order: BucketOrder) -> Ints:
        """[N, C] of the next batch, whose keys must be those that were appended.

        0 for key -1, and for a bucket without results.
        """
        parts = [self._take(bucket, rows.stop - rows.start) for bucket, rows in order.slices()]
        parts.append(np.zeros((1, self._columns), np.uint8))  # where rows of no bucket look
        value_NC: Ints = np.concatenate(parts, dtype=self._dtype).take(order.place_N, axis=0)
        return value_NC

    def _take(self, bucket: int, rows: int) -> Ints:
        """The next results of a bucket."""
        path, kind = self._files[bucket]
        if kind is None:
            return np.zeros((rows, self._columns), np.uint8)
        ahead = self._ahead[bucket]
        if len(ahead) < rows:
            wanted = max(rows - len(ahead), self._rows_ahead) * self._columns
            values = np.fromfile(path, kind, count=wanted, offset=self._bytes_read[bucket])
            self._bytes_read[bucket] += values.nbytes
            ahead = np.concatenate([ahead, values.reshape(-1, self._columns)])
        self._ahead[bucket] = ahead[rows:]
        return ahead[:rows]
