"""Chunks of an evaluation, chance levels, and what is said of a training that learned nothing."""

import math

import numpy as np
import pytest
import torch

from embeddings.training.evaluation import (
    CHUNK_ROWS,
    beside_chance,
    evaluation_chunks,
    found_in_chunk,
    learned_nothing,
    no_better_than_chance,
)
from embeddings.training.losses import NO_GROUP, Columns, constant_matching_loss, itc_loss


@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65, 128, 239, 1000])
def test_every_chunk_has_one_size_and_every_row_is_in_one(rows: int) -> None:
    index_N = np.arange(100, 100 + rows)
    chunks = evaluation_chunks(index_N)
    assert {len(chunk) for chunk in chunks} == {min(rows, CHUNK_ROWS)}
    assert np.array_equal(np.unique(np.concatenate(chunks)), index_N)
    assert len(chunks) == math.ceil(rows / CHUNK_ROWS)


def test_no_row_gives_no_chunk() -> None:
    assert evaluation_chunks(np.empty(0, np.int64)) == []


def test_chance_is_the_mean_over_all_answers_that_a_row_can_give() -> None:
    group_C = torch.tensor([7, 7, 8, 9, NO_GROUP, 9, 9])
    known = [row for row, group in enumerate(group_C.tolist()) if group != NO_GROUP]
    hits = [group_C[row] == group_C[answer] for row in known for answer in known]
    found = found_in_chunk(torch.zeros(7, 7), group_C)
    assert found.rows == 6
    assert found.hits_at_chance / found.rows == pytest.approx(sum(map(float, hits)) / len(hits))


def test_the_chance_level_of_a_contrast_is_its_loss_when_all_similarities_are_equal() -> None:
    same_BD, group_B = torch.ones(5, 4) / 2, torch.tensor([0, 1, 1, NO_GROUP, 2])
    columns = Columns(same_BD, same_BD, group_B)
    loss = itc_loss(
        same_BD, same_BD, columns, positive_B=torch.arange(5), temperature=0.07, alpha=0.0
    ).loss.item()
    found = found_in_chunk(same_BD @ same_BD.T, group_B)
    assert found.loss_at_chance / found.rows == pytest.approx(loss, rel=1e-6)


def test_a_chunk_without_a_known_row_adds_nothing() -> None:
    assert found_in_chunk(torch.zeros(2, 2), torch.tensor([NO_GROUP, NO_GROUP])) == (0, 0, 0, 0)


def measures(**changes: float) -> dict[str, float]:
    chance = {"matching_loss_at_chance": constant_matching_loss(1, 2), "image_finds_title_at_chance": 1 / 64}
    values = {"loss": 0.2, "matching_loss": 0.3, "image_finds_title": 0.5, "rows": 64.0}
    return {**values, **chance, **changes}


def test_a_measure_that_is_clearly_better_than_chance_is_not_named() -> None:
    assert no_better_than_chance(measures()) == []
    assert learned_nothing("stage 1", measures()) is None


@pytest.mark.parametrize("loss", [0.6365, 0.6364, 0.637, 0.9])
def test_a_loss_at_that_of_a_constant_answer_has_learned_nothing(loss: float) -> None:
    assert no_better_than_chance(measures(matching_loss=loss)) == ["matching_loss"]
    said = learned_nothing("stage 1", measures(matching_loss=loss))
    assert said is not None
    assert said.startswith(f"stage 1 has learned nothing by matching_loss {loss:.4f} (chance 0.6365)")


def test_a_share_must_exceed_its_chance_level_by_more_than_luck() -> None:
    luck = 1 / 64 + 2 * math.sqrt(1 / 64 * 63 / 64 / 64)
    assert no_better_than_chance(measures(image_finds_title=luck - 1e-6)) == ["image_finds_title"]
    assert no_better_than_chance(measures(image_finds_title=luck + 1e-6)) == []
    assert no_better_than_chance(measures(image_finds_title=luck + 1e-6, image_finds_title_rows=8)) == [
        "image_finds_title"
    ]


def test_the_chance_level_stands_beside_each_measure() -> None:
    found = {"loss": 0.5, "rows": 1200.0, "loss_at_chance": 2.0}
    assert beside_chance(found) == "loss 0.5000 (chance 2.0000), rows 1,200"


def test_the_best_constant_answer_is_the_entropy_of_the_mix_of_pairs() -> None:
    assert constant_matching_loss(1, 2) == pytest.approx(0.6365, abs=1e-4)
    assert constant_matching_loss(3, 3) == pytest.approx(math.log(2))
    assert constant_matching_loss(5, 0) == 0
    answers = np.linspace(0.001, 0.999, 999)
    losses = -(4 * np.log(answers) + 6 * np.log(1 - answers)) / 10
    assert constant_matching_loss(4, 6) == pytest.approx(losses.min(), abs=1e-5)
