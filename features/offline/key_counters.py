"""Counts of one key bucket by bucket: what a feature set stores until its rows are written.

Shapes: N rows, T tiles (distinct key and time), W windows, C = 2 W raw counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.columns.clock import DAY_US
from features.columns.counters import UNIT_US, CounterBlock, counter_names, smoothed_ctr
from features.columns.kernels import NO_CLICK, windowed_counts
from features.columns.transforms import ExactMoments, Transform
from features.offline.buckets import Buckets, Columns, ResultReader
from features.offline.splits import TRAIN
from features.schema import CounterConfig, CounterKey

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

#: A query x product counter lives in the bucket of its query.
PARTITION_OF_KEY: dict[CounterKey, str] = {
    "query": "query",
    "product": "product",
    "user": "user",
    "query_product": "query",
}


@dataclass(frozen=True)
class KeyCounts:
    """How one key is counted: functions of the rows of any bucket, whatever handed them out.

    Attributes:
        products: of the catalogue, which numbers pairs of query and product.
    """

    key: CounterKey
    config: CounterConfig
    products: int

    @property
    def names(self) -> tuple[str, ...]:
        """The dense columns: impressions, clicks and CTR, window by window."""
        return tuple(name for window in self.config.windows_days for name in counter_names(self.key, window))

    @property
    def columns(self) -> int:
        """Raw counts of a row, C."""
        return 2 * len(self.config.windows_days)

    def count(self, columns: Columns, *, order_N: Int64s | None = None) -> tuple[Int32s, Int32s]:
        """int32[T, C] of the tiles, and the tile of each row.

        `columns` has key, time_us, click_us and, of query x product, product. Every row of a key that lies in
        the longest window before a row, or was clicked there, must be among them.

        Args:
            order_N: `key_time_order` of key and time_us, if the caller has it.
        """
        counts = windowed_counts(
            self._keys(columns),
            self._units(columns["time_us"]),
            self._click_units(columns["click_us"]),
            windows=[days * DAY_US // self._unit_us for days in self.config.windows_days],
            order_N=None if self.key == "query_product" else order_N,
        )
        return counts.count_TC, counts.tile_of_row_N

    def moments(
        self, both_TC: Int32s, train_T: npt.NDArray[np.int64], *, prior_ctr: float
    ) -> dict[str, ExactMoments]:
        """Moments of counts and CTRs that `train_T` training rows have; any cut into parts merges exactly."""
        moments = {name: ExactMoments() for name in self.names}
        logs = np.log1p(np.arange(int(both_TC.max(initial=0)) + 1))
        for position, window in enumerate(self.config.windows_days):
            impressions, clicks, ctr = counter_names(self.key, window)
            shown_P, clicked_P, rows_P = _distinct_pairs(
                both_TC[:, 2 * position], both_TC[:, 2 * position + 1], train_T
            )
            for name, count_P in ((impressions, shown_P), (clicks, clicked_P)):
                # How many training rows have each count: far fewer logarithms than rows.
                rows_by_count = np.bincount(count_P, weights=rows_P, minlength=len(logs))
                moments[name].add(logs, rows_by_count.astype(np.int64))
            rate_P = smoothed_ctr(
                shown_P,
                clicked_P,
                prior_impressions=self.config.prior_impressions,
                prior_ctr=prior_ctr,
            )
            moments[ctr].add(rate_P, rows_P)
        return moments

    def absent_moments(self, train_rows: int, *, prior_ctr: float) -> dict[str, ExactMoments]:
        """Training moments of rows that lack the key: zero counts, hence the prior CTR."""
        moments = {name: ExactMoments() for name in self.names}
        for name, moment in moments.items():
            value = prior_ctr if "_ctr_" in name else 0.0
            moment.add(np.array([value]), np.array([train_rows]))
        return moments

    def block(self, transforms: Mapping[str, Transform], *, prior_ctr: float) -> CounterBlock:
        """What makes network inputs of raw counts."""
        return CounterBlock.of(self.key, self.config, transforms, prior_ctr=prior_ctr)

    @property
    def _unit_us(self) -> int:
        return UNIT_US[self.config.granularity]

    def _keys(self, columns: Columns) -> npt.NDArray[np.int64]:
        key_N = columns["key"].astype(np.int64)
        key_N -= key_N.min()
        if self.key == "query_product":
            key_N *= self.products  # both below 2^31: their product fits
            key_N += columns["product"]
        return key_N

    def _units(self, time_us_N: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        time_N = time_us_N.astype(np.int64, copy=False)
        return time_N if self._unit_us == 1 else time_N // self._unit_us

    def _click_units(self, click_us_N: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        return np.where(click_us_N == NO_CLICK, NO_CLICK, self._units(click_us_N))


class KeyCounters:
    """The counters of one key over one partition of the rows."""

    def __init__(self, counts: KeyCounts, buckets: Buckets, *, prior_ctr: float) -> None:
        self.counts = counts
        self._buckets = buckets
        self._prior_ctr = prior_ctr

    @property
    def partition(self) -> str:
        """The partition that its rows lie in."""
        return PARTITION_OF_KEY[self.counts.key]

    def count(self, bucket: int, columns: Columns, *, order_N: Int64s) -> dict[str, ExactMoments]:
        """Count one bucket, keep the counts of its rows, and return their training moments.

        `columns` is what `KeyCounts.count` reads, and split; `order_N` their `key_time_order`.
        """
        both_TC, tile_of_row_N = self.counts.count(columns, order_N=order_N)
        narrow_TC = both_TC.astype(np.min_scalar_type(int(both_TC.max(initial=0))))
        self._buckets.write_result(self.counts.key, bucket, narrow_TC.take(tile_of_row_N, axis=0))
        train_T = np.bincount(tile_of_row_N[columns["split"] == TRAIN], minlength=len(both_TC))
        return self.counts.moments(both_TC, train_T, prior_ctr=self._prior_ctr)

    def count_absent(self, train_rows: int) -> dict[str, ExactMoments]:
        """Training moments of rows that lack the key."""
        return self.counts.absent_moments(train_rows, prior_ctr=self._prior_ctr)

    def reader(self) -> ResultReader:
        """Raw counts of all rows: impressions and clicks of each window."""
        return self._buckets.results(self.counts.key, columns=self.counts.columns)

    def block(self, transforms: Mapping[str, Transform]) -> CounterBlock:
        """What makes network inputs of the counts that `reader` gives."""
        return self.counts.block(transforms, prior_ctr=self._prior_ctr)


def merge_moments(into: dict[str, ExactMoments], part: dict[str, ExactMoments]) -> None:
    """Add one bucket's moments; the order of the buckets does not matter."""
    for name, moment in part.items():
        into.setdefault(name, ExactMoments()).merge(moment)


def _distinct_pairs(shown_T: Int32s, clicked_T: Int32s, rows_T: Int64s) -> tuple[Int64s, Int64s, Int64s]:
    """Pairs of impressions and clicks, with how many rows have each: far fewer than tiles, as a rule.

    Where numbers are few and large, the tiles themselves.
    """
    width = int(clicked_T.max(initial=0)) + 1
    if (int(shown_T.max(initial=0)) + 1) * width > 4 * len(shown_T):
        return shown_T.astype(np.int64), clicked_T.astype(np.int64), rows_T
    pair_T = shown_T.astype(np.int64)
    pair_T *= width
    pair_T += clicked_T
    rows_P = np.bincount(pair_T, weights=rows_T).astype(np.int64)
    pairs = np.flatnonzero(rows_P)
    return *np.divmod(pairs, width), rows_P[pairs]
