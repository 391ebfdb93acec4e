"""Puts the rows of a feature set together: ids, history offsets, dense and sparse features, slices.

Shapes: N impressions of a batch, P products, Q queries.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.columns.counters import PARTITION_OF_KEY, KeyCounters
from features.columns.transforms import Transform
from features.columns.vocabulary import Vocabulary
from features.offline.buckets import Buckets
from features.offline.fitted_columns import DenseColumn, SparseColumn
from features.offline.row_files import row_schema
from features.offline.splits import NO_QUERY, query_frequency
from features.offline.time_ordered_log import Tally


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
        self._counters = [(counter, counter.reader()) for counter in counters]
        self._counter_transforms = counter_transforms
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
        for counter, reader in self._counters:
            count_NC = reader.next(key_N[PARTITION_OF_KEY[counter.key]])
            columns |= counter.columns(count_NC, self._counter_transforms)
        oov: dict[str, npt.NDArray[np.bool_]] = {}
        for sparse, vocabulary in self._sparse:
            row_N = sparse.rows(batch)
            columns[vocabulary.name] = row_N
            oov[vocabulary.name] = vocabulary.is_oov(row_N)
        schema = self.schema(batch.schema.field("impression_id").type)
        arrays = [pa.array(columns[field.name], type=field.type) for field in schema]
        return pa.RecordBatch.from_arrays(arrays, schema=schema), oov
