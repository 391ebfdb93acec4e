"""Lessons are people's pairs of train queries and stuffed titles for these queries."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from embeddings.catalog.holdout import TRAIN, VALIDATION
from embeddings.grading.lessons import lessons_of
from embeddings.grading.pairs import GradingError
from embeddings.grading.trained import TrainingConfig
from tests.embeddings.grading.small_world import HOLDOUT, read_small_world


def test_stuffed_titles_are_irrelevant_weigh_less_and_stand_behind_peoples_pairs(world: Path) -> None:
    catalogue, graded = read_small_world(world)
    config = TrainingConfig(kind="any", stuffed_per_query=2, stuffed_weight=0.25, holdout=HOLDOUT)
    lessons = lessons_of(graded, catalogue, config)
    train = graded.of_role(TRAIN)
    assert lessons.people == len(train)
    assert lessons.stuffed == 2 * len({*train.pairs.queries})
    assert lessons.grade_N[: lessons.people].tolist() == train.grade_N.tolist()
    assert not lessons.grade_N[lessons.people :].any()
    assert {*lessons.weight_N[: lessons.people]} == {1.0}
    assert {*lessons.weight_N[lessons.people :]} == {0.25}
    assert {*lessons.pairs.queries} == {*train.pairs.queries}
    assert len(lessons.validation) == int((graded.role_N == VALIDATION).sum())
    asked = zip(
        lessons.pairs.queries, lessons.pairs.texts, lessons.pairs.product_ids.to_pylist(), strict=True
    )
    whole = 0
    for query, text, product in list(asked)[lessons.people :]:
        whole += text == catalogue.texts[product]
        assert text == catalogue.texts[product] or {*query.split()} <= {*text.split()}
    assert whole == pytest.approx(lessons.stuffed / 4, abs=1)


def test_fewer_pairs_are_those_of_whole_queries_drawn_by_the_seed(world: Path) -> None:
    catalogue, graded = read_small_world(world)
    in_all = Counter(graded.of_role(TRAIN).pairs.queries)
    some = [
        lessons_of(graded, catalogue, TrainingConfig(kind="any", seed=seed, holdout=HOLDOUT), most_pairs=90)
        for seed in (0, 0, 1)
    ]
    assert [lessons.people for lessons in some] == [90] * 3
    texts = [lessons.pairs.texts for lessons in some]
    assert texts[0] == texts[1] != texts[2]
    drawn = Counter(some[0].pairs.queries[:90])
    assert sum(count < in_all[query] for query, count in drawn.items()) <= 1
    assert some[0].stuffed == len(drawn)


def test_a_grade_that_nobody_gave_is_named_with_the_pairs_there_are(world: Path) -> None:
    catalogue, graded = read_small_world(world)
    low = graded.take(np.flatnonzero(graded.grade_N < 2))
    with pytest.raises(GradingError, match="none is graded high; the train queries have"):
        lessons_of(low, catalogue, TrainingConfig(kind="any", holdout=HOLDOUT))
