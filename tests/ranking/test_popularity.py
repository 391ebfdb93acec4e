"""The popularity floor against hand sums and loops."""

import numpy as np
import pyarrow as pa
import pytest

from ranking.metrics import roc_auc
from ranking.popularity import PRIOR_ROWS, popularity_floor


def indexed(rows: list[tuple[int, int, int]]) -> pa.Table:
    """(user, product, clicked) rows."""
    return pa.Table.from_pylist(
        [{"user_index": u, "product_index": p, "clicked": c} for u, p, c in rows],
        schema=pa.schema([("user_index", pa.int32()), ("product_index", pa.int32()), ("clicked", pa.int8())]),
    )


def test_the_floor_scores_product_mean_plus_user_mean_of_training_and_validation():
    train, validation = indexed([(0, 0, 1), (0, 1, 0)]), indexed([(1, 0, 1), (1, 1, 1)])
    # means: all 3/4; products 1, 1/2; users 1/2, 1. Scores, equally shrunken: 1/2 + 1, 1 + 1/2 (a tie),
    # unseen 3/4 + 3/4.
    floor = popularity_floor(train, validation, indexed([(0, 0, 1), (1, 1, 0), (5, 7, 1)]))
    assert (floor.new_user_share, floor.new_product_share) == (1 / 3, 1 / 3)
    assert (floor.past_rows, floor.test_rows) == (4, 3)
    assert popularity_floor(train, validation, indexed([(1, 0, 1), (0, 1, 0)])).auc == 1.0


def test_a_mean_over_one_row_says_less_than_the_same_mean_over_many():
    """Product 1 was clicked at its only impression, product 0 at 99 of 100; product 2 almost never."""
    many = [(user, 0, int(user > 0)) for user in range(100)]
    few = [(user, 2, int(user == 0)) for user in range(100)]
    past = indexed([*many, *few, (200, 1, 1)])
    floor = popularity_floor(past, past, indexed([(300, 0, 1), (301, 1, 0), (302, 2, 0)]))
    assert floor.auc == 1.0


def test_what_validation_does_not_confirm_is_shrunken_hard_and_what_it_confirms_hardly():
    """Clicks follow the product in training and validation alike; those of a user are drawn anew."""
    random = np.random.default_rng(0)

    def rows(count: int) -> pa.Table:
        products, users = random.integers(0, 40, count), random.integers(0, 200, count)
        clicked = random.random(count) < np.where(products % 2 == 0, 0.95, 0.05)
        return indexed(
            list(zip(users.tolist(), products.tolist(), clicked.astype(int).tolist(), strict=True))
        )

    floor = popularity_floor(rows(1_500), rows(1_500), rows(500))
    assert floor.product_prior_rows <= PRIOR_ROWS[1]
    assert floor.user_prior_rows >= PRIOR_ROWS[-2]


def test_the_floor_equals_its_slow_version():
    random = np.random.default_rng(0)
    rows = [tuple(row) for row in random.integers(0, [6, 8, 2], (400, 3)).tolist()]
    train, validation, test = rows[:200], rows[200:300], rows[300:]

    def scores(past, scored, product_rows, user_rows):
        overall = sum(clicked for *_, clicked in past) / len(past)

        def mean(place: int, key: int, prior: int) -> float:
            own = [row[2] for row in past if row[place] == key]
            return (sum(own) + prior * overall) / (len(own) + prior)

        both = [mean(0, user, user_rows) + mean(1, product, product_rows) for user, product, _ in scored]
        return np.array(both), np.clip(np.array(both) - overall, 0.01, 0.99)

    def losses(scored, probabilities):
        labels = np.array([clicked for *_, clicked in scored])
        return -np.where(labels, np.log(probabilities), np.log(1 - probabilities)).mean()

    pairs = [(product_rows, user_rows) for product_rows in PRIOR_ROWS for user_rows in PRIOR_ROWS]
    chosen = min(pairs, key=lambda pair: losses(validation, scores(train, validation, *pair)[1]))
    both, probabilities = scores([*train, *validation], test, *chosen)
    labels = [clicked for *_, clicked in test]
    ctr = np.mean(labels)
    entropy = -(ctr * np.log(ctr) + (1 - ctr) * np.log(1 - ctr))
    floor = popularity_floor(indexed(train), indexed(validation), indexed(test))
    assert (floor.product_prior_rows, floor.user_prior_rows) == chosen
    assert floor.auc == pytest.approx(roc_auc(labels, both), abs=1e-12)
    assert floor.norm_logloss == pytest.approx(losses(test, probabilities) / entropy, abs=1e-12)


def test_strangers_have_no_past_in_common():
    """Nobody's clicks count for the product and for all, never for another impression of nobody."""
    nobody, past = [(-1, 0, 1), (-1, 1, 0), (-1, 0, 1)], [(0, 0, 0), (1, 1, 1), (0, 2, 0)]
    strangers = [(10 + place, product, clicked) for place, (_, product, clicked) in enumerate(nobody)]
    test = [(-1, 0, 1), (0, 1, 0), (-1, 2, 0)]
    found = popularity_floor(indexed(nobody), indexed(past), indexed(test))
    others = [(99, 0, 1), (0, 1, 0), (98, 2, 0)]
    assert found == popularity_floor(indexed(strangers), indexed(past), indexed(others))
    assert found.new_user_share == 2 / 3


@pytest.mark.parametrize("empty", ["training", "validation"])
def test_the_floor_needs_a_past(empty):
    some, none = indexed([(0, 0, 1)]), indexed([])
    train, validation = (none, some) if empty == "training" else (some, none)
    with pytest.raises(ValueError, match=f"needs past rows, but the {empty} split is empty"):
        popularity_floor(train, validation, some)
