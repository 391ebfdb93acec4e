"""BM25 against its formula, and on titles whose order is obvious."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.catalog.titles import normalise_text
from embeddings.evaluation.bm25 import K1, B, bm25_scores
from embeddings.evaluation.search import top_rows

TITLES = ["Oat Milk, 1 l", "Whole Milk", "Oat Oat Cookies", None, "", "Green Tea 20 bags"]


def loop_scores(titles: list[str | None], query: str | None) -> list[float]:
    """The formula of the module's docstring."""
    words = [normalise_text(title or "").split() for title in titles]
    mean = sum(map(len, words)) / max(len(words), 1)
    scores = []
    for title in words:
        score = 0.0
        for word in normalise_text(query or "").split():
            holding = sum(word in other for other in words)
            idf = math.log(1 + (len(words) - holding + 0.5) / (holding + 0.5))
            count = title.count(word)
            if count:
                score += idf * count / (count + K1 * (1 - B + B * len(title) / mean))
        scores.append(score)
    return scores


@settings(deadline=None)
@given(
    titles=st.lists(st.one_of(st.none(), st.text("ab c1", max_size=12)), min_size=1, max_size=8),
    query=st.one_of(st.none(), st.text("abd c1", max_size=10)),
)
def test_scores_equal_the_formula(titles, query):
    (scores_P,) = bm25_scores(titles, [query])
    np.testing.assert_allclose(scores_P, loop_scores(titles, query), rtol=1e-5, atol=1e-6)


def test_queries_are_scored_in_turn_and_alone_as_together():
    queries = ["oat milk", "", "tea", None, "quantum"]
    together = np.stack(list(bm25_scores(TITLES, queries)))
    assert together.shape == (5, 6)
    for row, query in enumerate(queries):
        np.testing.assert_array_equal(together[row], next(bm25_scores(TITLES, [query])))
    assert not together[[1, 3, 4]].any()


def test_accents_case_and_glued_digits_do_not_matter():
    np.testing.assert_array_equal(*bm25_scores(["Café au lait 12 oz", "tea"], ["CAFÉ 12OZ", "cafe 12 oz"]))


def best_rows(query, k, titles=TITLES):
    return top_rows(next(bm25_scores(titles, [query])), k).tolist()


def test_the_title_with_both_words_is_first_and_titles_without_any_follow_in_order():
    # One of two words twice (row 2) is worth more than the other word once (row 1).
    assert best_rows("oat milk", 6) == [0, 2, 1, 3, 4, 5]
    assert best_rows("tea", 3) == [5, 0, 1]


def test_a_rare_word_counts_more_than_a_common_one():
    titles = ["milk a", "milk b", "milk c", "tea d"]
    assert best_rows("milk tea", 1, titles) == [3]


@pytest.mark.parametrize(("titles", "queries", "shape"), [([], ["tea"], (1, 0)), (TITLES, [], (0,))])
def test_nothing_to_rank_gives_an_empty_ranking(titles, queries, shape):
    assert np.array(list(bm25_scores(titles, queries))).shape == shape
