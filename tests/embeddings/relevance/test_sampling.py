"""How many positives a product has, and how likely each negative is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embeddings.relevance.build_tuples import PROXY, TupleConfig
from embeddings.relevance.sampling import Donors, NegativeCounts, ProxyQueries, draw_tuples, positive_counts


@pytest.mark.parametrize(
    "high, moderate, expected",
    [
        (500, 500, (73, 37)),
        (73, 37, (73, 37)),
        (74, 37, (73, 37)),
        (110, 0, (110, 0)),
        (500, 10, (100, 10)),
        (20, 500, (20, 10)),
        (3, 500, (3, 2)),
        (1, 1, (1, 1)),
        (0, 8, (0, 1)),
        (5, 0, (5, 0)),
        (0, 0, (0, 0)),
    ],
)
def test_two_high_for_one_moderate(high: int, moderate: int, expected: tuple[int, int]) -> None:
    assert positive_counts(high, moderate, TupleConfig()) == expected


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 40), st.integers(1, 4))
def test_filling_up_takes_all_that_fits_and_keeping_the_ratio_never_exceeds_it(
    high: int, moderate: int, most: int, ratio: int
) -> None:
    config = TupleConfig(max_positives=most, high_per_moderate=ratio)
    for reading in ("keep_ratio", "fill"):
        both = positive_counts(high, moderate, config.model_copy(update={"short_of_high": reading}))
        assert 0 <= both[0] <= high
        assert 0 <= both[1] <= moderate
        assert (sum(both) > 0) == (high + moderate > 0)
        if reading == "fill":
            assert sum(both) == min(most, high + moderate)
        else:
            assert sum(both) <= most
            assert both[1] <= max(1, -(-both[0] // ratio))


#: One product with HR query 0, MR queries 1 and 2, IR queries 3 ... 8.
QUERY_J = np.arange(9)
GRADE_J = np.array([2, 1, 1, 0, 0, 0, 0, 0, 0])
#: Donors of another aisle: one with query 20, one with 21, 22 and 23; and one of the same aisle with 30.
DONORS = Donors.of(
    [np.array([20]), np.array([30]), np.array([21, 22, 23])], np.array([1, 0, 1]), aisle_count=2
)
DRAWS = 4000


def drawn(grade_J: np.ndarray, config: TupleConfig) -> tuple[np.ndarray, np.ndarray]:
    """Many independent draws of the HR tuple of the product: query indices and grades, [DRAWS, 1 + K]."""
    generator = np.random.default_rng(0)
    queries, grades = [], []
    for _ in range(DRAWS):
        proxies = ProxyQueries(DONORS, 0, frozenset(QUERY_J.tolist()), generator)
        rows, row_grades = draw_tuples(
            QUERY_J, grade_J, config=config, proxies=proxies, generator=generator, counts=NegativeCounts()
        )
        queries.append(rows[0])
        grades.append(row_grades[0])
    return np.array(queries), np.array(grades)


def test_moderate_and_irrelevant_queries_are_equally_likely_negatives_of_a_high_one() -> None:
    queries, grades = drawn(GRADE_J, TupleConfig(negatives=4))
    kept = (grades[:, 1:] != PROXY).all(axis=1)
    share = np.bincount(queries[:, 1:].ravel(), minlength=9)[1:9] / DRAWS
    # 4 of 8 without repetition; a draw of 4 IR (15 in 70) loses one of its four to a proxy.
    assert (~kept).mean() == pytest.approx(15 / 70, abs=0.03)
    np.testing.assert_allclose(share[:2], 1 / 2, atol=0.04)
    np.testing.assert_allclose(share[2:], 1 / 2 - 15 / 70 / 6, atol=0.04)


def test_a_proxy_comes_from_a_random_product_first_and_then_from_its_queries() -> None:
    queries, grades = drawn(np.array([2] + [0] * 8), TupleConfig(negatives=8))
    proxies = queries[:, 1:][grades[:, 1:] == PROXY]
    assert len(proxies) == DRAWS, "one in each tuple of eight irrelevant queries"
    share = np.bincount(proxies, minlength=31) / DRAWS
    # Two donors: one half each, the second divided by its three queries; the same aisle gives nothing.
    np.testing.assert_allclose(share[[20, 21, 22, 23, 30]], [1 / 2, 1 / 6, 1 / 6, 1 / 6, 0], atol=0.03)


def test_the_proxy_takes_any_place_with_equal_chance() -> None:
    _, grades = drawn(np.array([2] + [0] * 8), TupleConfig(negatives=8))
    np.testing.assert_allclose((grades[:, 1:] == PROXY).mean(axis=0), 1 / 8, atol=0.03)


def test_positives_are_a_uniform_sample_when_there_are_too_many() -> None:
    queries, _ = drawn(np.array([2, 2, 2, 2, 0, 0, 0, 0, 0]), TupleConfig(max_positives=1, negatives=2))
    np.testing.assert_allclose(np.bincount(queries[:, 0]) / DRAWS, 1 / 4, atol=0.04)


def test_rare_proxies_are_found_among_many_that_may_not_serve() -> None:
    """Random tries alone would miss the one free query among 5,000 that are graded for the product."""
    donors = Donors.of([np.arange(5000), np.array([7, 6000])], np.array([1, 1]), aisle_count=2)
    one_in_all = Donors.of([np.arange(5001)], np.array([1]), aisle_count=2)
    graded = frozenset(range(5000))
    for lenders, free in ((donors, 6000), (one_in_all, 5000)):
        proxies = ProxyQueries(lenders, 0, graded, np.random.default_rng(0))
        assert proxies.draw(3) == [free]
