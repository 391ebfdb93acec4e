"""Products graded lower for a query join those it picks from, and no others do."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import embeddings.stages.runs
from embeddings.relevance.build_tuples import read_grades
from embeddings.relevance.sampling import TupleConfig
from embeddings.stages.lower_graded import LowerGraded
from embeddings.stages.runs import align
from embeddings.stages.stage2 import AlignConfig, Tuples
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.small_encoders import align_task, build_small_tuples, small_encoder

PAIRS = st.dictionaries(st.tuples(st.integers(0, 9), st.integers(0, 4)), st.integers(0, 2), min_size=1)


def of_pairs(pairs: dict[tuple[int, int], int], group_Q: np.ndarray) -> LowerGraded:
    product_G, group_G = np.array(list(pairs)).T
    return LowerGraded(product_G, group_G, np.array(list(pairs.values())), group_Q)


@given(PAIRS, st.lists(st.tuples(st.integers(0, 4), st.integers(1, 2)), max_size=6), st.integers(1, 4))
def test_up_to_so_many_products_of_a_lower_grade_are_drawn_for_each_pair(
    pairs: dict[tuple[int, int], int], positives: list[tuple[int, int]], count: int
) -> None:
    lower = of_pairs(pairs, np.arange(5))
    below = [
        {product for (product, query), grade in pairs.items() if query == asked and grade < own}
        for asked, own in positives
    ]
    query_B, grade_B = np.array(positives, int).reshape(-1, 2).T
    found = lower.draw(query_B, grade_B, count, seed=(3, 0))
    assert found.tolist() == sorted(set(found.tolist()))
    assert set(found.tolist()) <= set().union(*below)
    if all(len(products) <= count for products in below):
        assert set(found.tolist()) == set().union(*below)
    assert len(found) <= sum(min(count, len(products)) for products in below)
    alone = [
        set(lower.draw(query_B[[row]], grade_B[[row]], count, seed=(3, 0)).tolist())
        for row in range(len(query_B))
    ]
    assert [len(one) for one in alone] == [min(count, len(products)) for products in below]
    assert set(found.tolist()) == set().union(*alone)


def test_another_step_draws_others_and_every_one_has_its_turn() -> None:
    lower = of_pairs({(product, 0): 0 for product in range(8)}, np.zeros(1, int))
    drawn = [
        tuple(lower.draw(np.array([0]), np.array([2]), 2, seed=(0, step)).tolist()) for step in range(40)
    ]
    assert len(set(drawn)) > 5
    assert {product for one in drawn for product in one} == set(range(8))


def test_spellings_of_a_query_share_their_products() -> None:
    lower = of_pairs({(4, 0): 0, (5, 1): 0}, np.array([0, 1, 0]))
    assert lower.draw(np.array([2]), np.array([1]), 3, seed=(0,)).tolist() == [4]


def test_nothing_can_be_drawn_without_queries_that_pick_products() -> None:
    with pytest.raises(ValidationError, match="only the losses of product_negatives and grade_weight"):
        AlignConfig(epochs=1, batch_size=2, learning_rate=0.1, graded_negatives=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_catalog(tmp_path_factory.mktemp("align"), products=24)


@pytest.fixture(scope="module")
def tuples(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuples:
    return build_small_tuples(data, tmp_path_factory.mktemp("tuples"))


def test_what_joins_a_batch_is_graded_below_a_positive_of_it_and_may_be_trained_on(
    data: Path, tuples: Tuples
) -> None:
    grades = read_grades(data)
    grade_of = {
        (product, query): grade
        for product, query, grade in zip(grades.product_G, grades.query_G, grades.grade_G, strict=True)
    }
    train_P = np.arange(24) % 3 > 0
    task = align_task(data, tuples, product_negatives=8, graded_negatives=2, train_P=train_P)
    plain = align_task(data, tuples, product_negatives=8)
    joined = 0
    for batch, without in zip(task.micro_batches(0, 0), plain.micro_batches(0, 0), strict=True):
        own = set(without.products.index_B.tolist())
        assert batch.products.index_B[batch.product_B].equal(without.products.index_B[without.product_B])
        for product in set(batch.products.index_B.tolist()) - own:
            assert train_P[product]
            assert any(
                grade_of.get((product, query), 9) < grade
                for query, grade in zip(batch.positive_B.tolist(), batch.grade_B.tolist(), strict=True)
            )
            joined += 1
    assert joined > 0


def test_those_that_join_come_with_their_images(data: Path, tuples: Tuples) -> None:
    task = align_task(data, tuples, product_negatives=8, graded_negatives=2)
    assert task.image_cache is not None
    for batch in task.micro_batches(0, 0):
        shown_U = torch.tensor([task.catalog.image_paths[row] is not None for row in batch.products.index_B])
        assert batch.products.has_image_B.equal(shown_U)


def test_an_evaluation_draws_none(data: Path, tuples: Tuples) -> None:
    task = align_task(data, tuples, product_negatives=8, graded_negatives=2)
    assert task.evaluate() == align_task(data, tuples, product_negatives=8).evaluate()


@pytest.mark.parametrize("draw, expected", [(False, None), (True, 7)])
def test_stage_2_draws_grades_with_its_seed_where_asked(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw: bool, expected: int | None
) -> None:
    asked: list[int | None] = []

    def noted(*_: object, draw_seed: int | None, **__: object) -> None:
        asked.append(draw_seed)
        raise InterruptedError

    monkeypatch.setattr(embeddings.stages.runs, "read_grades", noted)
    config = AlignConfig(epochs=1, batch_size=2, learning_rate=0.1, seed=7)
    with pytest.raises(InterruptedError):
        align(
            data, tmp_path, start=small_encoder(), config=config, tuple_config=TupleConfig(draw_grades=draw)
        )
    assert asked == [expected]


def test_the_loss_of_graded_pairs_is_a_loop_over_all_that_people_graded_in_the_batch(
    data: Path, tuples: Tuples
) -> None:
    grades = read_grades(data)
    queries = grades.queries.to_pylist()
    task = align_task(data, tuples, grade_weight=3.0, graded_negatives=2)
    batch = next(iter(task.micro_batches(0, 0)))
    task.module.train()
    with torch.no_grad():
        found = task.module(batch)
        product_UD, query_VD = task.module.vectors(batch)
    text_of = {
        tuple(ids[mask > 0].tolist()): query
        for query, ids, mask in zip(queries, *task.query_tokens, strict=True)
    }
    asked = [
        text_of[tuple(row[mask > 0].tolist())]
        for ids, masks in batch.query_chunks
        for row, mask in zip(ids, masks, strict=True)
    ]
    losses = []
    for product, query, grade in zip(grades.product_G, grades.query_G, grades.grade_G, strict=True):
        if product in batch.products.index_B and queries[query] in asked:
            place = batch.products.index_B.tolist().index(product)
            cosine = float(product_UD[place] @ query_VD[asked.index(queries[query])])
            chance = 1 / (1 + math.exp(-10 * (cosine - 0.5)))
            target = grade / 2
            losses.append(-target * math.log(chance) - (1 - target) * math.log(1 - chance))
    assert len({*grades.grade_G.tolist()}) == 3
    assert len(losses) > len(batch.product_B)
    assert float(found["grades"]) == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    rest = sum(float(found[name]) for name in ("pqc", "products", "title_queries") if name in found)
    assert float(found["loss"]) == pytest.approx(rest + 3 * float(found["grades"]), rel=1e-4)
