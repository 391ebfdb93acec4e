"""One schedule for two optimizers; row-wise Adagrad against its formula."""

from itertools import pairwise

import pytest
import torch

from features.batches.batch import one_id_each
from ranking.embedding_collection import TableSpec, trainable_collection
from ranking.model import build_ranker
from ranking.optimizer import OptimizerConfig, RankerOptimizer, dense_parameters
from tests.ranking.random_batches import RANKERS, inputs


def test_row_wise_adagrad_follows_its_formula() -> None:
    collection = trainable_collection(
        [TableSpec("t", 4, 4, ("k",))],
        learning_rate=0.5,
        init_scale=0.1,
        generator=torch.Generator().manual_seed(0),
        device=torch.device("cpu"),
    )
    expected = collection.embedding_bags["t"].weight.detach().double().clone()
    moment = torch.zeros(4, dtype=torch.float64)
    ids = torch.tensor([[1, 2, 1]], dtype=torch.int32)  # row 1 twice: its gradients add up first
    gradient = torch.tensor([[1.0, 0, 0, 2], [0, 1, 0, 0], [1, 1, 0, 0]])
    for _ in range(3):
        (collection(one_id_each(["k"], ids))["k"] * gradient).sum().backward()
        for row, g in ((1, gradient[0] + gradient[2]), (2, gradient[1])):
            moment[row] += (g.double() ** 2).mean()
            expected[row] -= 0.5 * g / (moment[row].sqrt() + 1e-8)
    torch.testing.assert_close(
        collection.embedding_bags["t"].weight.double(), expected, rtol=1e-5, atol=1e-6, check_dtype=False
    )


def test_the_schedule_rises_then_falls_to_zero() -> None:
    ranker = build_ranker(RANKERS["dcn"], inputs(), seed=1)
    optimizer = RankerOptimizer(ranker, OptimizerConfig(warmup_steps=4), total_steps=12)
    factors = [optimizer.set_learning_rates(step) for step in range(13)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[8] == pytest.approx(0.5)
    assert factors[12] == 0.0
    assert all(a >= b for a, b in pairwise(factors[3:]))


def test_a_final_share_of_one_keeps_the_rates_constant() -> None:
    ranker = build_ranker(RANKERS["dcn"], inputs(), seed=1)
    for final_share, expected in ((1.0, 1.0), (0.25, 0.25)):
        config = OptimizerConfig(warmup_steps=2, final_share=final_share)
        optimizer = RankerOptimizer(ranker, config, total_steps=10)
        assert optimizer.set_learning_rates(0) == 0.5
        assert optimizer.set_learning_rates(2) == 1.0
        assert optimizer.set_learning_rates(10) == expected


def test_a_learning_rate_of_zero_leaves_the_tables_alone() -> None:
    ranker = build_ranker(RANKERS["dcn"], inputs(), seed=1)
    optimizer = RankerOptimizer(ranker, OptimizerConfig(warmup_steps=0), total_steps=5)
    optimizer.set_learning_rates(5)
    table = ranker.sparse_tables.collection.embedding_bags["user"].weight
    before = table.detach().clone()
    rows = torch.ones(3, 4, dtype=torch.int32)
    out = ranker.sparse_tables(one_id_each(["user", "brand", "device"], rows))
    optimizer.update(out[0].sum() + sum(p.sum() for _, p in dense_parameters(ranker)))
    assert torch.equal(before, table)


def test_dense_parameters_are_all_but_the_tables() -> None:
    ranker = build_ranker(RANKERS["random tables"], inputs(), seed=1)
    names = [name for name, _ in dense_parameters(ranker)]
    assert names
    assert not [name for name in names if "tables" in name]
    assert len(names) + 5 == len(list(ranker.parameters()))  # user, brand, device, product, query
