"""Pretrained vectors of a generation: found by id, memory-mapped; row 0 is zeros, for what has no vector.

    vectors/product/  vectors.npy [1 + K, D] (and vectors.scale.npy if quantised), ids/, rows.npy [P],
                      projections.npy [1 + K, P] if the model looks them up
    vectors/query/    vectors.npy [1 + K, D], ids/

A vector of zeros says no more than a missing one, so ids whose vector is zeros are left out.

Shapes: K ids with a vector, P products of the snapshot, N candidates, D embedding width.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.columns.id_map import IdMap
from serving.package.tables import ServingTable, TableDtype, open_table, write_table, zero_rows

TABLE, IDS, ROWS, PROJECTIONS = "vectors.npy", "ids", "rows.npy", "projections.npy"


@dataclass(frozen=True)
class SourceVectors:
    """Vectors to be written: that of `ids[i]` is `vectors_MD[i + 1]`, row 0 is not read.

    Attributes:
        created: when they were made, ISO 8601.
    """

    ids: pa.Array
    vectors_MD: npt.NDArray[np.floating]
    encoder_id: str
    created: str

    @property
    def dim(self) -> int:
        """D."""
        return int(self.vectors_MD.shape[1])


def write_vectors(folder: Path, source: SourceVectors, *, dtype: TableDtype) -> None:
    """Write the table and the ids of one kind.

    Raises:
        TableError: a number is not finite in `dtype`.
    """
    folder.mkdir(parents=True)
    kept = np.flatnonzero(~zero_rows(source.vectors_MD[1:]))
    rows_MD = np.concatenate([np.zeros_like(source.vectors_MD[:1]), source.vectors_MD[1:][kept]])
    write_table(folder / TABLE, rows_MD, dtype=dtype)
    IdMap.write(folder / IDS, source.ids.take(pa.array(kept)))


def link_folder(source: Path, target: Path, *, but: Sequence[str] = ()) -> None:
    """The same files once more: hard links where the file system has them, else copies.

    Args:
        but: names of files directly in `source` that are left out.
    """
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if path.is_file() and str(name) not in but:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target / name)
            except OSError:
                shutil.copyfile(path, target / name)


def write_product_rows(folder: Path, row_P: npt.NDArray[np.int64]) -> None:
    """Write the table row of each product of the snapshot, 0 for those without a vector."""
    np.save(folder / ROWS, row_P.astype(np.int32))


def find_any(ids: IdMap, wanted: pa.Array) -> npt.NDArray[np.int64]:
    """`IdMap.find`, with ids of the other kind (text for integers) merely unknown."""
    try:
        return ids.find(wanted)
    except TypeError:
        return np.full(len(wanted), -1, np.int64)


@dataclass(frozen=True, eq=False)
class ProductVectors:
    """Table rows by product.

    Attributes:
        row_P: of each product of the snapshot, and one 0 more: position -1 ("unknown") reads it.
        projections: None if the model computes them.
    """

    table: ServingTable
    projections: ServingTable | None
    ids: IdMap
    row_P: npt.NDArray[np.int64]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map the files. The rows are read: 8 bytes a product."""
        row_P = np.load(folder / ROWS, allow_pickle=False).astype(np.int64)
        return cls(
            open_table(folder / TABLE),
            open_table(folder / PROJECTIONS) if (folder / PROJECTIONS).exists() else None,
            IdMap.open(folder / IDS),
            np.append(row_P, 0),
        )

    def rows(self, product_N: npt.NDArray[np.int64], ids: pa.Array) -> npt.NDArray[np.int64]:
        """Table rows of products by their position in the snapshot, -1 where it lacks them.

        A product that is newer than the snapshot may have a vector already: it is found by its id.
        """
        row_N = self.row_P[product_N]
        unknown = np.flatnonzero(product_N < 0)
        if len(unknown):
            row_N[unknown] = find_any(self.ids, ids.take(pa.array(unknown))) + 1
        return row_N


@dataclass(frozen=True, eq=False)
class QueryVectors:
    """Vectors of the queries that are known beforehand."""

    table: ServingTable
    ids: IdMap

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map the files."""
        return cls(open_table(folder / TABLE), IdMap.open(folder / IDS))

    @property
    def dim(self) -> int:
        """D."""
        return self.table.dim

    def vector(self, query: str) -> npt.NDArray[np.float32] | None:
        """Vector [D] of one query, None if it is not known."""
        position = self.ids.find_one(query)
        return None if position < 0 else self.table.lookup([position + 1])[0]
