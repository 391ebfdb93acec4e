"""The loss of foretold title tokens equals its loop version and its closed form."""

import math

import pytest
import torch
from hypothesis import given, settings

from embeddings.training.losses import title_token_loss
from tests.embeddings.training.loss_loops import seeded, seeds, softmax_loop


@given(seed=seeds)
@settings(deadline=None, max_examples=30)
def test_title_tokens_equal_the_loop_and_repetitions_and_padding_do_not_count(seed: int) -> None:
    generator = seeded(seed)
    vocabulary, tokens = 7, 5
    logits_BV = torch.randn(3, vocabulary, generator=generator, dtype=torch.float64)
    ids_BT = torch.randint(0, vocabulary, (3, tokens), generator=generator)
    mask_BT = (torch.rand(3, tokens, generator=generator) < 0.6).long()
    ids_BT = ids_BT.where(mask_BT > 0, 0)  # token 0 pads, and weighs nothing
    weight_V = torch.rand(vocabulary, generator=generator, dtype=torch.float64)
    weight_V[[0, 1]] = 0
    loss_B = title_token_loss(logits_BV, ids_BT, mask_BT, weight_V)
    for row in range(3):
        share_V = softmax_loop(logits_BV[row].tolist())
        held = {int(token) for token, kept in zip(ids_BT[row], mask_BT[row], strict=True) if kept}
        total = sum(float(weight_V[token]) for token in held)
        expected = sum(
            -float(weight_V[token]) / total * math.log(share_V[token]) for token in held if total > 0
        )
        assert float(loss_B[row]) == pytest.approx(expected, rel=1e-9)


def test_a_foretold_title_costs_its_entropy_and_no_gradient_is_left() -> None:
    ids_BT, mask_BT = torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.long)
    weight_V = torch.tensor([0.0, 1.0, 3.0])
    logits_BV = torch.tensor([[-1e4, math.log(0.25), math.log(0.75)]], requires_grad=True)
    loss = title_token_loss(logits_BV, ids_BT, mask_BT, weight_V).sum()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-0.25 * math.log(0.25) - 0.75 * math.log(0.75))
    assert logits_BV.grad is not None
    torch.testing.assert_close(logits_BV.grad, torch.zeros(1, 3), atol=1e-7, rtol=0)
