"""Histories at batch time against the definition, written as loops."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib.format import open_memmap

from features.batches import pretrained_rows
from features.batches.pretrained_rows import PurchaseBags, SemanticRows


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    """Purchases of a few users (product indices, oldest first); the table row of each product, 0 for none."""
    users = draw(st.lists(st.lists(st.integers(0, 5), max_size=8), min_size=1, max_size=4))
    rows = draw(st.lists(st.integers(0, 9), min_size=6, max_size=6))
    return users, rows


def next_same(users: list[list[int]]) -> list[int]:
    total = sum(map(len, users))
    result, start = [], 0
    for purchases in users:
        for i, product in enumerate(purchases):
            later = [start + j for j in range(i + 1, len(purchases)) if purchases[j] == product]
            result.append(min(later, default=total))
        start += len(purchases)
    return result


@pytest.mark.parametrize("events_at_once", [1, 5, 2**20])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(logs(), st.integers(1, 4), st.booleans(), st.randoms(use_true_random=False))
def test_bags_follow_the_definition(monkeypatch, events_at_once, log, cap, deduplicate, random) -> None:
    monkeypatch.setattr(pretrained_rows, "_EVENTS_AT_ONCE", events_at_once)
    users, rows = log
    events = np.array([product for purchases in users for product in purchases], np.int32)
    bags = PurchaseBags(
        events,
        np.array(next_same(users), np.int32),
        np.array(rows, np.int64),
        cap=cap,
        deduplicate=deduplicate,
    )
    starts, ends, expected = [], [], []
    offset = 0
    for purchases in users:
        first = random.randint(0, len(purchases))
        last = random.randint(first, len(purchases))
        starts.append(offset + first)
        ends.append(offset + last)
        bag: list[int] = []
        seen: set[int] = set()
        for product in reversed(purchases[first:last]):
            if rows[product] == 0 or (deduplicate and product in seen):
                continue
            seen.add(product)
            bag.append(rows[product])
        expected.append(bag[:cap])
        offset += len(purchases)
    values, lengths = bags.expand(np.array(starts, np.int32), np.array(ends, np.int32))
    got = [part.tolist() for part in np.split(values, np.cumsum(lengths)[:-1])]
    assert got == expected


@given(logs(), st.integers(1, 4), st.booleans(), st.data())
def test_bags_read_from_a_file_are_those_of_purchases_resolved_in_memory(log, cap, deduplicate, data) -> None:
    """Until purchases were left where they are, each process held a row and a count of every one of them."""
    users, rows = log
    events = np.array([product for purchases in users for product in purchases], np.int32)
    next_E, row_P = np.array(next_same(users), np.int32), np.array(rows, np.int64)
    places = st.lists(st.integers(0, len(users) - 1), min_size=1, max_size=6)
    bounds = np.cumsum([0, *map(len, users)])
    starts, ends = [], []
    for user in data.draw(places):
        first = data.draw(st.integers(int(bounds[user]), int(bounds[user + 1])))
        starts.append(first)
        ends.append(data.draw(st.integers(first, int(bounds[user + 1]))))
    start_B, end_B = np.array(starts, np.int32), np.array(ends, np.int32)

    row_E = row_P[events]
    kept_before = np.concatenate([[0], np.cumsum(row_E != 0)])
    next_kept_E, row_E = kept_before[next_E[row_E != 0]], row_E[row_E != 0]
    expected, lengths = [], []
    for first, last in zip(kept_before[start_B], kept_before[end_B], strict=True):
        events_L = np.arange(last - 1, first - 1, -1)
        if deduplicate:
            events_L = events_L[next_kept_E[events_L] >= last]
        expected += row_E[events_L[:cap]].tolist()
        lengths.append(len(events_L[:cap]))

    bags = PurchaseBags(events, next_E, row_P, cap=cap, deduplicate=deduplicate)
    found, length_B = bags.expand(start_B, end_B)
    assert (found.tolist(), length_B.tolist()) == (expected, lengths)
    assert (found.dtype, length_B.dtype) == (np.int64, np.int32)


@pytest.mark.parametrize("deduplicate", [False, True])
def test_purchases_beyond_2_to_the_31_are_found_in_a_mapped_file(tmp_path, deduplicate) -> None:
    """The file has holes: it takes no room, and nothing but what a batch needs is read."""
    first, events = 2**31 + 5, 2**31 + 12
    product_E = open_memmap(tmp_path / "product_index.npy", mode="w+", dtype=np.int32, shape=(events,))
    next_E = open_memmap(tmp_path / "next.npy", mode="w+", dtype=np.int64, shape=(events,))
    product_E[first:events] = [1, 2, 1, 3, 0, 2, 1]
    next_E[first:events] = [first + 2, first + 5, first + 6, events, events, events, events]
    row_P = np.array([0, 10, 20, 30])
    bags = PurchaseBags(product_E, next_E, row_P, cap=4, deduplicate=deduplicate)
    found, length_B = bags.expand(np.array([first, first + 1]), np.array([events, first + 3]))
    longer = [10, 20, 30] if deduplicate else [10, 20, 30, 10]
    assert (found.tolist(), length_B.tolist()) == ([*longer, 10, 20], [len(longer), 2])


def test_a_batch_needs_no_more_memory_than_its_own_purchases_however_many_there_are(tmp_path) -> None:
    """5 million purchases were 120 MB in each process, 225 MB while it opened them."""
    events = 5_000_000
    product_E = open_memmap(tmp_path / "product_index.npy", mode="w+", dtype=np.int32, shape=(events,))
    next_E = open_memmap(tmp_path / "next.npy", mode="w+", dtype=np.int32, shape=(events,))
    next_E[:] = events
    tracemalloc.start()
    try:
        bags = PurchaseBags(product_E, next_E, np.array([7, 0]), cap=50, deduplicate=False)
        end_B = np.arange(1_000, events, 5_000)
        values, lengths = bags.expand(end_B - 20, end_B)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(values), lengths.max()) == (20 * len(end_B), 20)
    assert peak < 4e6


def test_a_batch_of_a_user_with_50_000_purchases_needs_no_memory_for_all_of_them_at_once() -> None:
    events, products, impressions, cap = 50_000, 40, 400, 30
    product_E = np.arange(events) % products
    bags = PurchaseBags(
        product_E.astype(np.int32),
        np.minimum(np.arange(events) + products, events).astype(np.int32),
        np.arange(1, products + 1),
        cap=cap,
        deduplicate=True,
    )
    end_B = np.arange(events - impressions, events, dtype=np.int32)
    tracemalloc.start()
    try:
        values, lengths = bags.expand(np.zeros(impressions, np.int32), end_B)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert lengths.tolist() == [cap] * impressions
    newest = product_E[end_B[-1] - cap : end_B[-1]][::-1] + 1
    assert values[-cap:].tolist() == newest.tolist()
    assert peak < 200e6  # all at once: 20 M purchases, 8 bytes each in several arrays


def test_a_missing_product_query_or_vector_gives_an_empty_bag() -> None:
    rows = SemanticRows(product_P=np.array([3, 0, 0]), query_Q=np.array([0]), purchases=None)
    found = rows.lookup(
        np.array([0, 1, -1], np.int32),
        np.array([-1, -1, -1], np.int32),
        np.zeros(3, np.int32),
        np.zeros(3, np.int32),
    )
    assert found["product"].values().tolist() == [3]
    assert found["product"].lengths().tolist() == [1, 0, 0]
    assert found["query"].lengths().tolist() == [0, 0, 0]
    assert found["history"].lengths().tolist() == [0, 0, 0]


def test_the_newest_purchases_survive_the_cap() -> None:
    bags = PurchaseBags(
        np.array([0, 1, 2], np.int32),
        np.array([3, 3, 3], np.int32),
        np.array([7, 8, 9]),
        cap=2,
        deduplicate=False,
    )
    values, lengths = bags.expand(np.array([0], np.int32), np.array([3], np.int32))
    assert (values.tolist(), lengths.tolist()) == ([9, 8], [2])
