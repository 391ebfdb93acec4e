"""Purchase histories as offsets into one array of events, and that array.

Shapes: E purchase events sorted by (user_index, timestamp, purchase_id), U users, N impressions.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numpy.lib.format import open_memmap

from features.columns.kernels import history_offsets, next_same_product

#: Purchases of which it is known where the user's next one of the same product lies.
EVENT_SCHEMA = pa.schema([("product", pa.int32()), ("time_us", pa.int64()), ("next", pa.int64())])


#: So many events, and no more, have places that fit into 32 bits.
_EVENTS_OF_INT32 = 2**31 - 1


def offset_dtype(events: int) -> np.dtype[np.integer]:
    """Of places among so many events, 0 to `events`: int32 as long as they fit, then int64."""
    return np.dtype(np.int32 if events <= _EVENTS_OF_INT32 else np.int64)


class EventWriter:
    """Writes `history/` of a feature set and finds the offsets of impressions, a range of users at a time."""

    def __init__(
        self, folder: Path, batches: Iterator[pa.RecordBatch], *, purchases_U: npt.NDArray[np.int64]
    ) -> None:
        """
        Args:
            folder: made here.
            batches: purchases with `product` and `time_us`, in the order of the events; those of EVENT_SCHEMA
                need no `link`.
            purchases_U: how many of them each user has.
        """
        folder.mkdir(parents=True)
        self.user_start_U = np.concatenate([[0], np.cumsum(purchases_U)])
        self.events = int(self.user_start_U[-1])
        self.offset_dtype = offset_dtype(self.events)
        np.save(folder / "user_start.npy", self.user_start_U)
        self._product_E = _new(folder / "product_index.npy", np.int32, self.events)
        self._time_us_E = _new(folder / "timestamp_us.npy", np.int64, self.events)
        self._next_E = _new(folder / "next_same_product.npy", self.offset_dtype, self.events)
        position = 0
        for batch in batches:
            end = position + len(batch)
            self._product_E[position:end] = batch.column("product").to_numpy()
            self._time_us_E[position:end] = batch.column("time_us").to_numpy()
            if batch.schema == EVENT_SCHEMA:
                self._next_E[position:end] = batch.column("next").to_numpy()
            position = end
        assert position == self.events, "purchases were lost between counting and reading them"

    def link(self, first_user: int, last_user: int) -> None:
        """Fill `next_same_product` for users first..last - 1."""
        start, end, user_E = self._range(first_user, last_user)
        next_E = next_same_product(user_E, self._product_E[start:end])
        self._next_E[start:end] = np.where(next_E == end - start, self.events, next_E + start)

    def offsets(
        self,
        user_N: npt.NDArray[np.int32],
        time_us_N: npt.NDArray[np.int64],
        *,
        first_user: int,
        last_user: int,
        window_us: int,
        order_N: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.integer]:
        """[N, 2] of `offset_dtype`: where histories of impressions of users first..last - 1 start and end.

        `order_N` is the `key_time_order` of the impressions, if the caller has it.
        """
        start, end, user_E = self._range(first_user, last_user)
        offsets = history_offsets(
            user_N - np.int32(first_user),
            time_us_N,
            user_E,
            self._time_us_E[start:end],
            window=window_us,
            order_N=order_N,
        )
        return np.stack(offsets, axis=1).astype(self.offset_dtype) + self.offset_dtype.type(start)

    def finish(self) -> None:
        """Flush the arrays to disk."""
        for array in (self._product_E, self._time_us_E, self._next_E):
            if isinstance(array, np.memmap):
                array.flush()

    def _range(self, first_user: int, last_user: int) -> tuple[int, int, npt.NDArray[np.int64]]:
        starts = self.user_start_U[first_user : last_user + 1]
        user_E = np.repeat(np.arange(last_user - first_user), np.diff(starts))
        return int(starts[0]), int(starts[-1]), user_E


def _new(path: Path, dtype: npt.DTypeLike, length: int) -> npt.NDArray[Any]:
    if length == 0:  # an empty file cannot be memory-mapped
        np.save(path, np.zeros(0, dtype=dtype))
        return np.zeros(0, dtype=dtype)
    array: npt.NDArray[Any] = open_memmap(path, mode="w+", dtype=dtype, shape=(length,))
    return array
