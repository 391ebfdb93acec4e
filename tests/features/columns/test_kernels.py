"""The kernels equal loops written from their definitions, at every edge instant."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.columns.kernels import (
    NO_CLICK,
    KeyOverflowError,
    KeyTimeLine,
    history_offsets,
    key_time_order,
    next_same_product,
    windowed_counts,
)

WINDOW = 10
#: Instants that meet each other exactly at, one before and one after a window of 10.
instants = st.sampled_from([-11, -10, -9, -1, 0, 1, 9, 10, 11, 20, 21])
impressions = st.lists(
    st.tuples(st.integers(0, 3), instants, st.one_of(st.none(), st.integers(0, 12))), max_size=25
)


def counts_by_loop(key_N, time_N, click_N, windows):
    impressions_NW = np.zeros((len(key_N), len(windows)), dtype=np.int32)
    clicks_NW = np.zeros_like(impressions_NW)
    for row in range(len(key_N)):
        for column, window in enumerate(windows):
            for other in range(len(key_N)):
                if key_N[other] != key_N[row]:
                    continue
                if time_N[row] - window <= time_N[other] < time_N[row]:
                    impressions_NW[row, column] += 1
                if click_N[other] != NO_CLICK and time_N[row] - window <= click_N[other] < time_N[row]:
                    clicks_NW[row, column] += 1
    return impressions_NW, clicks_NW


def as_arrays(rows):
    key_N = np.array([key for key, _, _ in rows], dtype=np.int64)
    time_N = np.array([time for _, time, _ in rows], dtype=np.int64)
    click_N = np.array([NO_CLICK if d is None else t + d for _, t, d in rows], dtype=np.int64)
    return key_N, time_N, click_N


@given(impressions)
@settings(max_examples=150, deadline=None)
def test_windowed_counts_equal_a_loop_over_all_pairs(rows):
    arrays = as_arrays(rows)
    windows = (1, WINDOW, 2 * WINDOW)
    counts = windowed_counts(*arrays, windows=windows)
    expected_impressions, expected_clicks = counts_by_loop(*arrays, windows)
    np.testing.assert_array_equal(counts.impressions_TW[counts.tile_of_row_N], expected_impressions)
    np.testing.assert_array_equal(counts.clicks_TW[counts.tile_of_row_N], expected_clicks)


@pytest.mark.parametrize("largest", [3, 2**40, 2**62])  # beside a row number in 64 bits, and too large for it
@pytest.mark.parametrize("in_time_order", [True, False])
def test_rows_are_put_into_order_by_key_and_then_time(largest, in_time_order):
    rng = np.random.default_rng(7)
    key_N, time_N = rng.integers(0, largest, 500), rng.integers(0, 50, 500)
    key_N[::2] = key_N[1]
    if in_time_order:
        time_N.sort()
    order_N = key_time_order(key_N, time_N)
    assert sorted(order_N.tolist()) == list(range(500))
    pairs = list(zip(key_N[order_N].tolist(), time_N[order_N].tolist(), strict=True))
    assert pairs == sorted(pairs)


def test_a_click_counts_from_its_own_moment_and_not_at_it():
    key_N = np.zeros(4, dtype=np.int64)
    time_N = np.array([0, 5, 6, 14])
    click_N = np.array([5, NO_CLICK, NO_CLICK, NO_CLICK])  # the first impression is clicked at 5
    counts = windowed_counts(key_N, time_N, click_N, windows=[9])
    assert counts.clicks_TW[counts.tile_of_row_N, 0].tolist() == [0, 0, 1, 1]
    counts = windowed_counts(key_N, time_N, click_N, windows=[8])
    assert counts.clicks_TW[counts.tile_of_row_N, 0].tolist() == [0, 0, 1, 0]


def test_impressions_of_the_same_moment_do_not_count_each_other():
    counts = windowed_counts(
        np.zeros(5, dtype=np.int64), np.array([7, 7, 7, 8, 8]), np.full(5, NO_CLICK), windows=[100]
    )
    assert counts.impressions_TW[counts.tile_of_row_N, 0].tolist() == [0, 0, 0, 3, 3]


def test_more_keys_than_one_line_holds_are_counted_in_parts():
    rng = np.random.default_rng(3)
    span = 2**60  # so that at most four keys fit on one line
    key_N = rng.integers(0, 12, 60) * 1_000
    time_N = rng.integers(0, span, 60)
    time_N[::3] = time_N[0]
    click_N = np.where(rng.random(60) < 0.5, time_N + 5, NO_CLICK)
    windows = [6, span // 4]
    assert int(key_N.max()) >= KeyTimeLine.spanning(first=0, last=span, reach=span // 4).max_keys
    counts = windowed_counts(key_N, time_N, click_N, windows=windows)
    expected_impressions, expected_clicks = counts_by_loop(key_N, time_N, click_N, windows)
    np.testing.assert_array_equal(counts.impressions_TW[counts.tile_of_row_N], expected_impressions)
    np.testing.assert_array_equal(counts.clicks_TW[counts.tile_of_row_N], expected_clicks)


def test_a_key_that_would_wrap_around_64_bits_is_refused():
    line = KeyTimeLine.spanning(first=0, last=2**45, reach=0)
    fits = line.max_keys - 1
    placed = line.place(np.array([fits]), np.array([2**45]))
    assert placed[0] == fits * line.stride + 2**45 > 0
    with pytest.raises(KeyOverflowError, match="64 bits"):
        line.place(np.array([fits + 1]), np.array([0]))


def test_times_that_alone_exceed_64_bits_are_refused():
    times = np.array([-(2**62), 2**62])
    keys = np.array([0, 1])
    with pytest.raises(KeyOverflowError, match="check the timestamps"):
        windowed_counts(keys, times, np.full(2, NO_CLICK), windows=[2**62])
    with pytest.raises(KeyOverflowError, match="check the timestamps"):
        history_offsets(keys, times, keys, times, window=2**62)


def test_a_hot_key_costs_no_more_memory_than_its_rows():
    rows = 200_000
    counts = windowed_counts(
        np.zeros(rows, dtype=np.int64), np.arange(rows), np.full(rows, NO_CLICK), windows=[10, rows]
    )
    at = counts.tile_of_row_N
    np.testing.assert_array_equal(counts.impressions_TW[at, 0], np.minimum(np.arange(rows), 10))
    np.testing.assert_array_equal(counts.impressions_TW[at, 1], np.arange(rows))


def test_no_rows_give_no_counts():
    nothing = np.zeros(0, dtype=np.int64)
    counts = windowed_counts(nothing, nothing, nothing, windows=[1, 2])
    assert counts.impressions_TW.shape == (0, 2)
    assert len(counts.tile_of_row_N) == 0


events = st.lists(st.tuples(st.integers(0, 4), instants), max_size=25)


@given(events, events)
@settings(max_examples=150, deadline=None)
def test_history_offsets_equal_a_loop_over_all_purchases(shown, purchases):
    purchases = sorted(purchases)
    start_N, end_N = history_offsets(
        np.array([user for user, _ in shown], dtype=np.int32),
        np.array([time for _, time in shown], dtype=np.int64),
        np.array([user for user, _ in purchases], dtype=np.int64),
        np.array([time for _, time in purchases], dtype=np.int64),
        window=WINDOW,
    )
    for row, (user, time) in enumerate(shown):
        expected = [
            position
            for position, (buyer, moment) in enumerate(purchases)
            if buyer == user and time - WINDOW <= moment < time
        ]
        assert list(range(start_N[row], end_N[row])) == expected


def test_a_purchase_at_the_moment_of_the_impression_is_not_history():
    shown = (np.zeros(4, dtype=np.int64), np.array([99, 100, 101, 110]))
    bought = (np.zeros(1, dtype=np.int64), np.array([100]))
    start_N, end_N = history_offsets(*shown, *bought, window=10)
    assert (end_N - start_N).tolist() == [0, 0, 1, 1]
    start_N, end_N = history_offsets(*shown, *bought, window=9)
    assert (end_N - start_N).tolist() == [0, 0, 1, 0]


def test_histories_of_more_users_than_one_line_holds_are_found_in_parts():
    rng = np.random.default_rng(5)
    user_N, user_E = rng.integers(0, 20, 50), np.sort(rng.integers(0, 20, 50))
    time_N, time_E = rng.integers(0, 2**60, 50), rng.integers(0, 2**60, 50)
    order = np.lexsort((time_E, user_E))
    user_E, time_E = user_E[order], time_E[order]
    start_N, end_N = history_offsets(user_N, time_N, user_E, time_E, window=2**59)
    for row in range(50):
        matches = (user_E == user_N[row]) & (time_E < time_N[row]) & (time_E >= time_N[row] - 2**59)
        assert np.flatnonzero(matches).tolist() == list(range(start_N[row], end_N[row]))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=25))
@settings(max_examples=100, deadline=None)
def test_next_same_product_keeps_exactly_the_newest_of_each_product(purchases):
    purchases = sorted(purchases, key=lambda purchase: purchase[0])
    user_E = np.array([user for user, _ in purchases], dtype=np.int64)
    product_E = np.array([product for _, product in purchases], dtype=np.int32)
    next_E = next_same_product(user_E, product_E)
    for j, purchase in enumerate(purchases):
        later = [k for k in range(j + 1, len(purchases)) if purchases[k] == purchase]
        assert next_E[j] == (later[0] if later else len(purchases))
