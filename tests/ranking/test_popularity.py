"""The popularity floor against hand sums and loops."""

import numpy as np
import pyarrow as pa
import pytest

from ranking.metrics import roc_auc
from ranking.popularity import popularity_floor


def indexed(rows: list[tuple[int, int, int]]) -> pa.Table:
    """(user, product, clicked) rows."""
    return pa.Table.from_pylist(
        [{"user_index": u, "product_index": p, "clicked": c} for u, p, c in rows],
        schema=pa.schema([("user_index", pa.int32()), ("product_index", pa.int32()), ("clicked", pa.int8())]),
    )


def test_the_floor_scores_product_mean_plus_user_mean():
    past = indexed([(0, 0, 1), (0, 1, 0), (1, 0, 1), (1, 1, 1)])
    # means: all 3/4; products 1, 1/2; users 1/2, 1. Scores: 1/2 + 1, 1 + 1/2 (a tie), unseen 3/4 + 3/4.
    floor = popularity_floor(past, indexed([(0, 0, 1), (1, 1, 0), (5, 7, 1)]))
    assert floor.auc == 0.5
    assert (floor.new_user_share, floor.new_product_share) == (1 / 3, 1 / 3)
    assert (floor.past_rows, floor.test_rows) == (4, 3)
    assert popularity_floor(past, indexed([(1, 0, 1), (0, 1, 0)])).auc == 1.0


def test_the_floor_equals_its_slow_version():
    random = np.random.default_rng(0)
    rows = [tuple(row) for row in random.integers(0, [6, 8, 2], (300, 3)).tolist()]
    past, test = rows[:200], rows[200:]
    overall = sum(clicked for *_, clicked in past) / len(past)

    def mean(place: int, key: int) -> float:
        own = [row[2] for row in past if row[place] == key]
        return sum(own) / len(own) if own else overall

    scores = [mean(0, user) + mean(1, product) for user, product, _ in test]
    labels = [clicked for *_, clicked in test]
    probabilities = np.clip(np.array(scores) - overall, 0.01, 0.99)
    losses = -np.where(labels, np.log(probabilities), np.log(1 - probabilities))
    ctr = np.mean(labels)
    entropy = -(ctr * np.log(ctr) + (1 - ctr) * np.log(1 - ctr))
    floor = popularity_floor(indexed(past), indexed(test))
    assert floor.auc == pytest.approx(roc_auc(labels, scores), abs=1e-12)
    assert floor.norm_logloss == pytest.approx(losses.mean() / entropy, abs=1e-12)


def test_the_floor_needs_a_past():
    with pytest.raises(ValueError, match="needs past rows"):
        popularity_floor(indexed([]), indexed([(0, 0, 1)]))
