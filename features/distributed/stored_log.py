"""The log with all that was counted, in time order on the shared disk, readable from any row on.

Shapes: B buckets of time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.artifacts import replaced_file
from features.offline.log_reader import BATCH_ROWS


@dataclass(frozen=True)
class StoredLog:
    """One file for each bucket of time; `start_B` are the rows before each, and at the end all rows."""

    folder: Path
    schema: pa.Schema
    start_B: npt.NDArray[np.int64]

    @property
    def rows(self) -> int:
        """Impressions of the log."""
        return int(self.start_B[-1])

    @property
    def batches(self) -> int:
        """Batches of BATCH_ROWS rows, the last one shorter: those that one machine reads a log in."""
        return -(-self.rows // BATCH_ROWS)

    def store(self, bucket: int, rows: pa.Table) -> None:
        """Store a bucket's rows, which are in time order. No record batch crosses the edge of a batch.

        Raises:
            AssertionError: rows were lost or came twice.
        """
        start, end = int(self.start_B[bucket]), int(self.start_B[bucket + 1])
        assert len(rows) == end - start, f"bucket {bucket} has {len(rows)} of {end - start} rows"
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        rows = rows.combine_chunks().cast(self.schema)
        with (
            replaced_file(self._path(bucket)) as temporary,
            pa.ipc.new_file(str(temporary), self.schema, options=options) as writer,
        ):
            edge = start
            while edge < end:
                until = min((edge // BATCH_ROWS + 1) * BATCH_ROWS, end)
                for batch in rows.slice(edge - start, until - edge).to_batches():
                    writer.write_batch(batch)
                edge = until

    def read(self, first: int, last: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Batches first..last - 1 of the log; `columns` are all if None."""
        names = list(columns or self.schema.names)
        places = sorted(self.schema.get_field_index(name) for name in names)
        options = pa.ipc.IpcReadOptions(included_fields=places)
        waiting: list[pa.RecordBatch] = []
        rows = 0
        begin, end = first * BATCH_ROWS, min(last * BATCH_ROWS, self.rows)
        for bucket in range(len(self.start_B) - 1):
            position, after = int(self.start_B[bucket]), int(self.start_B[bucket + 1])
            if after <= begin or position >= end:
                continue
            with pa.OSFile(str(self._path(bucket))) as file:
                reader = pa.ipc.open_file(file, options=options)
                for number in range(reader.num_record_batches):
                    if position >= end:
                        break
                    size = min((position // BATCH_ROWS + 1) * BATCH_ROWS, after) - position
                    position += size
                    if position <= begin:
                        continue
                    batch = reader.get_batch(number)
                    assert len(batch) == size
                    waiting.append(batch)
                    rows += size
                    if position % BATCH_ROWS == 0 or position == self.rows:
                        yield pa.Table.from_batches(waiting).combine_chunks().to_batches()[0]
                        waiting, rows = [], 0
        assert not rows

    def _path(self, bucket: int) -> Path:
        return self.folder / f"{bucket:06d}.arrow"
