"""How a step's operators are sorted, what they move, and the arithmetic of limits. Nothing here is timed."""

import pytest
import torch
from torch import nn

from experiments.benchmarks.training.roofline import DcnShape
from experiments.benchmarks.training.step_profile import (
    KINDS,
    OperatorClock,
    kind_of,
    moved_bytes,
    profile_steps,
    step_shares,
)

SHAPE = DcnShape(dense_features=0, sparse_features=1, embedding_dim=4, cross_layers=1, deep_widths=())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("aten::mm", "products"),
        ("mkldnn::_linear_pointwise", "products"),
        ("aten::mul", "element_wise"),
        ("aten::sum", "element_wise"),
        ("aten::threshold_backward", "element_wise"),
        ("aten::cat", "copies"),
        ("aten::_to_copy", "copies"),
        ("fbgemm::split_embedding_codegen_forward_unweighted_cpu", "look_up"),
        ("fbgemm::bounds_check_indices", "look_up"),
        ("fbgemm::split_embedding_backward_codegen_rowwise_adagrad_cpu", "update"),
        ("aten::_fused_adamw_", "update"),
    ],
)
def test_every_operator_belongs_to_one_part_of_a_step(name: str, expected: str) -> None:
    assert kind_of(name) == expected
    assert expected in KINDS


def test_bytes_are_those_read_and_written() -> None:
    a, b = torch.ones(3, 4), torch.ones(3, 4)
    assert moved_bytes([a, b], [a * b]) == 3 * 48
    assert moved_bytes([a, b], [a.mul_(b)]) == 3 * 48  # read, read, written
    assert moved_bytes([a], [a.bfloat16()]) == 48 + 24
    assert moved_bytes([a], [a.t()]) == 0  # a view
    assert moved_bytes([torch.ones(1, 4).expand(3, 4), b], [a]) == 16 + 2 * 48  # what is expanded lies once
    assert moved_bytes([2, None], []) == 0


def test_the_clock_sees_forward_and_backward_pass_and_update() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 4)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    x = torch.randn(16, 8, requires_grad=True)

    def take() -> None:
        optimizer.zero_grad()
        layer(x).relu().sum().backward()
        optimizer.step()

    clock = OperatorClock()
    with clock:
        take()
    assert clock.costs["aten::addmm"].calls == 1
    assert clock.costs["aten::mm"].calls == 2  # gradients of input and weights
    assert clock.costs["aten::addmm"].bytes == 4 * (4 + 16 * 8 + 8 * 4 + 16 * 4)
    assert clock.costs["aten::_fused_adamw_"].kind == "update"
    profile = profile_steps(lambda: [take(), take()], steps=2)
    assert set(profile["kinds"]) == set(KINDS)
    assert {operator["name"]: operator["calls"] for operator in profile["operators"]}["aten::addmm"] == 1
    assert profile["kinds"]["products"]["ms"] > 0


def test_shares_and_limits_by_hand() -> None:
    # 1000 rows: 6 x (4 x 4 + 2 x 4) = 144 FLOP and 88 bytes of table rows each
    kinds = {kind: {"ms": 0.0, "mb": 0.0} for kind in KINDS}
    slow = kinds | {"products": {"ms": 4.0, "mb": 50.0}, "copies": {"ms": 2.0, "mb": 0.912}}
    found = step_shares(
        [{"kinds": slow, "operators": []}],
        rows=1000,
        step_ms=8.0,
        loader_ms=2.0,
        shape=SHAPE,
        gflops=0.144,
        copy_gb_per_s=1.0,
    )
    assert found["ms"] == pytest.approx(10)
    assert found["kinds"]["rest"]["ms"] == pytest.approx(2)
    assert found["kinds"]["products"]["share"] == pytest.approx(0.4)
    assert found["kinds"]["look_up"]["mb"] == pytest.approx(0.032)  # a row of 16 bytes read and written
    assert found["kinds"]["update"]["mb"] == pytest.approx(0.056)
    assert found["limit_ms"] == pytest.approx({"products": 1.0, "memory": 1.0})
    assert found["share_of_limit"] == pytest.approx(0.2)
    assert sum(kind["share"] for kind in found["kinds"].values()) == pytest.approx(1)


def test_several_runs_are_joined_by_their_medians() -> None:
    runs = [
        {"kinds": {kind: {"ms": ms, "mb": 1.0} for kind in KINDS}, "operators": []} for ms in (1.0, 9.0, 2.0)
    ]
    found = step_shares(runs, rows=1, step_ms=20.0, loader_ms=0.0, shape=SHAPE, gflops=1.0, copy_gb_per_s=1.0)
    assert found["kinds"]["copies"]["ms"] == 2.0
