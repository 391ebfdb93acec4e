"""Queries made from titles."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embeddings.catalog.titles import QUERY_WORDS, TYPO_LETTERS, shortened_title, title_query

titles = st.text(st.sampled_from("abcdé1 &,"), max_size=60)


@given(titles, st.integers(0, 2**32))
def test_a_query_has_few_words_and_each_is_one_of_the_title_but_for_one_typing_error(
    title: str, seed: int
) -> None:
    words = Counter(title.split())
    query = title_query(title, np.random.default_rng(seed)).split()
    assert len(query) <= QUERY_WORDS[1]
    assert bool(query) == bool(words)
    for word in query:
        near = [known for known in words if _one_error_apart(known, word)]
        assert near, (word, title)
    exact = Counter(word for word in query if word in words)
    assert all(count <= words[word] for word, count in exact.items() if len(word) < TYPO_LETTERS)


def _one_error_apart(known: str, typed: str) -> bool:
    """The same word, or one letter left out, doubled, or exchanged with the next."""
    if known == typed:
        return True
    if len(known) < TYPO_LETTERS:
        return False
    places = range(len(known) - 1)
    left_out = {known[: p + 1] + known[p + 2 :] for p in places} | {
        known[:p] + known[p + 1 :] for p in places
    }
    doubled = {known[: p + 1] + known[p:] for p in places}
    exchanged = {known[:p] + known[p + 1] + known[p] + known[p + 2 :] for p in places}
    return typed in left_out | doubled | exchanged


def test_every_word_of_a_title_is_asked_for_and_short_and_long_queries_occur() -> None:
    generator = np.random.default_rng(0)
    queries = [title_query("red oat bar big", generator).split() for _ in range(300)]
    assert {len(query) for query in queries} == {1, 2, 3, 4}
    assert {word for query in queries for word in query} == {"red", "oat", "bar", "big"}
    assert ["oat", "red"] in queries  # shuffled
    assert ["red", "oat"] in queries


@given(titles, st.integers(0, 2**32), st.floats(0, 0.99))
def test_a_shortened_title_keeps_the_order_of_its_words_and_at_least_one(
    title: str, seed: int, drop_share: float
) -> None:
    kept = shortened_title(title, np.random.default_rng(seed), drop_share=drop_share).split()
    words = iter(title.split())
    assert all(word in words for word in kept)  # a subsequence
    assert bool(kept) == bool(title.split())


def test_words_are_dropped_at_the_rate_that_is_asked_for() -> None:
    generator = np.random.default_rng(0)
    title = " ".join(f"word{number}" for number in range(10))
    kept = [len(shortened_title(title, generator, drop_share=0.3).split()) for _ in range(500)]
    assert abs(np.mean(kept) - 7) < 0.2  # six standard errors are 0.39
    assert shortened_title(title, generator, drop_share=0.0) == title
