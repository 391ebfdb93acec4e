"""The DashCLIP tower's inputs, its history tiers, and the DCN tower's padding."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.dense_layers import mlp
from ranking.towers import DashClipTower, DcnTower, HistoryTiers
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


def _loop_tiers(anchor: list[float], purchases: list[list[float]], tiers: int) -> list[float]:
    """Tiers and largest cosine of one anchor, one purchase at a time."""
    counts, largest = [0.0] * tiers, -1.0
    for purchase in purchases:
        lengths = math.hypot(*anchor) * math.hypot(*purchase)
        cosine = sum(a * b for a, b in zip(anchor, purchase, strict=True)) / lengths if lengths else 0.0
        place = (cosine + 1) / 2 * (tiers - 1)
        below = min(int(place), tiers - 2)
        counts[below] += 1 - (place - below)
        counts[below + 1] += place - below
        largest = max(largest, cosine)
    if not any(anchor):
        return [0.0] * (tiers + 1)
    return [*(math.log1p(count) for count in counts), largest if purchases else 0.0]


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    tiers=st.integers(2, 9),
    seed=st.integers(0, 99),
)
def test_history_tiers_equal_the_loop(lengths: list[int], tiers: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    candidates, queries = (torch.randn(len(lengths), 3, generator=generator) for _ in range(2))
    queries[0] = 0  # a query without a vector
    purchases = torch.randn(sum(lengths), 3, generator=generator)
    read = HistoryTiers(tiers)([candidates, queries], purchases, torch.tensor(lengths))
    assert read.shape == (len(lengths), HistoryTiers(tiers).width(2))
    for row, bag in enumerate(purchases.split(lengths)):
        expected = [
            *_loop_tiers(candidates[row].tolist(), bag.tolist(), tiers),
            *_loop_tiers(queries[row].tolist(), bag.tolist(), tiers),
            math.log1p(lengths[row]),
        ]
        torch.testing.assert_close(read[row], torch.tensor(expected), atol=2e-6, rtol=1e-5)


def test_a_product_bought_before_falls_into_the_last_tier_alone() -> None:
    bought = torch.tensor([[0.3, -0.4, 1.2]])
    tiers = HistoryTiers(16)([bought], torch.cat([bought, bought]), torch.tensor([2]))[0]
    torch.testing.assert_close(tiers[15], torch.tensor(math.log(3)), atol=1e-5, rtol=0)
    assert tiers[:15].abs().max() < 1e-5
    assert tiers[16].item() == pytest.approx(1, abs=1e-6)


def test_vectors_rounded_to_16_bits_give_nearly_the_same_tiers() -> None:
    torch.manual_seed(0)
    anchor, purchases = torch.randn(200, 16), torch.randn(2000, 16)
    lengths = torch.full((200,), 10)
    exact = HistoryTiers(16)([anchor], purchases, lengths)
    rounded = HistoryTiers(16)([anchor.half()], purchases.half(), lengths)
    assert (exact - rounded).abs().max() < 0.02  # a hard border would move a whole purchase: log 2


def test_the_tower_reads_tiers_beside_its_crossed_columns() -> None:
    torch.manual_seed(0)
    tower = DashClipTower(entities=2, dim=4, cross_layers=1, widths=(8,), dropout=0.0, history_tiers=3)
    embeddings = [torch.randn(2, 4), torch.randn(2, 4)]
    purchases = (torch.randn(3, 4), torch.tensor([1, 2]))
    plain = DashClipTower(entities=2, dim=4, cross_layers=1, widths=(8,), dropout=0.0)
    plain.layers = tower.layers
    hidden = tower(embeddings, purchases)
    assert hidden.shape == (2, tower.width)
    torch.testing.assert_close(hidden[:, :8], plain(embeddings))
    tiers = tower.history_tiers(embeddings[:1], *purchases)
    torch.testing.assert_close(hidden[:, 8:], tower.tier_layers(tiers))
