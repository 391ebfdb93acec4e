"""Rows scattered to buckets of keys on disk, and what is computed there gathered back in row order.

A bucket is a range of consecutive key numbers with about equal traffic, so memory is bounded by the largest
bucket (at least the hottest key). Rows keep their time order in a bucket; hence no row numbers are stored.

Shapes: N rows of a batch, K keys, C columns of a result.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Columns = dict[str, npt.NDArray[Any]]
Int32s = npt.NDArray[np.int32]


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
        self._bucket_of_K = bucket_of_keys(weight_K, count).astype(np.int16)
        self._writers: dict[int, pa.RecordBatchStreamWriter] = {}

    def keys(self, bucket: int) -> tuple[int, int]:
        """The bucket's keys: first, and one after the last."""
        first, last = np.searchsorted(self._bucket_of_K, [bucket, bucket + 1])
        return int(first), int(last)

    def append(self, key_N: Int32s, columns: Columns) -> None:
        """Scatter one batch; rows with key -1 belong to no bucket."""
        order_N, sizes = self.order(key_N)
        end = 0
        for bucket, size in enumerate(sizes):
            start, end = end, end + int(size)
            if size:
                rows = order_N[start:end]
                self._write(bucket, {name: column[rows] for name, column in columns.items()})

    def finish(self) -> None:
        """Close the files; nothing can be appended afterwards."""
        for writer in self._writers.values():
            writer.close()

    def read(self, bucket: int) -> Columns | None:
        """All rows of one bucket in time order, None without any."""
        if bucket not in self._writers:
            return None
        with pa.OSFile(str(self._path(bucket))) as file:
            table = pa.ipc.open_stream(file).read_all()
        return {name: table.column(name).to_numpy() for name in table.column_names}

    def discard(self, bucket: int) -> None:
        """Free the disk of a bucket that has been read."""
        self._path(bucket).unlink(missing_ok=True)

    def write_result(self, name: str, bucket: int, value_NC: Int32s) -> None:
        """Keep int32 values of each row of a bucket, in the order of `read`."""
        value_NC.tofile(self._result(name, bucket))

    def results(self, name: str, *, columns: int) -> "ResultReader":
        """The results of all rows, batch by batch."""
        return ResultReader(self, [self._result(name, bucket) for bucket in range(self.count)], columns)

    def order(self, key_N: Int32s) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Row numbers by (bucket, row) without those of no bucket, and rows in each bucket."""
        if self.count == 1:
            rows = np.flatnonzero(key_N >= 0)
            return rows, np.array([len(rows)])
        present = np.flatnonzero(key_N >= 0)
        bucket_N = self._bucket_of_K[key_N[present]]
        order_N = present[np.argsort(bucket_N, kind="stable")]
        return order_N, np.bincount(bucket_N, minlength=self.count)

    def _write(self, bucket: int, columns: Columns) -> None:
        batch = pa.RecordBatch.from_pydict({name: pa.array(column) for name, column in columns.items()})
        if bucket not in self._writers:
            self._writers[bucket] = pa.ipc.new_stream(str(self._path(bucket)), batch.schema)
        self._writers[bucket].write_batch(batch)

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket:05d}.arrow"

    def _result(self, name: str, bucket: int) -> Path:
        return self._folder / f"{name}-{bucket:05d}.int32"


class ResultReader:
    """Gathers results in the order in which batches were appended, each file front to back.

    Files are opened for each read: hundreds of buckets times columns would exceed the open files allowed.
    """

    def __init__(self, buckets: Buckets, paths: list[Path], columns: int) -> None:
        self._buckets = buckets
        self._paths = paths
        self._columns = columns
        self._position = [0] * len(paths)

    def next(self, key_N: Int32s) -> Int32s:
        """int32[N, C] of the next batch, whose keys must be those that were appended; 0 for key -1."""
        order_N, sizes = self._buckets.order(key_N)
        value_NC = np.zeros((len(key_N), self._columns), dtype=np.int32)
        end = 0
        for bucket, path in enumerate(self._paths):
            start, end = end, end + int(sizes[bucket])
            numbers = (end - start) * self._columns
            if not numbers or not path.exists():
                continue
            values = np.fromfile(path, dtype=np.int32, count=numbers, offset=self._position[bucket])
            self._position[bucket] += values.nbytes
            value_NC[order_N[start:end]] = values.reshape(-1, self._columns)
        return value_NC
