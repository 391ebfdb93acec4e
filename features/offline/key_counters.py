"""Counts of one key bucket by bucket: what a feature set stores until its rows are written.

Shapes: N rows, T tiles (distinct key and time), W windows, C = 2 W raw counts.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from features.columns.clock import DAY_US
from features.columns.counters import UNIT_US, CounterBlock, counter_names, smoothed_ctr
from features.columns.kernels import NO_CLICK, windowed_counts
from features.columns.transforms import ExactMoments, Transform
from features.offline.buckets import Buckets, Columns, ResultReader
from features.offline.splits import TRAIN
from features.schema import CounterConfig, CounterKey

#: A query x product counter lives in the bucket of its query.
PARTITION_OF_KEY: dict[CounterKey, str] = {
    "query": "query",
    "product": "product",
    "user": "user",
    "query_product": "query",
}


class KeyCounters:
    """The counters of one key over one partition of the rows."""

    def __init__(
        self, key: CounterKey, buckets: Buckets, config: CounterConfig, *, prior_ctr: float, products: int
    ) -> None:
        self.key = key
        self._buckets = buckets
        self._config = config
        self._prior_ctr = prior_ctr
        self._products = products
        self._unit_us = UNIT_US[config.granularity]
        self.names = tuple(name for window in config.windows_days for name in counter_names(key, window))

    def count(self, bucket: int, columns: Columns) -> dict[str, ExactMoments]:
        """Count one bucket, keep the counts of its rows, and return their training moments.

        `columns` has key, time_us, click_us, split and, in the query partition, product.
        """
        counts = windowed_counts(
            self._keys(columns),
            self._units(columns["time_us"]),
            self._click_units(columns["click_us"]),
            windows=[days * DAY_US // self._unit_us for days in self._config.windows_days],
        )
        tile_of_row_N = counts.tile_of_row_N
        both_TC = np.stack([counts.impressions_TW, counts.clicks_TW], axis=2).reshape(
            len(counts.clicks_TW), -1
        )
        self._buckets.write_result(self.key, bucket, both_TC[tile_of_row_N])
        train_T = np.bincount(tile_of_row_N[columns["split"] == TRAIN], minlength=len(both_TC))
        moments = {name: ExactMoments() for name in self.names}
        logs = np.log1p(np.arange(int(both_TC.max(initial=0)) + 1))
        for position, window in enumerate(self._config.windows_days):
            impressions, clicks, ctr = counter_names(self.key, window)
            shown_T, clicked_T = counts.impressions_TW[:, position], counts.clicks_TW[:, position]
            for name, count_T in ((impressions, shown_T), (clicks, clicked_T)):
                # How many training rows have each count: far fewer logarithms than rows.
                rows_by_count = np.bincount(count_T, weights=train_T, minlength=len(logs))
                moments[name].add(logs, rows_by_count.astype(np.int64))
            rate_T = smoothed_ctr(
                shown_T,
                clicked_T,
                prior_impressions=self._config.prior_impressions,
                prior_ctr=self._prior_ctr,
            )
            moments[ctr].add(rate_T, train_T)
        return moments

    def count_absent(self, train_rows: int) -> dict[str, ExactMoments]:
        """Training moments of rows that lack the key: zero counts, hence the prior CTR."""
        moments = {name: ExactMoments() for name in self.names}
        for name, moment in moments.items():
            value = self._prior_ctr if "_ctr_" in name else 0.0
            moment.add(np.array([value]), np.array([train_rows]))
        return moments

    def reader(self) -> ResultReader:
        """Raw counts of all rows: impressions and clicks of each window."""
        return self._buckets.results(self.key, columns=2 * len(self._config.windows_days))

    def block(self, transforms: Mapping[str, Transform]) -> CounterBlock:
        """What makes network inputs of the counts that `reader` gives."""
        return CounterBlock.of(self.key, self._config, transforms, prior_ctr=self._prior_ctr)

    def _keys(self, columns: Columns) -> npt.NDArray[np.int64]:
        key_N = columns["key"].astype(np.int64)
        key_N -= key_N.min()
        if self.key == "query_product":
            key_N *= self._products  # both below 2^31: their product fits
            key_N += columns["product"]
        return key_N

    def _units(self, time_us_N: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        time_N = time_us_N.astype(np.int64, copy=False)
        return time_N if self._unit_us == 1 else time_N // self._unit_us

    def _click_units(self, click_us_N: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        return np.where(click_us_N == NO_CLICK, NO_CLICK, self._units(click_us_N))


def merge_moments(into: dict[str, ExactMoments], part: dict[str, ExactMoments]) -> None:
    """Add one bucket's moments; the order of the buckets does not matter."""
    for name, moment in part.items():
        into.setdefault(name, ExactMoments()).merge(moment)
