"""Lexical scores against their formulas, and on titles whose order is obvious."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.catalog.terms import character_ngrams
from embeddings.catalog.titles import normalise_text
from embeddings.evaluation.lexical import (
    B_GRID,
    K1,
    K1_GRID,
    B,
    bm25_scores,
    char_tfidf_scores,
    tuned_bm25,
)
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


def test_stemming_finds_other_forms_of_a_word():
    titles = ["rye breads", "green tea"]
    (plain_P,) = bm25_scores(titles, ["bread"])
    (stemmed_P,) = bm25_scores(titles, ["bread"], language="english")
    assert not plain_P.any()
    assert stemmed_P[0] > 0 == stemmed_P[1]


def test_k1_and_b_are_those_of_the_formula():
    titles = ["oat milk", "oat oat oat biscuits with raisins and oat"]
    (scores_P,) = bm25_scores(titles, ["oat"], k1=0.4, b=0.25)
    idf = math.log(1 + 0.5 / 2.5)
    lengths, counts = [2, 8], [1, 4]
    expected = [
        idf * count / (count + 0.4 * (0.75 + 0.25 * length / 5))
        for count, length in zip(counts, lengths, strict=True)
    ]
    np.testing.assert_allclose(scores_P, expected, rtol=1e-5)


def test_tuning_takes_the_pair_that_measures_best_and_the_first_of_equals():
    def measure(scorer):
        asked.append((scorer.keywords["k1"], scorer.keywords["b"]))
        assert scorer.keywords["language"] == "english"
        return -abs(asked[-1][0] - 0.8) - abs(asked[-1][1] - 0.25)

    asked: list[tuple[float, float]] = []
    scorer, k1, b = tuned_bm25(measure, language="english")
    assert (k1, b) == (0.8, 0.25) == (scorer.keywords["k1"], scorer.keywords["b"])
    assert sorted(asked) == sorted((k1, b) for k1 in K1_GRID for b in B_GRID)
    assert tuned_bm25(lambda scorer: 0.5, language=None)[1:] == (K1_GRID[0], B_GRID[0])


def loop_char_tfidf(titles: list[str], query: str) -> list[float]:
    """Cosine of (1 + ln tf) (1 + ln((1 + N) / (1 + n))) over the n-grams of titles."""
    grams = [character_ngrams(normalise_text(title)) for title in titles]
    known = sorted({gram for title in grams for gram in title})
    weight = {
        gram: 1 + math.log((1 + len(titles)) / (1 + sum(gram in title for title in grams))) for gram in known
    }

    def vector(found: list[str]) -> list[float]:
        values = [
            (1 + math.log(found.count(gram))) * weight[gram] if gram in found else 0.0 for gram in known
        ]
        length = math.sqrt(sum(value * value for value in values)) or 1.0
        return [value / length for value in values]

    asked = vector(character_ngrams(normalise_text(query)))
    return [sum(a * b for a, b in zip(asked, vector(found), strict=True)) for found in grams]


@settings(deadline=None, max_examples=30)
@given(
    titles=st.lists(st.text("abc 1", min_size=1, max_size=12), min_size=1, max_size=6),
    query=st.text("abcd 1", max_size=10),
)
def test_ngram_cosines_equal_the_formula(titles, query):
    (scores_P,) = char_tfidf_scores(titles, [query])
    np.testing.assert_allclose(scores_P, loop_char_tfidf(titles, query), rtol=1e-5, atol=1e-6)


def test_ngrams_find_what_is_misspelt_and_words_do_not():
    titles = ["Shampoo dry hair", "Soap bar", None]
    (words_P,) = bm25_scores(titles, ["shampo"], language="english")
    (ngrams_P,) = char_tfidf_scores(titles, ["shampo"])
    assert not words_P.any()
    assert ngrams_P[0] > 0
    assert not ngrams_P[1:].any()


def test_titles_without_any_letter_score_nothing():
    assert not np.stack(list(char_tfidf_scores(["", None], ["tea", ""]))).any()
