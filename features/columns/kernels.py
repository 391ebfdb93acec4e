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
    """Rows that are sorted by (key, time), grouped by equal pairs: all rows of a tile see the same past."""

    line_T: Int64s
    #: Rows before each tile.
    before_T: Int64s
    tile_of_row_N: Int32s

    @classmethod
    def of(cls, line_N: Int64s) -> "Tiles":
        """Tiles of places on a line, in rising order."""
        opens_N = np.ones(len(line_N), dtype=bool)
        np.not_equal(line_N[1:], line_N[:-1], out=opens_N[1:])
        before_T = np.flatnonzero(opens_N)
        tile_of_row_N = np.cumsum(opens_N, dtype=np.int32)
        tile_of_row_N -= 1
        return cls(line_N[before_T], before_T, tile_of_row_N)


def key_time_order(key_N: Ints, time_N: Ints) -> Int64s:
    """Row numbers by (key, time); those of equal key and time follow each other in any order.

    Rows in time order, as those of a log are, cost one sort of plain integers: key and row number in one.

    >>> key_time_order(np.array([1, 0, 1]), np.array([5, 6, 7])).tolist()
    [1, 0, 2]
    """
    by_time_N = None
    if (time_N[1:] < time_N[:-1]).any():
        by_time_N = np.argsort(time_N)
        key_N = key_N[by_time_N]
    bits = len(key_N).bit_length()
    if len(key_N) and int(key_N.max()) >> (63 - bits):
        order_N = np.argsort(key_N, kind="stable")
    else:
        order_N = key_N.astype(np.int64)
        order_N <<= bits
        order_N |= np.arange(len(key_N))
        order_N.sort()
        order_N &= (1 << bits) - 1
    return order_N if by_time_N is None else by_time_N[order_N]


@dataclass(frozen=True)
class WindowedCounts:
    """Counts of each tile in each window; `impressions_TW[tile_of_row_N]` are those of the rows.

    Attributes:
        count_TC: int32, impressions and clicks of each window, side by side.
    """

    tile_of_row_N: Int32s
    count_TC: Int32s

    @property
    def impressions_TW(self) -> Int32s:
        """Impressions of each window."""
        return self.count_TC[:, 0::2]

    @property
    def clicks_TW(self) -> Int32s:
        """Clicks of each window."""
        return self.count_TC[:, 1::2]


def windowed_counts(
    key_N: Ints,
    time_N: Ints,
    click_time_N: Ints,
    *,
    windows: Sequence[int],
    order_N: Int64s | None = None,
) -> WindowedCounts:
    """Impressions and clicks of the row's own key in [time - w, time), for each window w.

    A click counts by its own time, so a click at or after `time` is not seen yet. Time may be any integer
    unit: with times floored to hours, the counts are those as of the last full hour.

    Args:
        key_N: 0 or more, any order.
        time_N: when each impression was; also the time as of which it is counted.
        click_time_N: in the same unit, NO_CLICK where there was none.
        windows: lengths in the same unit.
        order_N: `key_time_order` of the rows, if the caller has it.

    Returns:
        For one key with impressions at 0, 5 and 10 and a window of 5: 0, 1, 1.
    """
    if not len(key_N):
        return WindowedCounts(np.zeros(0, np.int32), np.zeros((0, 2 * len(windows)), np.int32))
    if order_N is None:
        order_N = key_time_order(key_N, time_N)
    key_S, time_S, click_time_S = key_N.take(order_N), time_N.take(order_N), click_time_N.take(order_N)
    clicked_S = click_time_S != NO_CLICK
    click_time_C = click_time_S[clicked_S]
    line = KeyTimeLine.spanning(
        first=min(int(time_S.min()), int(click_time_C.min(initial=_INT64_MAX))),
        last=max(int(time_S.max()), int(click_time_C.max(initial=NO_CLICK))),
        reach=max(windows),
    )
    # Keys are numbered anew, without gaps, so that more of them fit on the line.
    number_S = np.zeros(len(key_S), np.int64)
    np.cumsum(key_S[1:] != key_S[:-1], out=number_S[1:])
    number_C = number_S[clicked_S]
    tile_of_row_N = np.empty(len(key_N), np.int32)
    parts: list[Int32s] = []
    tiles_so_far = 0
    for first, last in _key_ranges(int(number_S[-1]) + 1, line):
        rows = slice(*np.searchsorted(number_S, [first, last]))
        clicks = slice(*np.searchsorted(number_C, [first, last]))
        tiles = Tiles.of(line.place(number_S[rows] - first, time_S[rows]))
        click_line_C = np.sort(line.place(number_C[clicks] - first, click_time_C[clicks]))
        tile_of_row_N[order_N[rows]] = tiles.tile_of_row_N + np.int32(tiles_so_far)
        tiles_so_far += len(tiles.line_T)
        parts.append(_counts_of_tiles(tiles, click_line_C, windows))
    return WindowedCounts(tile_of_row_N, parts[0] if len(parts) == 1 else np.concatenate(parts))


def _counts_of_tiles(tiles: Tiles, click_line_C: Int64s, windows: Sequence[int]) -> Int32s:
    """int32[T, C] of the rows that one line holds."""

    def clicks_before(back: int) -> Int64s:
        # Clicks are far fewer than tiles, so they look for the tiles that see them, not tiles for clicks.
        seen_from_C = np.searchsorted(tiles.line_T, click_line_C + back, side="right")
        return np.cumsum(np.bincount(seen_from_C, minlength=len(tiles.line_T) + 1)[:-1])

    clicked_T = clicks_before(0)
    count_TC = np.empty((len(tiles.line_T), 2 * len(windows)), dtype=np.int32)
    for number, window in enumerate(windows):
        opening_T = np.searchsorted(tiles.line_T, tiles.line_T - window)
        count_TC[:, 2 * number] = tiles.before_T - tiles.before_T[opening_T]
        count_TC[:, 2 * number + 1] = clicked_T - clicks_before(window)
    return count_TC


def history_offsets(
    user_N: Ints,
    time_N: Ints,
    event_user_E: Ints,
    event_time_E: Ints,
    *,
    window: int,
    order_N: Int64s | None = None,
) -> tuple[Int32s, Int32s]:
    """Where each impression's purchase history starts and ends among the events.

    `events[start:end]` are the purchases of the row's user in [time - window, time): one at the moment of the
    impression is not history, one exactly `window` before it is.

    Args:
        user_N, event_user_E: 0 or more.
        event_user_E, event_time_E: sorted by (user, time).
        window: in the unit of the times.
        order_N: `key_time_order` of the impressions, if the caller has it.

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
    if order_N is None:
        order_N = key_time_order(user_N, time_N)
    user_S, time_S = user_N.take(order_N), time_N.take(order_N)
    for first, last in _key_ranges(1 + max(int(user_S[-1]), int(event_user_E.max())), line):
        rows = slice(*np.searchsorted(user_S, [first, last]))
        events = slice(*np.searchsorted(event_user_E, [first, last]))
        event_line_E = line.place(event_user_E[events] - first, event_time_E[events])
        tiles = Tiles.of(line.place(user_S[rows] - first, time_S[rows]))
        start_T = np.searchsorted(event_line_E, tiles.line_T - window) + events.start
        end_T = np.searchsorted(event_line_E, tiles.line_T) + events.start
        start_N[order_N[rows]] = start_T[tiles.tile_of_row_N]
        end_N[order_N[rows]] = end_T[tiles.tile_of_row_N]
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
