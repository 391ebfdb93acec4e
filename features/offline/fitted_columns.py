"""Dense and sparse columns of impressions: fitted on the training window, then applied to every batch.

Shapes: N impressions of a batch, K distinct ids of a column, P products.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.columns.clock import VALUES_OF_PART, timestamp_part
from features.columns.transforms import Moments, Transform, from_signed_log, signed_log
from features.columns.vocabulary import MISSING_ROW, Vocabulary
from features.offline.log_reader import KEY_OF_COLUMN, LogError, LogReader, encode_ids
from features.schema import DenseFeature, SparseFeature

Floats = npt.NDArray[np.float64]
Int32s = npt.NDArray[np.int32]


class DenseColumn:
    """One dense feature: gathers its training moments, then transforms."""

    def __init__(self, feature: DenseFeature, reader: LogReader) -> None:
        self.feature = feature
        self._moments = Moments()
        self._transform: Transform | None = None
        self._value_P: Floats | None = None
        if feature.source == "products":
            self._value_P = _floats(reader.product_column(feature.column, as_number=True))

    def observe(self, batch: pa.RecordBatch, train_N: npt.NDArray[np.bool_]) -> None:
        """Take in the training rows of a batch."""
        value_N = self._values(batch)[train_N]
        self._moments.add(signed_log(value_N) if self.feature.transform == "log" else value_N)

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


class SparseColumn:
    """One sparse feature: counts its ids in the training window, then gives each id its row."""

    def __init__(self, feature: SparseFeature, reader: LogReader) -> None:
        self.feature = feature
        self._code_P: Int32s | None = None
        if feature.source == "products":
            column = reader.product_column(feature.column, as_number=False)
            self._ids, self._code_P = encode_ids(column)
        elif feature.source == "timestamp":
            self._ids = pa.array(range(VALUES_OF_PART[feature.column]), pa.int64())
        else:
            self._ids = reader.indexes[KEY_OF_COLUMN.get(feature.column, f"id:{feature.column}")].ids
        # The last place is for code -1, an id that is missing.
        self._train_count_K = np.zeros(len(self._ids) + 1, dtype=np.int64)
        self._row_K = np.zeros(len(self._ids) + 1, dtype=np.int32)

    def observe(self, batch: pa.RecordBatch, train_N: npt.NDArray[np.bool_]) -> None:
        """Take in the training rows of a batch."""
        np.add.at(self._train_count_K, self._codes(batch)[train_N], 1)

    def fit(self) -> Vocabulary:
        """The vocabulary of the training window."""
        vocabulary = Vocabulary.from_counts(
            self.feature.name,
            self._ids,
            self._train_count_K[:-1],
            min_count=self.feature.min_count,
            oov_rows=self.feature.oov_rows,
        )
        self._row_K[:-1] = vocabulary.rows_of(self._ids)
        self._row_K[-1] = MISSING_ROW
        return vocabulary

    def rows(self, batch: pa.RecordBatch) -> Int32s:
        """Row of the embedding table for each impression."""
        return self._row_K[self._codes(batch)]

    def _codes(self, batch: pa.RecordBatch) -> Int32s:
        source, column = self.feature.source, self.feature.column
        if source == "timestamp":
            return timestamp_part(column, batch.column("time_us").to_numpy())
        if self._code_P is not None:
            return self._code_P[batch.column("product").to_numpy()]
        name = KEY_OF_COLUMN.get(column, f"id:{column}")
        codes_N: Int32s = batch.column(name).to_numpy()
        return codes_N


def _floats(values: pa.Array) -> Floats:
    """float64, NaN for null."""
    value_N: Floats = values.to_numpy(zero_copy_only=False).astype(np.float64)
    return value_N
