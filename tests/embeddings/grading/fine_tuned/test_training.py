"""Batches of like lengths, a loss that weighs its pairs, and a state without what is frozen."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from embeddings.grading.fine_tuned.training import GradeBatch, GradeLearner, batches_of_like_length, by_length


def test_each_row_is_in_one_batch_at_most_and_only_a_rest_is_left_out() -> None:
    length_N = np.random.default_rng(0).integers(3, 60, 1003)
    batches = batches_of_like_length(length_N, 8, np.random.default_rng(1))
    rows = np.concatenate(batches)
    assert {len(batch) for batch in batches} == {8}
    assert len(rows) == len({*rows.tolist()}) == 1000
    # Padding is a fraction of what random batches have.
    random = np.random.default_rng(2).permutation(1000).reshape(-1, 8)
    padded = [sum(int(length_N[batch].max()) for batch in some) for some in (batches, random)]
    assert padded[0] < 0.75 * padded[1]
    other = batches_of_like_length(length_N, 8, np.random.default_rng(2))
    assert [*map(set, batches)] != [*map(set, other)]


def test_batches_do_not_come_in_order_of_length() -> None:
    """Or an epoch would end with long texts alone."""
    length_N = np.arange(256)
    longest = [
        int(length_N[batch].max()) for batch in batches_of_like_length(length_N, 8, np.random.default_rng(0))
    ]
    assert longest != sorted(longest)


def test_by_length_gives_every_row_once_the_shortest_first() -> None:
    length_N = np.array([5, 1, 4, 2, 3])
    assert [rows.tolist() for rows in by_length(length_N, 2)] == [[1, 3], [4, 2], [0]]


def test_the_loss_is_the_weighted_mean_in_nats() -> None:
    logits_BC = torch.tensor([[0.0, 0.0, 0.0], [math.log(2.0), 0.0, 0.0]])
    learner = GradeLearner(nn.Identity())
    loss = learner(GradeBatch(logits_BC, torch.tensor([1, 0]), torch.tensor([1.0, 3.0])))["loss"]
    # -log(1/3) once and -log(2/4) three times.
    assert float(loss) == pytest.approx((math.log(3) + 3 * math.log(2)) / 4)


def test_the_state_has_trained_weights_alone_and_takes_them_back() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
    model[0].requires_grad_(False)
    learner = GradeLearner(model)
    state = {name: value.clone() for name, value in learner.state_dict().items()}
    assert [*state] == ["model.1.weight", "model.1.bias"]
    with torch.no_grad():
        model[1].weight.zero_()
    learner.load_state_dict(state)
    assert torch.equal(model[1].weight, state["model.1.weight"])
