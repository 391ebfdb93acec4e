"""PQC equals its loop version and closed forms; slices sum to the whole."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from embeddings.training.losses import InBatch, pqc_loss, unit_vectors
from tests.embeddings.training.loss_loops import DIM, TAU, dot, seeded, seeds, temperatures, unit
from tests.tolerances import float32_error


def random_pqc(
    seed: int, *, rows: int, negatives: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = seeded(seed)
    shapes = ((rows, DIM), (rows, DIM), (rows, negatives, DIM))
    product_BD, positive_BD, negatives_BKD = (
        unit(*shape, generator=generator, dtype=dtype) for shape in shapes
    )
    return product_BD, positive_BD, negatives_BKD


def pqc_loop(
    features: tuple[Tensor, Tensor, Tensor], *, tau: float, weights: list[float], in_batch: InBatch | None
) -> float:
    total = 0.0
    for row, (product, positive, negatives) in enumerate(
        zip(*(feature.tolist() for feature in features), strict=True)
    ):
        top = math.exp(dot(product, positive) / tau)
        candidates = [math.exp(dot(product, negative) / tau) for negative in negatives]
        if in_batch is not None:
            for query, relevant in zip(
                in_batch.query_QD.tolist(), in_batch.relevant_BQ[row].tolist(), strict=True
            ):
                if not relevant:
                    candidates.append(math.exp(dot(product, query) / tau))
        total -= weights[row] * math.log(top / (top + sum(candidates)))
    return total / sum(weights)


@given(seeds, st.integers(1, 4), st.integers(0, 5), st.integers(0, 4), st.booleans())
@settings(deadline=None, max_examples=40)
def test_pqc_equals_its_loop_version(
    seed: int, rows: int, negatives: int, queries: int, weighted: bool
) -> None:
    generator = seeded(seed)
    features = random_pqc(seed, rows=rows, negatives=negatives)
    in_batch = None
    if queries:
        relevant_BQ = torch.rand(rows, queries, generator=generator) < 0.5
        in_batch = InBatch(unit(queries, DIM, generator=generator), relevant_BQ)
    weight_B = torch.rand(rows, generator=generator) + 0.1 if weighted else None
    weights = [1.0] * rows if weight_B is None else weight_B.tolist()
    loss = pqc_loss(*features, temperature=TAU, weight_B=weight_B, in_batch=in_batch)
    assert loss.item() == pytest.approx(pqc_loop(features, tau=TAU, weights=weights, in_batch=in_batch))


@pytest.mark.parametrize("negatives", [0, 1, 10])
def test_equal_similarities_give_log_of_the_number_of_candidates(negatives: int) -> None:
    product_BD, positive_BD, _ = random_pqc(0, rows=3, negatives=1)
    negatives_BKD = positive_BD[:, None].expand(3, negatives, DIM)
    loss = pqc_loss(product_BD, positive_BD, negatives_BKD, temperature=0.07)
    assert loss.item() == pytest.approx(math.log(1 + negatives))


def test_a_product_at_its_query_and_orthogonal_to_ten_others_loses_the_hand_sum() -> None:
    eye = torch.eye(11)
    loss = pqc_loss(eye[:1], eye[:1], eye[None, 1:], temperature=0.25)
    tolerance = float32_error(11, size=1 / 0.25)  # eleven candidates, the largest logit is 4
    assert loss.item() == pytest.approx(math.log(1 + 10 * math.exp(-1 / 0.25)), abs=tolerance)


def test_an_integer_weight_counts_the_row_that_often_and_zero_leaves_it_out() -> None:
    features = random_pqc(1, rows=3, negatives=4)
    features[0].requires_grad_()
    weighted = pqc_loss(*features, temperature=TAU, weight_B=torch.tensor([2, 0, 1]))
    repeated = pqc_loss(*(feature[[0, 0, 2]] for feature in features), temperature=TAU)
    torch.testing.assert_close(weighted, repeated)
    weighted.backward()
    assert features[0].grad[1].abs().sum() == 0
    assert pqc_loss(*features, temperature=TAU, weight_B=torch.zeros(3)).item() == 0


def test_relevant_queries_of_the_batch_are_no_negatives_and_the_others_count_like_sampled_ones() -> None:
    features = random_pqc(2, rows=3, negatives=4)
    query_QD = features[1].clone().requires_grad_()
    plain = pqc_loss(*features, temperature=TAU)
    all_relevant = InBatch(query_QD, torch.ones(3, 3, dtype=torch.bool))
    loss = pqc_loss(*features, temperature=TAU, in_batch=all_relevant)
    loss.backward()
    torch.testing.assert_close(loss, plain)
    assert query_QD.grad.abs().sum() == 0
    none_relevant = InBatch(features[2][0], torch.zeros(3, 4, dtype=torch.bool))
    loss = pqc_loss(
        *(feature[:1] for feature in features),
        temperature=TAU,
        in_batch=InBatch(none_relevant.query_QD, none_relevant.relevant_BQ[:1]),
    )
    twice = torch.cat([features[2][:1], features[2][:1]], dim=1)
    torch.testing.assert_close(loss, pqc_loss(features[0][:1], features[1][:1], twice, temperature=TAU))


def test_pqc_slices_against_the_global_queries_sum_to_the_global_loss_and_gradient() -> None:
    features = random_pqc(3, rows=5, negatives=3)
    weight_B = torch.rand(5, generator=seeded(0), dtype=torch.float64)
    relevant_BQ = torch.eye(5, dtype=torch.bool)

    def loss_and_gradient(slices: list[slice]) -> tuple[Tensor, Tensor]:
        leaves = [feature.clone().requires_grad_() for feature in features]
        losses = [
            pqc_loss(
                *(leaf[rows] for leaf in leaves),
                temperature=TAU,
                weight_B=weight_B[rows],
                in_batch=InBatch(leaves[1], relevant_BQ[rows]),
                total_weight=weight_B.sum(),
            )
            for rows in slices
        ]
        loss = torch.stack(losses).sum()
        loss.backward()
        return loss.detach(), torch.cat([leaf.grad.flatten() for leaf in leaves])

    whole = pqc_loss(
        *features, temperature=TAU, weight_B=weight_B, in_batch=InBatch(features[1], relevant_BQ)
    )
    together = loss_and_gradient([slice(0, 5)])
    split = loss_and_gradient([slice(0, 2), slice(2, 5)])
    torch.testing.assert_close(together[0], whole)
    torch.testing.assert_close(split, together, rtol=1e-12, atol=1e-14)


@given(seeds, st.integers(1, 4), st.integers(0, 4), temperatures, st.booleans())
@settings(deadline=None, max_examples=60)
def test_pqc_of_unit_vectors_is_finite_and_not_negative(
    seed: int, rows: int, negatives: int, temperature: float, masked: bool
) -> None:
    features = random_pqc(seed, rows=rows, negatives=negatives, dtype=torch.float32)
    tau = torch.tensor(temperature, requires_grad=True)
    for feature in features:
        feature.requires_grad_()
    in_batch = InBatch(features[1], torch.full((rows, rows), masked))
    loss = pqc_loss(*features, temperature=tau, in_batch=in_batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert loss >= 0
    for leaf in (*features, tau):
        assert leaf.grad.isfinite().all()


@example([1e-40, 3e-40])
@example([1e-30, 3e38, -2e38])
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=6))
@settings(deadline=None)
def test_unit_vectors_of_any_finite_row_have_length_one_or_are_zero(row: list[float]) -> None:
    vector = torch.tensor(row, requires_grad=True)
    result = unit_vectors(vector)
    result.sum().backward()
    zero = max(map(abs, row)) < torch.finfo(torch.float32).tiny
    assert result.norm().item() == pytest.approx(0 if zero else 1, abs=1e-6)
    assert vector.grad.isfinite().all()
    if zero:
        assert vector.grad.tolist() == [0] * len(row)


def test_gradients_equal_finite_differences() -> None:
    features = [feature.requires_grad_() for feature in random_pqc(4, rows=3, negatives=2)]
    tau = torch.tensor(TAU, dtype=torch.float64, requires_grad=True)
    relevant_BQ = torch.eye(3, dtype=torch.bool)

    def pqc(product: Tensor, positive: Tensor, negatives: Tensor, temperature: Tensor) -> Tensor:
        in_batch = InBatch(positive, relevant_BQ)
        return pqc_loss(product, positive, negatives, temperature=temperature, in_batch=in_batch)

    assert torch.autograd.gradcheck(pqc, (*features, tau))


def test_bfloat16_features_under_autocast_lose_what_their_float32_copies_lose() -> None:
    features = [feature.bfloat16() for feature in random_pqc(9, rows=4, negatives=3)]
    in_batch = InBatch(features[1], torch.eye(4, dtype=torch.bool))
    precise = [feature.float() for feature in features]
    expected = pqc_loss(*precise, temperature=0.01, in_batch=in_batch._replace(query_QD=precise[1]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = pqc_loss(*features, temperature=0.01, in_batch=in_batch)
    assert loss == expected
    assert loss.dtype == torch.float32


def test_shapes_that_do_not_fit_are_refused_with_what_came() -> None:
    features = random_pqc(7, rows=3, negatives=2)
    with pytest.raises(ValueError, match=r"negatives \[2, 2, 8\]"):
        pqc_loss(*features[:2], features[2][:2], temperature=TAU)
    with pytest.raises(ValueError, match=r"negatives \[3, 8\]"):
        pqc_loss(*features[:2], features[2][:, 0], temperature=TAU)
    with pytest.raises(ValueError, match=r"one weight a product, 3, got \[3, 1\]"):
        pqc_loss(*features, temperature=TAU, weight_B=torch.ones(3, 1))
    in_batch = InBatch(features[1], torch.zeros(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"relevant \[3, 2\]"):
        pqc_loss(*features, temperature=TAU, in_batch=in_batch)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        pqc_loss(*random_pqc(8, rows=2, negatives=2), temperature=temperature)
