"""However matrices are multiplied, it is the same ranker."""

from pathlib import Path

import pytest
import torch
from torch import nn

from serving.scoring.arithmetic import OneDnnLinear, all_rows_run, rows_run, with_arithmetic
from serving.scoring.compile import traced_inputs
from serving.scoring.request_towers import SplitLinear
from tests.serving.scoring.packaged_rankers import packaged


def test_one_dnn_multiplies_as_torch_does() -> None:
    layer = nn.Linear(33, 17)
    inputs_NK = torch.randn(5, 33)
    with torch.no_grad():
        torch.testing.assert_close(OneDnnLinear(layer, torch.float32)(inputs_NK), layer(inputs_NK))


def test_bfloat16_rounds_the_factors_and_the_sum_to_8_bits() -> None:
    """3 + 2^-9 has 10 digits behind the first one: in bfloat16 it is 3. 3 x 86 = 258 needs 9, and becomes 258
    because its last is 0; 3 x 87 = 261 becomes 260 or 262."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 3 + 2**-9)
    rounded = OneDnnLinear(layer, torch.bfloat16)
    with torch.no_grad():
        assert rounded(torch.tensor([[86.0]])).item() == 258
        assert rounded(torch.tensor([[87.0]])).item() in (260, 262)


@pytest.mark.parametrize(("arithmetic", "tolerance"), [("torch", 0), ("onednn", 1e-6), ("bfloat16", 5e-3)])
def test_every_arithmetic_gives_the_scores_of_the_ranker(
    arithmetic: str, tolerance: float, tmp_path: Path
) -> None:
    of = packaged(tmp_path)
    inputs = traced_inputs(of.module.shape, of.examples)
    changed = with_arithmetic(of.module, arithmetic)  # type: ignore[arg-type]
    torch.testing.assert_close(changed(*inputs), of.module(*inputs), atol=tolerance, rtol=0)


def test_what_a_request_computes_once_and_the_logit_stay_in_float32(tmp_path: Path) -> None:
    changed = with_arithmetic(packaged(tmp_path).module, "bfloat16")
    splits = [layer for layer in changed.modules() if isinstance(layer, SplitLinear)]
    assert splits
    assert all(type(split.request) is nn.Linear for split in splits)
    assert all(isinstance(split.candidate, OneDnnLinear) for split in splits)
    assert type(changed.head[-1]) is nn.Linear


def test_candidates_are_filled_up_by_an_eighth_at_most_to_few_numbers() -> None:
    assert [rows_run(count) for count in (1, 15, 16, 17, 100, 300)] == [1, 15, 16, 18, 104, 320]
    assert all(count <= rows_run(count) < count * 9 / 8 for count in range(1, 5000))
    assert list(all_rows_run(20)) == [*range(1, 17), 18, 20]
    assert len(list(all_rows_run(2048))) == 72
