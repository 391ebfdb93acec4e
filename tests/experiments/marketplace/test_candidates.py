"""Which products a search on a real catalogue may show, and the grades that nobody gave."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from embeddings.catalog.terms import character_tfidf
from embeddings.catalog.titles import normalise_text
from experiments.marketplace.days.slates import SLATE_SIZES, SLOTS, ListSlates
from experiments.marketplace.world.candidates import (
    CandidateGrades,
    GradeChances,
    Likeness,
    find_candidates,
)
from experiments.marketplace.world.real_catalog import RealWorld, read_real_world
from tests.experiments.marketplace.real_shop import tiny_log, write_shop


@pytest.fixture(scope="module")
def shop_world(tmp_path_factory) -> RealWorld:
    shop = write_shop(tmp_path_factory.mktemp("candidates") / "shop")
    return read_real_world(tiny_log(), shop, np.random.SeedSequence(1))


@given(
    pairs=st.dictionaries(
        st.tuples(st.integers(0, 6), st.integers(0, 4)), st.integers(0, 2), min_size=1, max_size=25
    )
)
def test_a_grade_is_that_of_its_pair(pairs):
    ordered = sorted(pairs)
    query_E, product_E = np.array(ordered).T
    grades = CandidateGrades(
        5, query_E, product_E, np.array([pairs[pair] for pair in ordered]), np.ones(len(pairs), bool)
    )
    asked = list(reversed(ordered))
    found = grades.grades(*np.array(asked).T)
    assert found.tolist() == [pairs[pair] for pair in asked]
    assert grades.facets_found(query_E, product_E).tolist() == [0] * len(pairs)


def test_a_pair_that_is_no_candidate_has_no_grade():
    grades = CandidateGrades(9, np.array([0]), np.array([4]), np.array([2]), np.array([True]))
    assert grades.grades(np.array([0, 0]), np.array([4, -1])).shape == (2,)
    with pytest.raises(AssertionError, match="no candidate"):
        grades.grades(np.array([0]), np.array([5]))


def test_ungraded_products_of_the_preset_mixed_are_of_the_type_that_the_query_is_about(shop_world):
    found = find_candidates(shop_world, "mixed", np.random.default_rng(0))
    ungraded = ~found.graded_E
    types = shop_world.catalog.type_P[found.product_E[ungraded]]
    np.testing.assert_array_equal(types, shop_world.queries.anchor_Q[found.query_E[ungraded]])
    assert len(np.unique(found.product_E[ungraded])) > 50, "not the same products for every query"


def test_ungraded_products_of_the_preset_retrieval_are_the_nearest_that_nobody_graded(shop_world):
    found = find_candidates(shop_world, "retrieval", np.random.default_rng(0))
    catalog, texts = shop_world.catalog, shop_world.queries.texts
    titles = [normalise_text(title) for title in catalog.titles]
    queries = [normalise_text(text) for text in texts]
    terms = character_tfidf(titles + queries)
    assert terms is not None
    cosine_QP = (terms.transform(queries) @ terms.transform(titles).T).toarray()
    for query in range(len(texts)):
        mine = found.query_E == query
        graded = found.product_E[mine & found.graded_E]
        rest = found.product_E[mine & ~found.graded_E]
        assert len(rest) == max(0, SLOTS - len(graded))
        others = np.setdiff1d(np.arange(catalog.num_products), np.append(graded, rest))
        if len(rest):
            assert cosine_QP[query, rest].min() >= cosine_QP[query, others].max() - 1e-6


def test_cosines_are_those_of_dense_vectors():
    likeness = Likeness.of(["oak lamp", "steel drill", "!"], ["oak lamp", "steel", ""])
    dense = (likeness.query_QF @ likeness.title_PF.T).toarray()
    query_N, product_N = np.divmod(np.arange(9), 3)
    np.testing.assert_allclose(likeness.cosines(query_N, product_N), dense.ravel(), atol=1e-6)
    assert dense[0, 0] == pytest.approx(1.0)
    empty = Likeness.of(["!", "?"], ["-"])
    assert empty.cosines(np.array([0]), np.array([1])).tolist() == [0.0]


class _KnownLikeness(Likeness):
    """Pairs of one query are as alike as the number of the product says, over ten."""

    def cosines(self, query_N, product_N):
        return np.asarray(product_N) / 10.0


def test_chances_count_graded_pairs_and_as_many_random_ones_as_irrelevant():
    likeness = _KnownLikeness(sp.csr_matrix((2, 1)), sp.csr_matrix((10, 1)))
    product_G = np.tile(np.arange(10), 300)
    query_G = np.repeat(np.arange(300), 10)
    grade_G = np.where(product_G >= 5, 2, 1)
    chances = GradeChances.fit(likeness, query_G, product_G, grade_G, np.random.default_rng(0))
    np.testing.assert_allclose(chances.share_B3.sum(axis=1), 1.0)
    assert chances.share_B3[0].tolist() == [0.0, 1.0, 0.0], "every pair is graded, so no random one is new"
    assert chances.share_B3[-1].tolist() == [0.0, 0.0, 1.0]
    half = product_G % 2 == 0  # the random pairs with odd products are new, and irrelevant
    chances = GradeChances.fit(
        likeness, query_G[half], product_G[half], grade_G[half], np.random.default_rng(0)
    )
    drawn = chances.draw(np.full(40_000, 0.9), np.random.default_rng(1))
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 40_000, chances.share_B3[-1], atol=0.01)
    irrelevant = sum(share[0] for share in chances.share_B3)
    assert irrelevant > 0.5


def test_a_likeness_that_no_pair_had_has_the_grades_of_the_next_more_alike() -> None:
    """Cosines of .2 and .6 alone: nothing lies below .2."""
    title_PF, query_QF = sp.csr_matrix([[0.2], [0.6]]), sp.csr_matrix(np.ones((100, 1)))
    query_G, product_G = np.repeat(np.arange(100), 2), np.tile([0, 1], 100)
    likeness = Likeness(title_PF=title_PF, query_QF=query_QF)
    chances = GradeChances.fit(likeness, query_G, product_G, product_G * 2, np.random.default_rng(0))
    assert chances.draw(np.full(1_000, 0.1), np.random.default_rng(1)).tolist() == [0] * 1_000


def test_a_long_list_fills_its_slates_whatever_the_grade(shop_world):
    """Twenty products of one query, equal bids, half of them irrelevant: all are shown as often."""
    import dataclasses

    count = 20
    catalog = dataclasses.replace(
        shop_world.catalog,
        ad_weight_P=np.ones(shop_world.catalog.num_products),
        available_from_P=np.where(np.arange(shop_world.catalog.num_products) == 19, 5, 0),
    )
    judge = CandidateGrades(
        catalog.num_products,
        np.zeros(count, int),
        np.arange(count),
        np.arange(count) % 2 * 2,
        np.ones(count, bool),
    )
    slates = ListSlates(catalog, judge.pools(catalog, shop_world.queries), judge)
    slates.open_day(0)
    ads = slates.show(np.zeros(8_000, int), np.random.default_rng(0))
    sizes = np.bincount(ads.search_N)
    np.testing.assert_allclose(np.bincount(sizes)[1:] / 8_000, SLATE_SIZES, atol=0.02)
    shown = np.bincount(ads.product_N, minlength=count)
    assert shown[19] == 0, "not launched yet"
    np.testing.assert_allclose(shown[:19] / shown.sum(), 1 / 19, atol=0.005)
    assert len(np.unique(ads.search_N * count + ads.product_N)) == len(ads.product_N)
    np.testing.assert_array_equal(ads.grade_N, ads.product_N % 2 * 2)
    first, last = (ads.grade_N[ads.position_N == place].mean() for place in (1, SLOTS))
    assert first > last + 0.2, "the platform puts what it believes relevant first"
