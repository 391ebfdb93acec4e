"""Rows of one split in any order: what a permutation needs, with memory that does not grow with the split.

Columns are decoded once, row group by row group, into memory-mapped files; batches gather rows from these.

Shapes: N rows of the split, B rows of a batch, F dense and S sparse columns.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.batches.batch import SEMANTIC_KEYS, Batch, one_id_each
from features.batches.pretrained_rows import SemanticRows
from features.feature_set import FeatureSet

Rows = NDArray[np.int64]
_INDEX = ("product_index", "query_index", "history_start", "history_end")
_SLICES = ("clicked", "slice_has_purchases", "slice_seen_product", "slice_query_frequency")


@dataclass(frozen=True)
class SplitRows:
    """Random access to the rows of a split; valid within `open_split`."""

    sparse_names: tuple[str, ...]
    dense_NF: NDArray[np.float32]
    sparse_NS: NDArray[np.int32]
    index_N4: NDArray[np.int32]
    #: int8 columns in memory: clicked and the slices.
    flags: dict[str, NDArray[np.int8]]

    def __len__(self) -> int:
        return len(self.dense_NF)

    def batch(self, row_B: Rows, semantic: SemanticRows | None) -> Batch:
        """The rows in the order given, as the ranker takes them."""
        sparse_SB = np.ascontiguousarray(self.sparse_NS[row_B].T)
        return Batch(
            dense_BF=torch.from_numpy(self.dense_NF[row_B]),
            sparse=one_id_each(list(self.sparse_names), torch.from_numpy(sparse_SB)),
            semantic=self.bags(row_B, semantic),
            clicked_B=torch.from_numpy(self.flags["clicked"][row_B].astype(np.float32)),
            row_B=torch.from_numpy(row_B),
        )

    def bags(self, row_B: Rows, semantic: SemanticRows | None) -> KeyedJaggedTensor:
        """Rows of the pretrained tables; no bags where the ranker reads none."""
        if semantic is None:
            return KeyedJaggedTensor(
                keys=list(SEMANTIC_KEYS),
                values=torch.empty(0, dtype=torch.int64),
                lengths=torch.empty(0, dtype=torch.int32),
            )
        index_4B = np.ascontiguousarray(self.index_N4[row_B].T)
        return semantic.lookup(*index_4B)


@contextmanager
def open_split(feature_set: FeatureSet, split: str, *, scratch: Path | None = None) -> Iterator[SplitRows]:
    """Decode a split into files that are removed at the end of the block.

    Args:
        scratch: folder for them; the system's temporary folder if None.
    """
    manifest = feature_set.manifest
    dense, sparse = list(manifest.dense_columns), [column.name for column in manifest.sparse_columns]
    files = [pq.ParquetFile(path) for path in feature_set.split_files(split)]
    rows = sum(file.metadata.num_rows for file in files)
    with TemporaryDirectory(prefix=".importance-", dir=scratch) as folder:
        matrices = {
            name: np.lib.format.open_memmap(
                Path(folder) / f"{name}.npy", mode="w+", dtype=dtype, shape=(rows, width)
            )
            for name, dtype, width in (
                ("dense", np.float32, len(dense)),
                ("sparse", np.int32, len(sparse)),
                ("index", np.int32, len(_INDEX)),
            )
        }
        flags = {name: np.empty(rows, np.int8) for name in _SLICES}
        end = 0
        for file in files:
            for number in range(file.metadata.num_row_groups):
                table = file.read_row_group(number, [*_INDEX, *_SLICES, *dense, *sparse])
                start, end = end, end + table.num_rows
                for matrix, names in (("dense", dense), ("sparse", sparse), ("index", _INDEX)):
                    for i, name in enumerate(names):
                        matrices[matrix][start:end, i] = table[name].to_numpy()
                for name, column in flags.items():
                    column[start:end] = table[name].to_numpy()
        yield SplitRows(tuple(sparse), matrices["dense"], matrices["sparse"], matrices["index"], flags)
