"""Dense and sparse columns of impressions: fitted on the training window, then applied to every batch.

Shapes: N impressions of a batch, K distinct ids of a column, P products.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from features.columns.clock import VALUES_OF_PART, timestamp_part
from features.columns.transforms import Moments, Transform, from_signed_log, signed_log
from features.columns.vocabulary import MISSING_ROW, Vocabulary, is_shared_row
from features.offline.log_checks import LogError
from features.offline.log_reader import KEY_OF_COLUMN, IdIndex, encode_ids
from features.schema import DenseFeature, SparseFeature

Floats = npt.NDArray[np.float64]
Int32s = npt.NDArray[np.int32]


class LogIds(Protocol):
    """The ids of a log, numbered, and its catalogue: a `LogReader`, or what a cluster has counted."""

    @property
    def indexes(self) -> Mapping[str, IdIndex]: ...

    def product_column(self, column: str, *, as_number: bool) -> pa.Array: ...


class DenseColumn:
    """One dense feature: gathers its training moments, then transforms."""

    def __init__(self, feature: DenseFeature, reader: LogIds) -> None:
        self.feature = feature
        self._moments = Moments()
        self._transform: Transform | None = None
        self._value_P: Floats | None = None
        if feature.source == "products":
            self._value_P = _floats(reader.product_column(feature.column, as_number=True))

    def observe(self, batch: pa.RecordBatch, train_N: npt.NDArray[np.bool_]) -> None:
        """Take in the training rows of a batch."""
        self.merge(self.moments_of(batch, train_N))

    def moments_of(self, batch: pa.RecordBatch, train_N: npt.NDArray[np.bool_]) -> Moments:
        """The moments of the training rows of one batch."""
        value_N = self._values(batch)[train_N]
        return Moments.of(signed_log(value_N) if self.feature.transform == "log" else value_N)

    def merge(self, part: Moments) -> None:
        """Take in the moments of the next batch, in time order."""
        self._moments.merge(part)

    def fit(self) -> Transform:
        """The transform of the training window.

        Raises:
            LogError: all training values are missing.
        """
        if not self._moments.count:
            raise LogError(
                f"dense feature {self.feature.name!r}: column {self.feature.column!r} has no value in the "
                "training window; remove the feature"
            )
        bounds = self._moments.low, self._moments.high
        if self.feature.transform == "log":
            bounds = from_signed_log(bounds[0]), from_signed_log(bounds[1])
        self._transform = Transform(
            kind=self.feature.transform,
            mean=self._moments.mean,
            sd=self._moments.sd,
            missing_column=self._moments.missing > 0,
            bounds=bounds,
        )
        return self._transform

    @property
    def names(self) -> tuple[str, ...]:
        """The column, and its `_missing` companion if the training window has nulls."""
        assert self._transform is not None
        name = self.feature.name
        return (name, f"{name}_missing") if self._transform.missing_column else (name,)

    def columns(self, batch: pa.RecordBatch) -> dict[str, npt.NDArray[np.float32]]:
        """What the network sees."""
        assert self._transform is not None
        value_N = self._values(batch)
        scaled_N = self._transform.apply(value_N)
        if not np.isfinite(scaled_N).all():
            worst = value_N[~np.isfinite(scaled_N)][0]
            raise LogError(
                f"dense feature {self.feature.name!r}: column {self.feature.column!r} holds {worst:g}, too "
                f"far from the training window (mean {self._transform.mean:g}, sd {self._transform.sd:g}) "
                "for the network to read; correct it or write null"
            )
        result = {self.feature.name: scaled_N}
        if self._transform.missing_column:
            result[f"{self.feature.name}_missing"] = np.isnan(value_N).astype(np.float32)
        return result

    def _values(self, batch: pa.RecordBatch) -> Floats:
        if self.feature.source == "timestamp":
            time_us_N = batch.column("time_us").to_numpy()
            return timestamp_part(self.feature.column, time_us_N).astype(np.float64)
        if self._value_P is not None:
            return self._value_P[batch.column("product").to_numpy()]
        return _floats(batch.column(f"dense:{self.feature.name}"))


@dataclass(frozen=True)
class SparseCodes:
    """Which of its distinct ids a sparse feature has in each impression.

    Attributes:
        code_P: of a feature of products; None of another.
    """

    feature: SparseFeature
    code_P: Int32s | None = None

    def of(self, batch: pa.RecordBatch) -> Int32s:
        """Position among the ids, -1 where there is none."""
        source, column = self.feature.source, self.feature.column
        if source == "timestamp":
            return timestamp_part(column, batch.column("time_us").to_numpy())
        if self.code_P is not None:
            return self.code_P[batch.column("product").to_numpy()]
        name = KEY_OF_COLUMN.get(column, f"id:{column}")
        codes_N: Int32s = batch.column(name).to_numpy()
        return codes_N


@dataclass(frozen=True)
class SparseRows:
    """A fitted sparse feature: the row of the embedding table for each impression.

    Attributes:
        row_K: of each id; the last place is for code -1, an id that is missing.
    """

    codes: SparseCodes
    oov_rows: int
    row_K: Int32s

    @property
    def name(self) -> str:
        """The column of the row files."""
        return self.codes.feature.name

    def of(self, batch: pa.RecordBatch) -> Int32s:
        """Row of the embedding table for each impression."""
        return self.row_K[self.codes.of(batch)]

    def is_oov(self, row_N: Int32s) -> npt.NDArray[np.bool_]:
        """Whether each row is one that unknown ids share."""
        return is_shared_row(row_N, self.oov_rows)


class SparseColumn:
    """One sparse feature: counts its ids in the training window, then gives each id its row."""

    def __init__(self, feature: SparseFeature, reader: LogIds) -> None:
        self.feature = feature
        code_P: Int32s | None = None
        if feature.source == "products":
            column = reader.product_column(feature.column, as_number=False)
            self._ids, code_P = encode_ids(column)
        elif feature.source == "timestamp":
            self._ids = pa.array(range(VALUES_OF_PART[feature.column]), pa.int64())
        else:
            self._ids = reader.indexes[KEY_OF_COLUMN.get(feature.column, f"id:{feature.column}")].ids
        self.codes = SparseCodes(feature, code_P)
        # The last place is for code -1, an id that is missing.
        self._train_count_K = np.zeros(len(self._ids) + 1, dtype=np.int64)

    def observe(self, batch: pa.RecordBatch, train_N: npt.NDArray[np.bool_]) -> None:
        """Take in the training rows of a batch."""
        np.add.at(self._train_count_K, self.codes.of(batch)[train_N], 1)

    def add(self, code_K: npt.NDArray[np.int64], count_K: npt.NDArray[np.int64]) -> None:
        """Take in how many training rows have each code."""
        np.add.at(self._train_count_K, code_K, count_K)

    def fit(self) -> tuple[Vocabulary, SparseRows]:
        """The vocabulary of the training window, and what gives each impression its row."""
        vocabulary = Vocabulary.from_counts(
            self.feature.name,
            self._ids,
            self._train_count_K[:-1],
            min_count=self.feature.min_count,
            oov_rows=self.feature.oov_rows,
        )
        row_K = np.append(vocabulary.rows_of(self._ids), np.int32(MISSING_ROW))
        return vocabulary, SparseRows(self.codes, vocabulary.oov_rows, row_K)


@dataclass(frozen=True)
class FittedColumns:
    """What the training window taught, of all columns."""

    vocabularies: tuple[Vocabulary, ...]
    sparse_rows: tuple[SparseRows, ...]
    transforms: Mapping[str, Transform]

    @classmethod
    def of(
        cls,
        dense: Sequence[DenseColumn],
        sparse: Sequence[SparseColumn],
        *,
        counter_transforms: Mapping[str, Transform],
    ) -> "FittedColumns":
        """Fit all columns.

        Raises:
            LogError: all training values of a dense column are missing.
        """
        transforms = {column.feature.name: column.fit() for column in dense}
        fitted = [column.fit() for column in sparse]
        return cls(
            tuple(vocabulary for vocabulary, _ in fitted),
            tuple(rows for _, rows in fitted),
            {**transforms, **counter_transforms},
        )

    def write_vocabularies(self, folder: Path) -> None:
        """Write `vocabularies/` of a feature set."""
        (folder / "vocabularies").mkdir()
        for vocabulary in self.vocabularies:
            path = folder / "vocabularies" / f"{vocabulary.name}.parquet"
            pq.write_table(vocabulary.table(), path, compression="zstd")


def _floats(values: pa.Array) -> Floats:
    """float64, NaN for null."""
    value_N: Floats = values.to_numpy(zero_copy_only=False).astype(np.float64)
    return value_N
