"""Examples for each pair: the nearest queries, never the same intent, never a held-out query."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from embeddings.catalog.holdout import TEST, TRAIN, VALIDATION
from embeddings.grading.language_models.examples import NearestExamples
from embeddings.grading.language_models.prompt import TEMPLATE, Prompt
from embeddings.grading.pairs import GradedPairs, GradingError, Pairs
from tests.embeddings.grading.small_world import read_small_world

#: Query, text, grade, intent, role.
ROWS = (
    ("oak door", "Oak door", 2, 0, TRAIN),
    ("oak door", "Oak doors, two", 2, 0, TRAIN),
    ("oak door", "Pine door", 1, 0, TRAIN),
    ("oaken gate", "Gate", 2, 0, TRAIN),
    ("pine door", "Pine door", 2, 1, TRAIN),
    ("white oak shelf", "Shelf", 2, 2, TRAIN),
    ("oak door white", "White door", 2, 3, VALIDATION),
    ("oak door black", "Black door", 2, 4, TEST),
    ("led lamp", "Lamp", 0, 5, TRAIN),
)


@pytest.fixture
def graded() -> GradedPairs:
    queries, texts, grades, intents, roles = zip(*ROWS, strict=True)
    pairs = Pairs(list(queries), list(texts), pa.array(range(len(ROWS)), pa.int64()))
    group_N = np.unique(queries, return_inverse=True)[1].astype(np.int64)
    return GradedPairs(pairs, np.array(grades), group_N, np.array(roles, np.int8), np.array(intents))


def chosen(graded: GradedPairs, query: str, count: int = 9) -> list[tuple[str, str]]:
    return [(example.query, example.text) for example in NearestExamples(graded, count).of(query)]


def test_the_nearest_train_queries_give_one_pair_of_each_grade_and_the_nearest_stands_last(
    graded: GradedPairs,
) -> None:
    found = chosen(graded, "oak door handle")
    # Letters in common: " oa", "oak", " oak" of the gate, "ak " and "oak " more of the shelf.
    assert found == [
        ("oaken gate", "Gate"),
        ("white oak shelf", "Shelf"),
        ("pine door", "Pine door"),
        ("oak door", "Pine door"),
        ("oak door", "Oak door"),
    ]
    assert chosen(graded, "oak door handle", 1) == [("oak door", "Oak door")]
    assert chosen(graded, "sofa") == []


@pytest.mark.parametrize("query", ["oak door", "door, oak", "OAK DOORS", "oaken gate"])
def test_a_query_is_never_shown_grades_of_its_own_intent(graded: GradedPairs, query: str) -> None:
    found = chosen(graded, query)
    assert found
    assert not {"oak door", "oaken gate"} & {query for query, _ in found}


def test_held_out_queries_are_no_examples_whatever_is_asked(world: Path) -> None:
    _, graded = read_small_world(world)
    pool = NearestExamples(graded, 8)
    train = {*graded.of_role(TRAIN).pairs.queries}
    intent_of = dict(zip(graded.pairs.queries, graded.intent_N.tolist(), strict=True))
    for query in sorted(intent_of):
        found = pool.of(query)
        assert len(found) == 8
        assert {example.query for example in found} <= train
        assert intent_of[query] not in {intent_of[example.query] for example in found}


def prompt(folder: Path, count: int = 2) -> Prompt:
    text = TEMPLATE.replace("# examples_from", "examples_from")
    (folder / "prompt.toml").write_text(text.replace("# nearest_count = 4", f"nearest_count = {count}"))
    return Prompt.read(folder / "prompt.toml")


def test_the_start_is_the_same_for_all_and_examples_stand_right_before_the_pair(
    graded: GradedPairs, tmp_path: Path
) -> None:
    bound = prompt(tmp_path).with_nearest(NearestExamples(graded, 2))
    (tmp_path / "prompt.toml").write_text(TEMPLATE)
    system, user = bound.messages("oak door handle", "Brass handle")
    assert system == Prompt.read(tmp_path / "prompt.toml").messages("tea", "Tea")[0]
    assert user["content"] == (
        "Query: oak door\nProduct: Pine door\nGrade: moderate\n\n"
        "Query: oak door\nProduct: Oak door\nGrade: high\n\n"
        "Query: oak door handle\nProduct: Brass handle\nGrade:"
    )
    assert bound.shared_characters() > len(system["content"])


def test_the_checksum_covers_the_setting_and_every_example(graded: GradedPairs, tmp_path: Path) -> None:
    two, three = prompt(tmp_path, 2), prompt(tmp_path, 3)
    pool = NearestExamples(graded, 2)
    changed = replace(graded, grade_N=np.where(np.arange(len(graded)) == 8, 1, graded.grade_N))
    held_out = replace(graded, grade_N=np.where(graded.role_N == TEST, 0, graded.grade_N))
    shas = [
        two.sha256,
        three.with_nearest(pool).sha256,
        two.with_nearest(pool).sha256,
        two.with_nearest(NearestExamples(changed, 2)).sha256,
    ]
    assert len(set(shas)) == 4
    assert two.with_nearest(NearestExamples(held_out, 2)).sha256 == shas[2]
    assert all(re.fullmatch("[0-9a-f]{64}", sha) for sha in shas)


def test_examples_that_cannot_be_had_are_named(graded: GradedPairs, tmp_path: Path) -> None:
    with pytest.raises(GradingError, match="by --examples"):
        prompt(tmp_path).messages("tea", "Tea")
    with pytest.raises(GradingError, match="no examples to choose"):
        NearestExamples(graded.of_role(TEST), 2)
