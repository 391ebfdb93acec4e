"""The row files of a feature set: one declared schema, row groups of 65,536 rows, zstd, no dictionaries.

Dictionaries make integer columns larger and slower to read; every reader relies on the row group size. Rows
are put together of ids, history offsets, dense and sparse features, slices.

Shapes: N impressions of a batch, P products, Q queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from features.columns.clock import iso
from features.columns.counters import CounterBlock
from features.feature_set import SplitSummary
from features.offline.fitted_columns import DenseColumn, SparseRows
from features.offline.log_reader import BATCH_ROWS
from features.offline.splits import NO_QUERY, query_frequency
from features.offline.time_ordered_log import Tally

ROW_GROUPS_PER_FILE = 64

Int32s = npt.NDArray[np.int32]


def row_schema(
    impression_id: pa.DataType, *, offset: pa.DataType, dense: tuple[str, ...], sparse: tuple[str, ...]
) -> pa.Schema:
    """Columns of a row file, none of which holds nulls; `offset` is the type of the histories' places."""
    head: list[tuple[str, pa.DataType]] = [
        ("impression_id", impression_id),
        ("timestamp", pa.timestamp("us", tz="UTC")),
        ("clicked", pa.int8()),
        ("product_index", pa.int32()),
        ("query_index", pa.int32()),
        ("user_index", pa.int32()),
        ("history_start", offset),
        ("history_end", offset),
    ]
    features = [(name, pa.float32()) for name in dense] + [(name, pa.int32()) for name in sparse]
    slices: list[tuple[str, pa.DataType]] = [
        ("slice_has_purchases", pa.bool_()),
        ("slice_seen_product", pa.bool_()),
        ("slice_query_frequency", pa.int8()),
    ]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in (*head, *features, *slices)])


@dataclass
class SplitTotals:
    """What some consecutive rows of a split add up to; parts merge in time order."""

    rows: int = 0
    clicked: int = 0
    without_history: int = 0
    first_us: int | None = None
    last_us: int = 0
    #: By sparse feature: rows whose id the vocabulary lacks, and rows without an id.
    oov: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    def add(self, batch: pa.RecordBatch, oov: Mapping[str, npt.NDArray[np.bool_]]) -> None:
        """Take in rows, at least one; `oov` says for each sparse feature which ids the vocabulary lacks."""
        time_us_N = batch.column("timestamp").cast(pa.int64()).to_numpy()
        counted = SplitTotals(
            rows=len(batch),
            clicked=int(batch.column("clicked").to_numpy().sum(dtype=np.int64)),
            without_history=len(batch) - batch.column("slice_has_purchases").true_count,
            first_us=int(time_us_N[0]),
            last_us=int(time_us_N[-1]),
            oov={name: int(np.count_nonzero(oov_N)) for name, oov_N in oov.items()},
            missing={name: len(batch) - int(np.count_nonzero(batch.column(name).to_numpy())) for name in oov},
        )
        self.merge(counted)

    def merge(self, later: "SplitTotals") -> None:
        """Take in the totals of the rows that follow, at least one."""
        self.rows += later.rows
        self.clicked += later.clicked
        self.without_history += later.without_history
        self.first_us = later.first_us if self.first_us is None else self.first_us
        self.last_us = later.last_us
        for own, others in ((self.oov, later.oov), (self.missing, later.missing)):
            for name, count in others.items():
                own[name] = own.get(name, 0) + count
        self.files += later.files

    def summary(self) -> SplitSummary:
        """For the manifest; the split has at least one row."""
        assert self.first_us is not None
        return SplitSummary(
            rows=self.rows,
            clicked=self.clicked,
            start=iso(self.first_us),
            end=iso(self.last_us),
            files=tuple(self.files),
        )

    @property
    def oov_share(self) -> dict[str, float]:
        """Share of the rows whose id the vocabulary lacks, by feature."""
        return {name: count / self.rows for name, count in self.oov.items()}

    @property
    def missing_share(self) -> dict[str, float]:
        """Share of the rows without an id, by feature."""
        return {name: count / self.rows for name, count in self.missing.items()}

    @property
    def empty_history_share(self) -> float:
        """Share of the rows without a purchase in the history window."""
        return self.without_history / self.rows


class SplitWriter:
    """Writes one split's rows, or those of some of its files, as part files of whole row groups."""

    def __init__(self, root: Path, split: str, *, first_file: int = 0) -> None:
        self._root = root
        self._split = split
        self._first_file = first_file
        self._writer: pq.ParquetWriter | None = None
        self._groups = 0
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self._totals = SplitTotals()
        (root / split).mkdir(parents=True)

    def append(self, batch: pa.RecordBatch, oov: dict[str, npt.NDArray[np.bool_]]) -> None:
        """Take rows in time order; `oov` says for each sparse feature which ids the vocabulary lacks."""
        if not len(batch):
            return
        self._totals.add(batch, oov)
        self._waiting.append(batch)
        self._waiting_rows += len(batch)
        while self._waiting_rows >= BATCH_ROWS:
            whole = pa.Table.from_batches(self._waiting)
            self._write(whole.slice(0, BATCH_ROWS))
            self._waiting = whole.slice(BATCH_ROWS).to_batches()
            self._waiting_rows -= BATCH_ROWS

    def finish(self) -> SplitTotals:
        """Write what waits and close; there is at least one row."""
        if self._waiting_rows:
            self._write(pa.Table.from_batches(self._waiting))
        if self._writer is not None:
            self._writer.close()
        return self._totals

    def _write(self, rows: pa.Table) -> None:
        if self._writer is not None and self._groups == ROW_GROUPS_PER_FILE:
            self._writer.close()
            self._writer = None
        if self._writer is None:
            number = self._first_file + len(self._totals.files)
            name = f"{self._split}/part-{number:05d}.parquet"
            self._writer = pq.ParquetWriter(
                self._root / name,
                rows.schema,
                compression="zstd",
                use_dictionary=False,
                write_statistics=False,  # nobody filters these columns
            )
            self._totals.files.append(name)
            self._groups = 0
        self._writer.write_table(rows.combine_chunks(), row_group_size=BATCH_ROWS)
        self._groups += 1


class RowAssembler:
    """Turns encoded batches with what was counted for them into rows of the feature set."""

    def __init__(
        self,
        tally: Tally,
        *,
        dense: Sequence[DenseColumn],
        counters: Sequence[CounterBlock],
        sparse: Sequence[SparseRows],
        offset_dtype: npt.DTypeLike,
    ) -> None:
        self._offset = pa.from_numpy_dtype(offset_dtype)
        self._dense = dense
        self._counters = counters
        self._sparse = sparse
        self._seen_P = tally.train_impressions_P > 0
        # The last place is for query -1, no query.
        self._frequency_Q = np.append(query_frequency(tally.train_impressions_Q), np.int8(NO_QUERY))
        self.dense_names = tuple(name for column in dense for name in column.names) + tuple(
            name for block in counters for name in block.names
        )
        self.sparse_names = tuple(rows.name for rows in sparse)

    def schema(self, impression_id: pa.DataType) -> pa.Schema:
        """The declared schema of the row files."""
        return row_schema(
            impression_id, offset=self._offset, dense=self.dense_names, sparse=self.sparse_names
        )

    def rows(
        self,
        batch: pa.RecordBatch,
        *,
        offsets_N2: npt.NDArray[np.integer],
        counts: Sequence[npt.NDArray[np.integer]],
    ) -> tuple[pa.RecordBatch, dict[str, npt.NDArray[np.bool_]]]:
        """Rows of a batch, and for each sparse feature which of its ids the vocabulary lacks.

        Args:
            offsets_N2: where histories start and end.
            counts: raw counts [N, C] of each counter, in the order of `counters`.
        """
        key_N = {name: batch.column(name).to_numpy() for name in ("product", "query", "user")}
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
        for block, count_NC in zip(self._counters, counts, strict=True):
            columns |= zip(block.names, block.columns(count_NC).T, strict=True)
        oov: dict[str, npt.NDArray[np.bool_]] = {}
        for sparse in self._sparse:
            row_N = sparse.of(batch)
            columns[sparse.name] = row_N
            oov[sparse.name] = sparse.is_oov(row_N)
        schema = self.schema(batch.schema.field("impression_id").type)
        arrays = [pa.array(columns[field.name], type=field.type) for field in schema]
        return pa.RecordBatch.from_arrays(arrays, schema=schema), oov
