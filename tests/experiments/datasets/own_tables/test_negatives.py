"""Constructed impressions know only what was bought before their moment, and are the same for equal seeds."""

import numpy as np
import pytest

from experiments.datasets.own_tables.mapping import ConstructedImpressions
from experiments.datasets.own_tables.negatives import Constructed, construct_impressions


def purchases(seed: int = 0, count: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users, products and times, several rows at a time; a few rows occur twice."""
    generator = np.random.default_rng(seed)
    time_N = np.sort(generator.integers(0, 150, count))
    return generator.integers(0, 12, count), (30 * generator.random(count) ** 2).astype(np.int64), time_N


def made(draw: str, negatives: int = 3, seed: int = 0) -> Constructed:
    settings = ConstructedImpressions(negatives=negatives, draw=draw, seed=seed)
    return construct_impressions(*purchases(), settings)


@pytest.mark.parametrize("draw", ["popular", "uniform"])
def test_every_candidate_was_bought_before_its_moment_and_no_negative_at_it(draw):
    user_N, product_N, time_N = purchases()
    rows = made(draw)
    for purchase, product, clicked in zip(rows.purchase_M, rows.product_M, rows.clicked_M, strict=True):
        before = product_N[time_N < time_N[purchase]]
        assert product in before
        basket = product_N[(time_N == time_N[purchase]) & (user_N == user_N[purchase])]
        assert (product in basket) == bool(clicked)


@pytest.mark.parametrize("draw", ["popular", "uniform"])
def test_clicks_are_the_purchases_of_products_known_before_each_once(draw):
    user_N, product_N, time_N = purchases()
    rows = made(draw)
    clicks = rows.purchase_M[rows.clicked_M == 1]
    expected, again, first = set(), 0, 0
    for n in range(len(user_N)):
        row = (user_N[n], time_N[n], product_N[n])
        if any(row == (user_N[m], time_N[m], product_N[m]) for m in range(n)):
            again += 1
        elif product_N[n] in product_N[time_N < time_N[n]]:
            expected.add(row)
        else:
            first += 1
    assert sorted((user_N[n], time_N[n], product_N[n]) for n in clicks) == sorted(expected)
    assert (rows.first_of_product, rows.repeated) == (first, again)


@pytest.mark.parametrize("draw", ["popular", "uniform"])
def test_negatives_beside_a_click_differ_and_missing_ones_are_counted(draw):
    rows = made(draw, negatives=6)
    negatives: dict[int, list[int]] = {}
    for purchase, product in zip(
        rows.purchase_M[rows.clicked_M == 0], rows.product_M[rows.clicked_M == 0], strict=True
    ):
        negatives.setdefault(int(purchase), []).append(int(product))
    assert all(len(set(products)) == len(products) <= 6 for products in negatives.values())
    clicks = int((rows.clicked_M == 1).sum())
    assert rows.missing_negatives == 6 * clicks - sum(map(len, negatives.values()))
    assert rows.missing_negatives > 0  # early moments know fewer than six products


def test_rows_come_in_time_order_and_their_place_within_a_moment_tells_nothing():
    _, _, time_N = purchases()
    rows = made("popular")
    times = time_N[rows.purchase_M]
    assert (np.diff(times) >= 0).all()
    starts = np.flatnonzero(np.diff(times, prepend=-1))
    assert 0.1 < rows.clicked_M[starts].mean() < 0.5  # one in four is a click


def test_equal_seeds_give_equal_rows_and_others_do_not():
    one, same, other = made("popular", seed=1), made("popular", seed=1), made("popular", seed=2)
    assert np.array_equal(one.product_M, same.product_M)
    assert not np.array_equal(one.product_M, other.product_M)


def test_later_purchases_change_nothing_about_the_moments_before_them():
    user_N, product_N, time_N = purchases()
    settings = ConstructedImpressions(negatives=1, draw="popular")
    candidates = set(zip(user_N[:200], time_N[:200], strict=True))
    changed = product_N.copy()
    changed[300:] = 99
    for products in (product_N, changed):
        rows = construct_impressions(user_N, products, time_N, settings)
        early = rows.purchase_M < 200
        assert {(user_N[n], time_N[n]) for n in rows.purchase_M[early]} <= candidates
        assert 99 not in rows.product_M[time_N[rows.purchase_M] < time_N[300]]


def test_popular_draws_as_often_as_bought_and_uniform_all_alike():
    count = 20_000
    product_N = np.where(np.arange(count) % 10 == 0, 1, 0)
    product_N[-1:] = 2
    product_N[0] = 2
    user_N, time_N = np.arange(count), np.arange(count)
    shares = {}
    for draw in ("popular", "uniform"):
        settings = ConstructedImpressions(negatives=1, draw=draw)
        rows = construct_impressions(user_N, product_N, time_N, settings)
        of_ones = (rows.clicked_M == 0) & (product_N[rows.purchase_M] == 0)
        shares[draw] = (rows.product_M[of_ones] == 1).mean()
    assert shares["popular"] > 0.95  # of what is not product 0, nearly all was product 1
    assert shares["uniform"] == pytest.approx(0.5, abs=0.03)


def test_no_purchases_make_no_impressions():
    nothing = np.zeros(0, dtype=np.int64)
    rows = construct_impressions(nothing, nothing, nothing, ConstructedImpressions())
    assert len(rows.purchase_M) == 0
