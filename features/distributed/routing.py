"""Which bucket a row of the log belongs to: ranges of keys, and slices of time of the keys that are too hot.

A bucket is a range of consecutive keys with about equal traffic. A key with more rows than a bucket should
hold has buckets of its own, one for each slice of time as long as the longest window. A slice is given the
rows before it, too, that its own rows look back to (its halo): those whose impression or click came less than
a window before its start. What is counted there for its own rows is exactly what the whole key would give.

Shapes: N rows, K keys, B ranges, H hot keys, S slices.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.columns.clock import DAY_US
from features.columns.kernels import NO_CLICK
from features.distributed.engine import BUCKET
from features.offline.buckets import bucket_of_keys

#: Column that says what a row is to its bucket.
KIND = "kind"
OWN, HALO, PURCHASE = 0, 1, 2

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class KeyRoutes:
    """The buckets of one key.

    Attributes:
        start_B: first key of each range.
        hot_H: keys with slices of their own, in rising order.
        slices: S; the bucket of hot key h and slice s is B + h S + s.
        origin_us, width_us: where the first slice starts, and the length of each.
    """

    start_B: Int64s
    hot_H: Int64s
    slices: int
    origin_us: int
    width_us: int

    @classmethod
    def of(
        cls, weight_K: Int64s, *, buckets: int, hot_rows: int, first_us: int, last_us: int, window_days: int
    ) -> "KeyRoutes":
        """
        Args:
            weight_K: rows of each key.
            hot_rows: a key with more rows is hot.
            window_days: the longest window; slices are as long, and start at midnight.
        """
        hot_H = np.flatnonzero(weight_K > hot_rows)
        cool_K = weight_K.copy()
        cool_K[hot_H] = 0
        start_B = np.searchsorted(bucket_of_keys(cool_K, buckets), np.arange(buckets))
        origin_us, width_us = first_us // DAY_US * DAY_US, window_days * DAY_US
        return cls(start_B, hot_H, (last_us - origin_us) // width_us + 1, origin_us, width_us)

    @property
    def count(self) -> int:
        """Buckets in all."""
        return len(self.start_B) + len(self.hot_H) * self.slices

    def route(self, rows: pa.Table, key: str) -> pa.Table:
        """The impressions with their `BUCKET`, and what hot keys' later slices need of them as `HALO`.

        Rows without the key (-1) are spread evenly: nothing is counted for them.
        """
        key_N = rows.column(key).to_numpy()
        bucket_N = np.searchsorted(self.start_B, key_N, side="right") - 1
        nobody = np.flatnonzero(key_N < 0)
        bucket_N[nobody] = rows.column("product").to_numpy()[nobody] % len(self.start_B)
        hot_N, number_N = self._hot(key_N)
        hot = np.flatnonzero(hot_N)
        if not len(hot):
            return _with(rows, bucket_N, OWN)
        time_us_N = rows.column("time_us").to_numpy()[hot]
        click_us_N = rows.column("click_us").to_numpy()[hot]
        slice_N = self._slice(time_us_N)
        first_N = len(self.start_B) + number_N[hot] * self.slices
        bucket_N[hot] = first_N + slice_N
        known_us_N = np.where(click_us_N == NO_CLICK, time_us_N, np.maximum(time_us_N, click_us_N))
        # The last slice that starts at most a window, which is a slice's length, after the row or its click.
        last_N = np.minimum(self._slice(known_us_N) + 1, self.slices - 1)
        routed = [_with(rows, bucket_N, OWN)]
        for later in range(1, int((last_N - slice_N).max(initial=0)) + 1):
            needed = np.flatnonzero(slice_N + later <= last_N)
            copies = rows.take(pa.array(hot[needed]))
            routed.append(_with(copies, (first_N + slice_N + later)[needed], HALO))
        return pa.concat_tables(routed)

    def route_purchases(self, rows: pa.Table, key: str) -> pa.Table:
        """Purchases with their `BUCKET`; those of a hot key go to each of its slices."""
        key_N = rows.column(key).to_numpy()
        bucket_N = np.searchsorted(self.start_B, key_N, side="right") - 1
        hot_N, number_N = self._hot(key_N)
        hot = np.flatnonzero(hot_N)
        if not len(hot):
            return _with(rows, bucket_N, PURCHASE)
        first_N = len(self.start_B) + number_N[hot] * self.slices
        bucket_N[hot] = first_N
        of_hot = rows.take(pa.array(hot))
        later = [_with(of_hot, first_N + number, PURCHASE) for number in range(1, self.slices)]
        return pa.concat_tables([_with(rows, bucket_N, PURCHASE), *later])

    def whole_keys(self) -> "KeyRoutes":
        """The same ranges without slices: each hot key has one bucket of its own."""
        return replace(self, slices=1)

    def _hot(self, key_N: Int64s) -> tuple[npt.NDArray[np.bool_], Int64s]:
        number_N = np.searchsorted(self.hot_H, key_N)
        known_N = number_N < len(self.hot_H)
        hot_N = np.zeros(len(key_N), dtype=bool)
        hot_N[known_N] = self.hot_H[number_N[known_N]] == key_N[known_N]
        return hot_N, number_N

    def _slice(self, time_us_N: Int64s) -> Int64s:
        number_N: Int64s = np.clip((time_us_N - self.origin_us) // self.width_us, 0, self.slices - 1)
        return number_N


def _with(rows: pa.Table, bucket_N: Int64s, kind: int) -> pa.Table:
    for name, values in (
        (BUCKET, pa.array(bucket_N.astype(np.int32))),
        (KIND, pa.array(np.full(len(rows), kind, np.int8))),
    ):
        place = rows.schema.get_field_index(name)
        rows = rows.append_column(name, values) if place < 0 else rows.set_column(place, name, values)
    return rows
