"""Point-in-time kernels on NumPy arrays: windowed counters, history offsets, next purchase of a product.

They know nothing of files or engines, so a driver may call them on any bucket of keys, and a server on its
own snapshot. Each pair (key, time) is placed on one int64 line, key by key, where a trailing window is a
distance and a count is the difference of two positions: O(n log n) whatever the window and however hot a key.

Shapes: N impressions, T tiles (distinct pairs of key and time), W windows, E purchase events.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

_INT64_MAX = int(np.iinfo(np.int64).max)

#: Stands for "not clicked" among click times.
NO_CLICK = int(np.iinfo(np.int64).min)


class KeyOverflowError(ValueError):
    """A pair (key, time) that would not fit into 64 bits, where NumPy would wrap around silently."""


@dataclass(frozen=True)
class KeyTimeLine:
    """Pairs (key, time) as one int64 each: `key * stride + (time - origin)`.

    `reach` is the longest window: moving back by it from any time never ends in the previous key.
    """

    origin: int
    stride: int

    @classmethod
    def spanning(cls, *, first: int, last: int, reach: int) -> "KeyTimeLine":
        """A line for times in [first, last] and windows up to `reach`, all in the same unit."""
        return cls(origin=first - reach, stride=last - first + reach + 1)

    @property
    def max_keys(self) -> int:
        """How many keys (0, 1, ...) fit. Zero when the times alone span more than 63 bits."""
        return (_INT64_MAX - abs(self.origin)) // self.stride

    def place(self, key_N: Ints, time_N: Ints) -> Int64s:
        """Raises KeyOverflowError instead of wrapping around; keys must be 0 or more."""
        if len(key_N) and int(key_N.max()) >= self.max_keys:
            raise KeyOverflowError(
                f"key {int(key_N.max()):,} with a time range of {self.stride:,} does not fit into 64 bits; "
                f"at most {self.max_keys:,} keys do: use more buckets or check the timestamps"
            )
        line_N: Int64s = key_N.astype(np.int64)
        line_N *= self.stride
        line_N += time_N
        line_N -= self.origin
        return line_N


@dataclass(frozen=True)
class Tiles:
    """Impressions grouped by equal (key, time): all rows of a tile see the same past."""

    line_T: Int64s
    #: Impressions on the line before each tile.
    before_T: Int64s
    tile_of_row_N: Int32s

    @classmethod
    def of(cls, line_N: Int64s) -> "Tiles":
        order_N = np.argsort(line_N)  # need not be stable: rows of one tile are interchangeable
        sorted_N = line_N[order_N]
        opens_N = np.ones(len(line_N), dtype=bool)
        np.not_equal(sorted_N[1:], sorted_N[:-1], out=opens_N[1:])
        before_T = np.flatnonzero(opens_N)
        tile_of_row_N = np.empty(len(line_N), dtype=np.int32)
        tile_of_row_N[order_N] = np.cumsum(opens_N, dtype=np.int32) - np.int32(1)
        return cls(sorted_N[before_T], before_T, tile_of_row_N)


@dataclass(frozen=True)
class WindowedCounts:
    """Counts of each tile in each window; `impressions_TW[tile_of_row_N]` are those of the rows."""

    tile_of_row_N: Int32s
    impressions_TW: Int32s
    clicks_TW: Int32s


def windowed_counts(
    key_N: Ints, time_N: Ints, click_time_N: Ints, *, windows: Sequence[int]
) -> WindowedCounts:
    """Impressions and clicks of the row's own key in [time - w, time), for each window w.

    A click counts by its own time, so a click at or after `time` is not seen yet. Time may be any integer
    unit: with times floored to hours, the counts are those as of the last full hour.

    Args:
        key_N: 0 or more, any order.
        time_N: when each impression was; also the time as of which it is counted.
        click_time_N: in the same unit, NO_CLICK where there was none.
        windows: lengths in the same unit.

    Returns:
        For one key with impressions at 0, 5 and 10 and a window of 5: 0, 1, 1.
    """
    if not len(key_N):
        empty_TW = np.zeros((0, len(windows)), dtype=np.int32)
        return WindowedCounts(np.zeros(0, dtype=np.int32), empty_TW, empty_TW)
    clicked_N = click_time_N != NO_CLICK
    click_time_C = click_time_N[clicked_N]
    line = KeyTimeLine.spanning(
        first=min(int(time_N.min()), int(click_time_C.min(initial=_INT64_MAX))),
        last=max(int(time_N.max()), int(click_time_C.max(initial=NO_CLICK))),
        reach=max(windows),
    )
    if int(key_N.max()) < line.max_keys:
        return _windowed_counts(line, key_N, time_N, clicked_N, click_time_C, windows)
    return _windowed_counts_in_parts(line, key_N, time_N, click_time_N, windows)


def _windowed_counts(
    line: KeyTimeLine,
    key_N: Ints,
    time_N: Ints,
    clicked_N: npt.NDArray[np.bool_],
    click_time_C: Ints,
    windows: Sequence[int],
) -> WindowedCounts:
    tiles = Tiles.of(line.place(key_N, time_N))
    click_line_C = np.sort(line.place(key_N[clicked_N], click_time_C))
    clicks_before_T = np.searchsorted(click_line_C, tiles.line_T)
    impressions_TW = np.empty((len(tiles.line_T), len(windows)), dtype=np.int32)
    clicks_TW = np.empty_like(impressions_TW)
    for column, window in enumerate(windows):
        opening_T = tiles.line_T - window
        impressions_TW[:, column] = tiles.before_T - tiles.before_T[np.searchsorted(tiles.line_T, opening_T)]
        clicks_TW[:, column] = clicks_before_T - np.searchsorted(click_line_C, opening_T)
    return WindowedCounts(tiles.tile_of_row_N, impressions_TW, clicks_TW)


def _windowed_counts_in_parts(
    line: KeyTimeLine, key_N: Ints, time_N: Ints, click_time_N: Ints, windows: Sequence[int]
) -> WindowedCounts:
    """The same, for more keys than one line holds: keys are renumbered and counted range by range."""
    keys, dense_N = np.unique(key_N, return_inverse=True)
    tile_of_row_N = np.empty(len(key_N), dtype=np.int32)
    impressions: list[Int32s] = []
    clicks: list[Int32s] = []
    tiles_so_far = 0
    for first, last in _key_ranges(len(keys), line):
        rows = np.flatnonzero((dense_N >= first) & (dense_N < last))
        clicked = click_time_N[rows] != NO_CLICK
        part = _windowed_counts(
            line, dense_N[rows] - first, time_N[rows], clicked, click_time_N[rows][clicked], windows
        )
        tile_of_row_N[rows] = part.tile_of_row_N + tiles_so_far
        tiles_so_far += len(part.impressions_TW)
        impressions.append(part.impressions_TW)
        clicks.append(part.clicks_TW)
    return WindowedCounts(tile_of_row_N, np.concatenate(impressions), np.concatenate(clicks))


def history_offsets(
    user_N: Ints, time_N: Ints, event_user_E: Ints, event_time_E: Ints, *, window: int
) -> tuple[Int32s, Int32s]:
    """Where each impression's purchase history starts and ends among the events.

    `events[start:end]` are the purchases of the row's user in [time - window, time): one at the moment of the
    impression is not history, one exactly `window` before it is.

    Args:
        user_N, event_user_E: 0 or more.
        event_user_E, event_time_E: sorted by (user, time).
        window: in the unit of the times.

    Returns:
        start_N, end_N. Where a history is empty both are equal.
    """
    start_N = np.zeros(len(user_N), dtype=np.int32)
    end_N = np.zeros(len(user_N), dtype=np.int32)
    if not len(user_N) or not len(event_user_E):
        return start_N, end_N
    line = KeyTimeLine.spanning(
        first=min(int(time_N.min()), int(event_time_E.min())),
        last=max(int(time_N.max()), int(event_time_E.max())),
        reach=window,
    )
    users = 1 + max(int(user_N.max()), int(event_user_E.max()))
    for first, last in _key_ranges(users, line):
        whole = last - first == users
        rows = slice(None) if whole else np.flatnonzero((user_N >= first) & (user_N < last))
        events = slice(*np.searchsorted(event_user_E, [first, last]))
        event_line_E = line.place(event_user_E[events] - first, event_time_E[events])
        tiles = Tiles.of(line.place(user_N[rows] - first, time_N[rows]))
        start_T = np.searchsorted(event_line_E, tiles.line_T - window) + events.start
        end_T = np.searchsorted(event_line_E, tiles.line_T) + events.start
        start_N[rows] = start_T[tiles.tile_of_row_N]
        end_N[rows] = end_T[tiles.tile_of_row_N]
    return start_N, end_N


def next_same_product(user_E: Ints, product_E: Ints) -> Int64s:
    """Position of the same user's next purchase of the same product, E where there is none.

    Events are in (user, time) order. A purchase j of the history events[start:end] is the newest of its
    product exactly when `next_same_product[j] >= end`, which is how repeats are removed at batch time.
    """
    events = len(user_E)
    pair_E = user_E.astype(np.int64)
    products = int(product_E.max(initial=0)) + 1
    if events and (int(pair_E.max()) + 1) * products > _INT64_MAX:
        raise KeyOverflowError(f"{int(pair_E.max()) + 1:,} users x {products:,} products exceed 64 bits")
    pair_E *= products
    pair_E += product_E
    order_E = np.argsort(pair_E, kind="stable")
    same = pair_E[order_E[1:]] == pair_E[order_E[:-1]]
    next_E = np.full(events, events, dtype=np.int64)
    next_E[order_E[:-1][same]] = order_E[1:][same]
    return next_E


def _key_ranges(keys: int, line: KeyTimeLine) -> Iterator[tuple[int, int]]:
    """0..keys in ranges that each fit on the line."""
    if line.max_keys < 1:
        raise KeyOverflowError(
            f"times that span {line.stride:,} units with their windows do not fit into 64 bits; "
            "check the timestamps"
        )
    for first in range(0, keys, line.max_keys):
        yield first, min(keys, first + line.max_keys)
