"""Histories at batch time against the definition, written as loops."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

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


@given(logs(), st.integers(1, 4), st.booleans(), st.randoms(use_true_random=False))
def test_bags_follow_the_definition(log, cap, deduplicate, random) -> None:
    users, rows = log
    events = np.array([product for purchases in users for product in purchases], np.int32)
    bags = PurchaseBags.build(
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
    bags = PurchaseBags.build(
        np.array([0, 1, 2], np.int32),
        np.array([3, 3, 3], np.int32),
        np.array([7, 8, 9]),
        cap=2,
        deduplicate=False,
    )
    values, lengths = bags.expand(np.array([0], np.int32), np.array([3], np.int32))
    assert (values.tolist(), lengths.tolist()) == ([9, 8], [2])
