"""The row files of a feature set: one declared schema, row groups of 65,536 rows, zstd, no dictionaries.

Dictionaries make integer columns larger and slower to read; every reader relies on the row group size. Rows
are put together of ids, history offsets, dense and sparse features, slices.

Shapes: N impressions of a batch, P products, Q queries.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from features.columns.clock import iso
from features.columns.transforms import Transform
from features.columns.vocabulary import Vocabulary
from features.feature_set import SplitSummary
from features.offline.buckets import Buckets
from features.offline.fitted_columns import DenseColumn, SparseColumn
from features.offline.key_counters import PARTITION_OF_KEY, KeyCounters
from features.offline.log_reader import BATCH_ROWS
from features.offline.splits import NO_QUERY, query_frequency
from features.offline.time_ordered_log import Tally

ROW_GROUPS_PER_FILE = 64


def row_schema(impression_id: pa.DataType, *, dense: tuple[str, ...], sparse: tuple[str, ...]) -> pa.Schema:
    """Columns of a row file, none of which holds nulls."""
    head: list[tuple[str, pa.DataType]] = [
        ("impression_id", impression_id),
        ("timestamp", pa.timestamp("us", tz="UTC")),
        ("clicked", pa.int8()),
        ("product_index", pa.int32()),
        ("query_index", pa.int32()),
        ("user_index", pa.int32()),
        ("history_start", pa.int32()),
        ("history_end", pa.int32()),
    ]
    features = [(name, pa.float32()) for name in dense] + [(name, pa.int32()) for name in sparse]
    slices: list[tuple[str, pa.DataType]] = [
        ("slice_has_purchases", pa.bool_()),
        ("slice_seen_product", pa.bool_()),
        ("slice_query_frequency", pa.int8()),
    ]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in (*head, *features, *slices)])


class SplitWriter:
    """Writes one split's rows as part files of whole row groups, and sums them up."""

    def __init__(self, root: Path, split: str) -> None:
        self._root = root
        self._split = split
        self._writer: pq.ParquetWriter | None = None
        self._groups = 0
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self._files: list[str] = []
        self._rows = self._clicked = self._without_history = 0
        self._first_us: int | None = None
        self._last_us = 0
        self._oov: dict[str, int] = {}
        self._missing: dict[str, int] = {}
        (root / split).mkdir()

    def append(self, batch: pa.RecordBatch, oov: dict[str, npt.NDArray[np.bool_]]) -> None:
        """Take rows in time order; `oov` says for each sparse feature which ids the vocabulary lacks."""
        if not len(batch):
            return
        time_us_N = batch.column("timestamp").cast(pa.int64()).to_numpy()
        if self._first_us is None:
            self._first_us = int(time_us_N[0])
        self._last_us = int(time_us_N[-1])
        self._rows += len(batch)
        self._clicked += int(batch.column("clicked").to_numpy().sum(dtype=np.int64))
        with_history = batch.column("slice_has_purchases").true_count
        self._without_history += len(batch) - with_history
        for name, oov_N in oov.items():
            self._oov[name] = self._oov.get(name, 0) + int(np.count_nonzero(oov_N))
            missing = len(batch) - int(np.count_nonzero(batch.column(name).to_numpy()))
            self._missing[name] = self._missing.get(name, 0) + missing
        self._waiting.append(batch)
        self._waiting_rows += len(batch)
        while self._waiting_rows >= BATCH_ROWS:
            whole = pa.Table.from_batches(self._waiting)
            self._write(whole.slice(0, BATCH_ROWS))
            self._waiting = whole.slice(BATCH_ROWS).to_batches()
            self._waiting_rows -= BATCH_ROWS

    def finish(self) -> SplitSummary:
        """Write what waits and close; the split has at least one row."""
        if self._waiting_rows:
            self._write(pa.Table.from_batches(self._waiting))
        if self._writer is not None:
            self._writer.close()
        assert self._first_us is not None
        return SplitSummary(
            rows=self._rows,
            clicked=self._clicked,
            start=iso(self._first_us),
            end=iso(self._last_us),
            files=tuple(self._files),
        )

    @property
    def oov_share(self) -> dict[str, float]:
        """Share of the rows whose id the vocabulary lacks, by feature."""
        return {name: count / self._rows for name, count in self._oov.items()}

    @property
    def missing_share(self) -> dict[str, float]:
        """Share of the rows without an id, by feature."""
        return {name: count / self._rows for name, count in self._missing.items()}

    @property
    def empty_history_share(self) -> float:
        """Share of the rows without a purchase in the history window."""
        return self._without_history / self._rows

    def _write(self, rows: pa.Table) -> None:
        if self._writer is not None and self._groups == ROW_GROUPS_PER_FILE:
            self._writer.close()
            self._writer = None
        if self._writer is None:
            name = f"{self._split}/part-{len(self._files):05d}.parquet"
            self._writer = pq.ParquetWriter(
                self._root / name,
                rows.schema,
                compression="zstd",
                use_dictionary=False,
                write_statistics=False,  # nobody filters these columns
            )
            self._files.append(name)
            self._groups = 0
        self._writer.write_table(rows.combine_chunks(), row_group_size=BATCH_ROWS)
        self._groups += 1


class RowAssembler:
    """Turns encoded batches, in their stored order, into rows of the feature set."""

    def __init__(
        self,
        *,
        users: Buckets,
        tally: Tally,
        dense: Sequence[DenseColumn],
        counters: Sequence[KeyCounters],
        counter_transforms: Mapping[str, Transform],
        sparse: Sequence[tuple[SparseColumn, Vocabulary]],
    ) -> None:
        self._dense = dense
        self._counters = [
            (PARTITION_OF_KEY[counter.key], counter.reader(), counter.block(counter_transforms))
            for counter in counters
        ]
        self._sparse = sparse
        self._history = users.results("history", columns=2)
        self._seen_P = tally.train_impressions_P > 0
        # The last place is for query -1, no query.
        self._frequency_Q = np.append(query_frequency(tally.train_impressions_Q), np.int8(NO_QUERY))
        self.dense_names = tuple(name for column in dense for name in column.names) + tuple(
            name for counter in counters for name in counter.names
        )
        self.sparse_names = tuple(vocabulary.name for _, vocabulary in sparse)

    def schema(self, impression_id: pa.DataType) -> pa.Schema:
        """The declared schema of the row files."""
        return row_schema(impression_id, dense=self.dense_names, sparse=self.sparse_names)

    def next(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[str, npt.NDArray[np.bool_]]]:
        """Rows of the next batch, and for each sparse feature which of its ids the vocabulary lacks."""
        key_N = {name: batch.column(name).to_numpy() for name in ("product", "query", "user")}
        offsets_N2 = self._history.next(key_N["user"])
        start_N, end_N = np.ascontiguousarray(offsets_N2[:, 0]), np.ascontiguousarray(offsets_N2[:, 1])
        columns: dict[str, pa.Array | npt.NDArray[np.generic]] = {
            "impression_id": batch.column("impression_id"),
            "timestamp": batch.column("time_us").cast(pa.timestamp("us", tz="UTC")),
            "clicked": batch.column("clicked"),
            "product_index": key_N["product"],
            "query_index": key_N["query"],
            "user_index": key_N["user"],
            "history_start": start_N,
            "history_end": end_N,
            "slice_has_purchases": end_N > start_N,
            "slice_seen_product": self._seen_P[key_N["product"]],
            "slice_query_frequency": self._frequency_Q[key_N["query"]],
        }
        for column in self._dense:
            columns |= column.columns(batch)
        for partition, reader, block in self._counters:
            column_NC = block.columns(reader.next(key_N[partition]))
            columns |= zip(block.names, column_NC.T, strict=True)
        oov: dict[str, npt.NDArray[np.bool_]] = {}
        for sparse, vocabulary in self._sparse:
            row_N = sparse.rows(batch)
            columns[vocabulary.name] = row_N
            oov[vocabulary.name] = vocabulary.is_oov(row_N)
        schema = self.schema(batch.schema.field("impression_id").type)
        arrays = [pa.array(columns[field.name], type=field.type) for field in schema]
        return pa.RecordBatch.from_arrays(arrays, schema=schema), oov
