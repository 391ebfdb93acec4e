"""Roles of queries by what they ask for, as the relevance table says it or as their words do."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embeddings.catalog.holdout import TEST, TRAIN, HoldoutConfig, query_roles
from embeddings.relevance.grades import RelevanceError, read_grades

HALF = HoldoutConfig(test_query_share=0.3, validation_query_share=0.2)
QUERIES = [f"{colour} thing {number}" for colour in ("red", "green", "blue") for number in range(40)]


def write(
    folder: Path,
    queries: list[str],
    intents: list[str | None] | None = None,
    sources: list[str] | None = None,
) -> Path:
    folder.mkdir()
    pq.write_table(pa.table({"product_id": [1], "title": ["Thing"]}), folder / "products.parquet")
    columns = {
        "query": queries,
        "product_id": [1] * len(queries),
        "grade": pa.array([2] * len(queries), pa.int8()),
        "source": sources or ["human"] * len(queries),
    }
    if intents is not None:
        columns["intent"] = pa.array(intents, pa.string())
    pq.write_table(pa.table(columns), folder / "relevance.parquet")
    return folder


def test_queries_of_one_intent_have_one_role_which_later_data_do_not_change(tmp_path: Path) -> None:
    intents = [f"intent {place % 30}" for place in range(len(QUERIES))]
    grades = read_grades(write(tmp_path / "all", QUERIES, intents))
    role_of = dict(zip(grades.queries.to_pylist(), grades.query_roles(HALF).tolist(), strict=True))
    for name in set(intents):
        assert len({role_of[query] for query, own in zip(QUERIES, intents, strict=True) if own == name}) == 1
    assert set(role_of.values()) == {0, 1, 2}
    fewer = read_grades(write(tmp_path / "fewer", QUERIES[:50], intents[:50]))
    assert fewer.query_roles(HALF).tolist() == [role_of[query] for query in fewer.queries.to_pylist()]


def test_a_query_without_an_intent_goes_by_its_spelling(tmp_path: Path) -> None:
    grades = read_grades(write(tmp_path / "data", QUERIES, [None if "red" in q else "one" for q in QUERIES]))
    expected = query_roles(grades.queries, HALF)
    red_Q = np.array(["red" in query for query in grades.queries.to_pylist()])
    np.testing.assert_array_equal(grades.query_roles(HALF)[red_Q], expected[red_Q])
    assert len(set(grades.query_roles(HALF)[~red_Q].tolist())) == 1


def test_without_intents_a_group_has_the_role_of_its_most_held_out_member(tmp_path: Path) -> None:
    twins = [f"{query}s" for query in QUERIES if "red" in query]
    grades = read_grades(write(tmp_path / "data", [*QUERIES, *twins]))
    by_spelling = dict(
        zip(grades.queries.to_pylist(), query_roles(grades.queries, HALF).tolist(), strict=True)
    )
    group_Q, role_Q = grades.intent_groups(), grades.query_roles(HALF)
    for group in set(group_Q.tolist()):
        members = np.array(grades.queries.to_pylist())[group_Q == group].tolist()
        assert set(role_Q[group_Q == group].tolist()) == {max(by_spelling[query] for query in members)}
    assert len(set(group_Q.tolist())) < len(group_Q)


def reversed_words(query: str) -> str:
    return " ".join(reversed(query.split()))


@pytest.mark.parametrize("told", [0, 1, 60])
def test_queries_of_which_the_column_says_nothing_go_by_their_words_with_those_that_it_tells(
    tmp_path: Path, told: int
) -> None:
    queries = [*QUERIES, *map(reversed_words, QUERIES)]
    intents: list[str | None] = [f"intent {place // 2}" if place < told else None for place in range(240)]
    grades = read_grades(write(tmp_path / "data", queries, intents))
    role_of = dict(zip(grades.queries.to_pylist(), grades.query_roles(HALF).tolist(), strict=True))
    assert all(role_of[query] == role_of[reversed_words(query)] for query in QUERIES)
    for first in range(0, told - 1, 2):  # whole intents move
        assert role_of[QUERIES[first]] == role_of[QUERIES[first + 1]]
    assert set(role_of.values()) == {0, 1, 2}


def test_a_query_has_one_role_whose_grades_are_read(tmp_path: Path) -> None:
    """Else stage 2 could train, by one source's grades, on what table 1 calls an unseen query."""
    queries = [*QUERIES, *map(reversed_words, QUERIES)]
    sources = ["human"] * len(QUERIES) + ["llm"] * len(QUERIES)
    data = write(tmp_path / "data", queries, sources=sources)
    everything, people = read_grades(data), read_grades(data, sources=["human"])
    role_of = dict(zip(everything.queries.to_pylist(), everything.query_roles(HALF).tolist(), strict=True))
    assert people.queries.to_pylist() == sorted(QUERIES)
    assert people.query_roles(HALF).tolist() == [role_of[query] for query in people.queries.to_pylist()]
    assert len(set(people.intent_groups().tolist())) == len(QUERIES)


def test_by_spelling_twins_may_be_trained_on(tmp_path: Path) -> None:
    """The split of earlier releases, to repeat what they published."""
    grades = read_grades(write(tmp_path / "data", QUERIES, ["one"] * len(QUERIES)))
    spelling = HALF.model_copy(update={"by": "spelling"})
    np.testing.assert_array_equal(grades.query_roles(spelling), query_roles(grades.queries, spelling))
    assert {TRAIN, TEST} <= set(grades.query_roles(spelling).tolist())


def test_two_intents_of_one_query_are_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "data", ["oat milk", "oat milk"], ["a", "b"])
    with pytest.raises(RelevanceError, match="gives the query 'oat milk' two intents, 'a' and 'b'"):
        read_grades(data)
