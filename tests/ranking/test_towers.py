"""The DashCLIP tower's inputs, and the DCN tower's padding."""

import pytest
import torch

from ranking.towers import DashClipTower, DcnTower, mlp
from tests.tolerances import float32_error


class _Record(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        return x


def _inputs_of(embeddings: list[torch.Tensor]) -> torch.Tensor:
    tower = DashClipTower(
        entities=len(embeddings), dim=embeddings[0].shape[1], cross_layers=1, widths=(4,), dropout=0.0
    )
    tower.layers = _Record()
    tower(embeddings)
    return tower.layers.seen


def test_the_dashclip_tower_sees_vectors_cosines_and_indicators() -> None:
    p = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    q = torch.tensor([[1.0, 1.0, 0.0, 0.0]]) / 2**0.5
    u = torch.zeros(1, 4)  # no purchases
    x = _inputs_of([p, q, u])[0]
    torch.testing.assert_close(x[:4], 2 * p[0])  # scaled by sqrt(4)
    torch.testing.assert_close(x[4:8], 2 * q[0])
    assert torch.equal(x[8:12], torch.zeros(4))
    cosine_pq, cosine_pu, cosine_qu, has_p, has_q, has_u = x[12:].tolist()
    three_sums = float32_error(3 * 4)  # the product and both lengths
    assert cosine_pq == pytest.approx(1 / 2**0.5, abs=three_sums)
    assert (cosine_pu, cosine_qu) == (0.0, 0.0)
    assert (has_p, has_q, has_u) == (1.0, 1.0, 0.0)


def test_cosines_do_not_depend_on_the_length_of_vectors() -> None:
    torch.manual_seed(0)
    p, q = torch.randn(6, 8), torch.randn(6, 8)
    torch.testing.assert_close(_inputs_of([p, q])[:, 16], _inputs_of([3 * p, 0.1 * q])[:, 16])


def test_one_entity_has_no_cosine() -> None:
    assert _inputs_of([torch.randn(2, 4)]).shape == (2, 5)


@pytest.mark.parametrize("dense, widths", [(13, [16] * 26), (16, [16]), (1, [])])
def test_padding_reaches_a_multiple_of_sixteen_and_changes_nothing(dense: int, widths: list[int]) -> None:
    torch.manual_seed(0)
    tower = DcnTower(
        dense_features=dense,
        embedding_widths=widths,
        cross_layers=2,
        cross_rank=None,
        deep_widths=(8,),
        dropout=0,
    )
    used = dense + sum(widths)
    assert tower.padding.shape[1] < 16
    assert (used + tower.padding.shape[1]) % 16 == 0
    x, embeddings = torch.randn(3, dense), [torch.randn(3, width) for width in widths]
    before = tower(x, embeddings)
    with torch.no_grad():
        for layer in [*tower.cross.layers, tower.deep[0]]:
            layer.weight[:, used:] = 123.0  # what padding columns would contribute
    assert torch.equal(tower(x, embeddings)[:, :used], before[:, :used])


def test_no_hidden_width_gives_the_identity() -> None:
    x = torch.randn(2, 3)
    assert torch.equal(mlp(3, (), dropout=0.5)(x), x)
