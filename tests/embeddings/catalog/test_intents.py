"""Queries that ask for the same thing are one group, and no more than these."""

import pytest

from embeddings.catalog.intents import intent_groups
from embeddings.catalog.terms import stemmer


@pytest.mark.parametrize(
    "queries",
    [
        ["red paint", "paint red", "Red Paints", "painting, red"],
        ["cordless drill 18v", "drill cordless 18 V", "cordless drills 18v"],
        ["kitchen faucet brushed nickel", "kitchen faucett brushed nickel"],
    ],
)
def test_word_order_plurals_and_slips_of_the_keyboard_are_one_intent(queries: list[str]) -> None:
    filler = ["lawn mower", "toilet seat", "wood screws", "paint roller"]
    assert intent_groups([*queries, *filler]).tolist() == [0] * len(queries) + [
        len(queries) + place for place in range(len(filler))
    ]


def test_other_words_are_other_intents() -> None:
    queries = ["red paint", "red paint paint brush", "white paint", "2 in screws", "3 in screws", "", "  "]
    assert len(set(intent_groups(queries).tolist())) == len(queries)


def test_the_threshold_is_a_cosine() -> None:
    queries = ["kitchen faucet brushed nickel", "kitchen faucett brushed nickel", "lamp"]
    assert intent_groups(queries, near_duplicate=0.99).tolist() == [0, 1, 2]
    assert intent_groups(queries, near_duplicate=0.3).tolist() == [0, 0, 2]


def test_near_duplicates_are_found_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    queries = [
        "kitchen faucet brushed nickel",
        "lamp",
        "wood screws",
        "lawn mower",
        "kitchen faucett brushed nickel",
    ]
    whole = intent_groups(queries).tolist()
    monkeypatch.setattr("embeddings.catalog.intents._BLOCK", 2)
    assert intent_groups(queries).tolist() == whole == [0, 1, 2, 3, 0]


def test_too_many_queries_are_grouped_by_their_stems_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embeddings.catalog.intents.MAX_COMPARED", 2)
    queries = ["red paint", "paints red", "kitchen faucet brushed nickel", "kitchen faucett brushed nickel"]
    assert intent_groups(queries).tolist() == [0, 0, 2, 3]


def test_a_language_without_a_stemmer_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no stemmer for 'klingon'; take one of .*english"):
        stemmer("klingon")
