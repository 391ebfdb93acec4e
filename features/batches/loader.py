"""Parquet feature set to batches: shuffled, in constant memory, resumable at any batch.

Row groups are visited in random order, a few at a time; each such pool is shuffled as a whole. The order is
a function of (seed, epoch) alone, so the state of an epoch is one number: how many rows were handed out.

Shapes: N rows of a pool, B impressions, F dense and S sparse features.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.batches.batch import SEMANTIC_KEYS, Batch, bags, one_id_each
from features.batches.pretrained_rows import SemanticRows
from features.feature_set import FeatureSet

#: Row groups shuffled together: 4 x 65,536 rows keep memory near 60 MB at 60 columns and mix days well.
POOL_ROW_GROUPS = 4
#: Names the stream of draws that drop ids: no pool has such a number, and numbers of zeros at the end, as of
#: the first batch, would name none (NumPy takes [7, 1] and [7, 1, 0] for one seed).
_ID_DROPOUT = zlib.crc32(b"id dropout")
_INDEX_COLUMNS: dict[str, type[np.integer]] = {
    "clicked": np.int32,
    "product_index": np.int32,
    "query_index": np.int32,
    "history_start": np.int64,
    "history_end": np.int64,
}


class FeatureRangeError(ValueError):
    """A stored embedding row lies outside its table: the feature set and its manifest disagree."""


@dataclass(frozen=True)
class Rows:
    """Decoded rows, row-major: gathering a shuffled batch reads each row in one piece."""

    dense_NF: NDArray[np.float32]
    sparse_NS: NDArray[np.int32]
    index: dict[str, NDArray[Any]]
    row_N: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> "Rows":
        return Rows(
            dense_NF=self.dense_NF.take(rows, axis=0),
            sparse_NS=self.sparse_NS.take(rows, axis=0),
            index={name: column.take(rows) for name, column in self.index.items()},
            row_N=self.row_N.take(rows),
        )

    @classmethod
    def joined(cls, parts: Sequence["Rows"]) -> "Rows":
        """All rows of the parts, one part after the other."""
        return cls(
            dense_NF=np.concatenate([part.dense_NF for part in parts]),
            sparse_NS=np.concatenate([part.sparse_NS for part in parts]),
            index={name: np.concatenate([part.index[name] for part in parts]) for name in parts[0].index},
            row_N=np.concatenate([part.row_N for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.row_N)


class BatchLoader:
    """Iterate one split of a feature set; each `iter()` yields the rest of the current epoch.

    `state_dict()` taken after a batch resumes with the next one: no row is lost or repeated.
    """

    def __init__(
        self,
        feature_set: FeatureSet,
        split: str,
        *,
        batch_size: int,
        semantic: SemanticRows | None = None,
        shuffle_seed: int | None = None,
        id_dropout: float = 0.0,
        part: slice | None = None,
        stream: int | None = None,
    ) -> None:
        """
        Args:
            split: "train", "validation" or "test".
            semantic: rows of pretrained tables; without it `Batch.semantic` is empty.
            shuffle_seed: None reads in stored order.
            id_dropout: share of known ids replaced by an out-of-vocabulary row, which trains those rows.
            part: rows of the split that are read; all of them if None.
            stream: number of a stream (`features.batches.streams`), which draws by itself and shuffles
                single row groups, since its batches are mixed with those of other streams.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= id_dropout < 1:
            raise ValueError(f"id_dropout must be in [0, 1), got {id_dropout}")
        manifest = feature_set.manifest
        self.feature_set = feature_set
        self.split = split
        self.batch_size = batch_size
        self._semantic = semantic
        self._shuffle_seed = shuffle_seed
        self._id_dropout = id_dropout
        self._dense = list(manifest.dense_columns)
        self._sparse = [column.name for column in manifest.sparse_columns]
        self._table_rows_S = np.array([column.rows for column in manifest.sparse_columns], np.int64)
        self._oov_rows_S = np.array([column.oov_rows for column in manifest.sparse_columns], np.int32)
        self._all_groups = _row_groups(feature_set.split_files(split))
        self._groups = self._all_groups if part is None else _cut(self._all_groups, part)
        self._stream = () if stream is None else (1 + stream,)
        self._pool_groups = POOL_ROW_GROUPS if stream is None else 1
        self._epoch = 0
        self._rows_done = 0

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return -(-self.rows // self.batch_size)

    @property
    def rows(self) -> int:
        """Rows of an epoch: of the split, or of its part."""
        return sum(group.rows for group in self._groups)

    @property
    def split_rows(self) -> int:
        """Rows of the split."""
        return sum(group.rows for group in self._all_groups)

    @property
    def dense_columns(self) -> list[str]:
        """Names of the dense features, in the order of `Batch.dense_BF`."""
        return list(self._dense)

    def impression_ids(self, row_B: NDArray[np.int64]) -> list[Any]:
        """Ids of the impressions at these positions of the split, in the order of `row_B`.

        Raises:
            ValueError: the split has no such position.
        """
        outside_B = (row_B < 0) | (row_B >= self.split_rows)
        if outside_B.any():
            raise ValueError(
                f"rows of {self.split} must be from 0 to {self.split_rows - 1:,}, got "
                f"{int(row_B[outside_B][0]):,}"
            )
        id_of: dict[int, Any] = {}
        for group in self._all_groups:
            rows = np.unique(row_B[(row_B >= group.first_row) & (row_B < group.first_row + group.rows)])
            if len(rows):
                column = pq.ParquetFile(group.path).read_row_group(group.number, ["impression_id"])[0]
                found = column.take(pa.array(rows - group.first_row)).to_pylist()
                id_of |= zip(rows.tolist(), found, strict=True)
        return [id_of[row] for row in row_B.tolist()]

    def state_dict(self) -> dict[str, int]:
        """Where the next batch starts."""
        return {"epoch": self._epoch, "rows_done": self._rows_done, "rows": self.rows}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from `state`.

        Raises:
            ValueError: the state belongs to a split of another size.
        """
        if state["rows"] != self.rows:
            raise ValueError(
                f"the saved position is in a split of {state['rows']:,} rows, but {self.split} has "
                f"{self.rows:,}; resume with the feature set that the run began with"
            )
        self._epoch, self._rows_done = state["epoch"], state["rows_done"]

    def __iter__(self) -> Iterator[Batch]:
        return map(self.to_batch, self.batches_of_rows())

    def batches_of_rows(self) -> Iterator[Rows]:
        """What `iter()` makes batches of: their rows, with ids dropped."""
        epoch, tail = self._epoch, None
        for pool, order in self._pools(epoch, skip_rows=self._rows_done):
            used = 0
            if tail is not None:
                used = min(self.batch_size - len(tail), len(order))
                tail = Rows.joined([tail, pool.take(order[:used])])
                if len(tail) < self.batch_size:
                    continue
                yield self._hand_out(tail)
                tail = None
            while len(order) - used >= self.batch_size:
                yield self._hand_out(pool.take(order[used : used + self.batch_size]))
                used += self.batch_size
            if used < len(order):
                tail = pool.take(order[used:])
        if tail is not None:
            yield self._hand_out(tail)
        self._epoch, self._rows_done = epoch + 1, 0

    def _hand_out(self, rows: Rows) -> Rows:
        if self._id_dropout:
            rows = replace(rows, sparse_NS=self._drop_ids(rows.sparse_NS))
        self._rows_done += len(rows)
        return rows

    def _pools(self, epoch: int, *, skip_rows: int) -> Iterator[tuple[Rows, NDArray[np.int64]]]:
        """Pools in the epoch's order with the order of their rows, without the first `skip_rows`."""
        groups = list(self._groups)
        if self._shuffle_seed is not None:
            shuffled = self._generator(epoch, 0).permutation(len(groups))
            groups = [groups[i] for i in shuffled]
        for first in range(0, len(groups), self._pool_groups):
            chosen = groups[first : first + self._pool_groups]
            count = sum(group.rows for group in chosen)
            if skip_rows >= count:
                skip_rows -= count
                continue
            order = np.arange(count)
            if self._shuffle_seed is not None:
                order = self._generator(epoch, 1 + first).permutation(count)
            yield self._read(chosen), order[skip_rows:]
            skip_rows = 0

    def _generator(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self._shuffle_seed or 0, *purpose, *self._stream])

    def _read(self, groups: "list[_RowGroup]") -> Rows:
        rows = sum(group.rows for group in groups)
        pool = Rows(
            dense_NF=np.empty((rows, len(self._dense)), np.float32),
            sparse_NS=np.empty((rows, len(self._sparse)), np.int32),
            index={name: np.empty(rows, dtype) for name, dtype in _INDEX_COLUMNS.items()},
            row_N=np.concatenate([np.arange(g.first_row, g.first_row + g.rows) for g in groups]),
        )
        columns = [*_INDEX_COLUMNS, *self._dense, *self._sparse]
        end = 0
        for group in groups:
            start, end = end, end + group.rows
            table = pq.ParquetFile(group.path).read_row_group(group.number, columns)
            table = table.slice(group.skipped, group.rows)
            for names, matrix in ((self._dense, pool.dense_NF), (self._sparse, pool.sparse_NS)):
                if names:
                    np.stack([table[name].to_numpy() for name in names], axis=1, out=matrix[start:end])
            for name, column in pool.index.items():
                column[start:end] = table[name].to_numpy()
        self._check_range(pool.sparse_NS, groups)
        return pool

    def _check_range(self, sparse_NS: NDArray[np.int32], groups: "list[_RowGroup]") -> None:
        """fbgemm would silently read row 0 for a row outside the table."""
        if sparse_NS.size == 0:
            return
        low_S, high_S = sparse_NS.min(axis=0), sparse_NS.max(axis=0)
        for i in np.flatnonzero((low_S < 0) | (high_S >= self._table_rows_S)):
            raise FeatureRangeError(
                f"feature {self._sparse[i]!r} has embedding rows {low_S[i]} to {high_S[i]}, but its table "
                f"has rows 0 to {self._table_rows_S[i] - 1} (file {groups[0].path} or one read with it); "
                "build the feature set again with `dashclip features build`"
            )

    def to_batch(self, rows: Rows) -> Batch:
        """Rows of this split as the ranker takes them."""
        return Batch(
            dense_BF=torch.from_numpy(rows.dense_NF),
            sparse=one_id_each(self._sparse, torch.from_numpy(np.ascontiguousarray(rows.sparse_NS.T))),
            semantic=self._semantic_bags(rows),
            clicked_B=torch.from_numpy(rows.index["clicked"].astype(np.float32)),
            row_B=torch.from_numpy(rows.row_N),
        )

    def _semantic_bags(self, rows: Rows) -> KeyedJaggedTensor:
        if self._semantic is None:
            keys = list(SEMANTIC_KEYS)
            return bags(keys, [_NO_VALUES] * len(keys), [_NO_LENGTHS] * len(keys))
        index = rows.index
        return self._semantic.lookup(
            index["product_index"], index["query_index"], index["history_start"], index["history_end"]
        )

    def _drop_ids(self, sparse_NS: NDArray[np.int32]) -> NDArray[np.int32]:
        """A share of the known ids becomes unknown: those that are missing or unknown stay as they are."""
        rng = self._generator(self._epoch, _ID_DROPOUT, self._rows_done)
        dropped_SN = rng.random(sparse_NS.shape[::-1], dtype=np.float32) < self._id_dropout
        dropped_NS = dropped_SN.T & (sparse_NS > self._oov_rows_S)
        oov_NS = 1 + sparse_NS % self._oov_rows_S
        result: NDArray[np.int32] = np.where(dropped_NS, oov_NS, sparse_NS).astype(np.int32)
        return result


_NO_VALUES = torch.empty(0, dtype=torch.int64)
_NO_LENGTHS = torch.empty(0, dtype=torch.int32)


@dataclass(frozen=True)
class _RowGroup:
    """Rows of a row group, or of a part of it: `rows` of them after the first `skipped`."""

    path: Path
    number: int
    rows: int
    first_row: int
    skipped: int = 0


def _row_groups(files: list[Path]) -> list[_RowGroup]:
    groups: list[_RowGroup] = []
    first_row = 0
    for path in files:
        metadata = pq.ParquetFile(path).metadata
        for number in range(metadata.num_row_groups):
            rows = metadata.row_group(number).num_rows
            groups.append(_RowGroup(path, number, rows, first_row))
            first_row += rows
    return groups


def _cut(groups: list[_RowGroup], part: slice) -> list[_RowGroup]:
    """Of the row groups, what lies in a part of the split."""
    cut: list[_RowGroup] = []
    for group in groups:
        first = max(group.first_row, part.start)
        rows = min(group.first_row + group.rows, part.stop) - first
        if rows > 0:
            cut.append(replace(group, rows=rows, first_row=first, skipped=first - group.first_row))
    return cut
