"""ITC, ITM and hard negatives equal their loop versions and closed forms; slices sum to the whole."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embeddings.training.losses import (
    NEGATIVE_EPSILON,
    NO_GROUP,
    Columns,
    draw_negatives,
    hard_negative_probabilities,
    itc_loss,
    itm_loss,
)
from tests.embeddings.training.loss_loops import (
    DIM,
    TAU,
    dot,
    seeded,
    seeds,
    softmax_loop,
    temperatures,
    unit,
)
from tests.tolerances import float32_error


def random_itc(
    seed: int, *, rows: int, extra: int, groups: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Columns]:
    """Rows and columns of a batch and `extra` queue slots; groups from -1 (none) to `groups` - 1."""
    generator = seeded(seed)
    image_BD, text_BD = (unit(rows, DIM, generator=generator, dtype=dtype) for _ in range(2))
    image_CD, text_CD = (unit(rows + extra, DIM, generator=generator, dtype=dtype) for _ in range(2))
    group_C = torch.randint(NO_GROUP, groups, (rows + extra,), generator=generator)
    return image_BD, text_BD, Columns(image_CD, text_CD, group_C)


def itc_loop(image_BD: Tensor, text_BD: Tensor, columns: Columns, *, tau: float, alpha: float) -> float:
    image, text = columns.image_CD.tolist(), columns.text_CD.tolist()
    group = columns.group_C.tolist()
    used = [column for column in range(len(group)) if group[column] != NO_GROUP]
    losses = []
    for row in range(len(image_BD)):
        if group[row] == NO_GROUP:
            continue
        loss = 0.0
        for student, teacher, other in ((image_BD, image, text), (text_BD, text, image)):
            share = softmax_loop([dot(student[row].tolist(), other[column]) / tau for column in used])
            soft = softmax_loop([dot(teacher[row], other[column]) / tau for column in used])
            positives = sum(group[column] == group[row] for column in used)
            for position, column in enumerate(used):
                hard = (group[column] == group[row]) / positives
                loss -= (alpha * soft[position] + (1 - alpha) * hard) * math.log(share[position]) / 2
        losses.append(loss)
    return sum(losses) / len(losses) if losses else 0.0


@given(seeds, st.integers(1, 5), st.integers(0, 6), st.integers(1, 6), st.sampled_from([0.0, 0.4, 1.0]))
@settings(deadline=None, max_examples=40)
def test_itc_equals_its_loop_version(seed: int, rows: int, extra: int, groups: int, alpha: float) -> None:
    image_BD, text_BD, columns = random_itc(seed, rows=rows, extra=extra, groups=groups)
    itc = itc_loss(image_BD, text_BD, columns, positive_B=torch.arange(rows), temperature=TAU, alpha=alpha)
    assert itc.loss.item() == pytest.approx(itc_loop(image_BD, text_BD, columns, tau=TAU, alpha=alpha))
    torch.testing.assert_close(itc.image_to_text_BC, image_BD @ columns.text_CD.T / TAU)
    torch.testing.assert_close(itc.text_to_image_BC, text_BD @ columns.image_CD.T / TAU)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_equal_features_give_the_log_of_the_number_of_columns(alpha: float) -> None:
    same = unit(1, DIM, generator=seeded(0))
    columns = Columns(same.expand(7, DIM), same.expand(7, DIM), torch.tensor([0, 1, 1, 2, 3, 4, 5]))
    rows = same.expand(3, DIM)
    itc = itc_loss(rows, rows, columns, positive_B=torch.arange(3), temperature=TAU, alpha=alpha)
    assert itc.loss.item() == pytest.approx(math.log(7))


def test_two_orthogonal_pairs_lose_what_one_wrong_choice_at_cosine_zero_costs() -> None:
    eye = torch.eye(2)
    columns = Columns(eye, eye, torch.tensor([0, 1]))
    itc = itc_loss(eye, eye, columns, positive_B=torch.arange(2), temperature=0.5, alpha=0.0)
    tolerance = float32_error(2 + 2, size=1 / 0.5)  # two columns, two rows; the largest logit is 2
    assert itc.loss.item() == pytest.approx(math.log(1 + math.exp(-1 / 0.5)), abs=tolerance)


def test_a_student_equal_to_its_teacher_has_no_gradient_when_the_teacher_alone_is_the_target() -> None:
    _, _, columns = random_itc(1, rows=4, extra=3, groups=5)
    image_BD, text_BD = (feature[:4].clone().requires_grad_() for feature in columns[:2])
    itc = itc_loss(image_BD, text_BD, columns, positive_B=torch.arange(4), temperature=TAU, alpha=1.0)
    itc.loss.backward()
    for feature in (image_BD, text_BD):
        torch.testing.assert_close(feature.grad, torch.zeros_like(feature), atol=1e-12, rtol=0)


def test_columns_get_no_gradient() -> None:
    image_BD, text_BD, columns = random_itc(2, rows=3, extra=2, groups=4)
    columns.image_CD.requires_grad_()
    columns.text_CD.requires_grad_()
    image_BD.requires_grad_()
    itc = itc_loss(image_BD, text_BD, columns, positive_B=torch.arange(3), temperature=TAU, alpha=0.4)
    itc.loss.backward()
    assert columns.image_CD.grad is None
    assert columns.text_CD.grad is None
    assert image_BD.grad.abs().sum() > 0


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_slices_of_rows_against_the_global_columns_sum_to_the_global_loss_and_gradient(alpha: float) -> None:
    image_BD, text_BD, columns = random_itc(3, rows=7, extra=4, groups=5)
    assert (columns.group_C[:7] == NO_GROUP).any()
    grouped_rows = int((columns.group_C[:7] != NO_GROUP).sum())

    def loss_and_gradients(slices: list[Tensor], total_rows: int | None) -> tuple[Tensor, Tensor, Tensor]:
        image, text = (feature.clone().requires_grad_() for feature in (image_BD, text_BD))
        losses = [
            itc_loss(
                image[rows],
                text[rows],
                columns,
                positive_B=rows,
                temperature=TAU,
                alpha=alpha,
                total_rows=total_rows,
            ).loss
            for rows in slices
        ]
        loss = torch.stack(losses).sum()
        loss.backward()
        return loss.detach(), image.grad, text.grad

    whole = loss_and_gradients([torch.arange(7)], None)
    split = loss_and_gradients([torch.tensor([5, 0, 3]), torch.tensor([1, 2, 4, 6])], grouped_rows)
    for expected, received in zip(whole, split, strict=True):
        torch.testing.assert_close(received, expected, rtol=1e-12, atol=1e-14)


def test_rows_and_columns_without_group_change_nothing() -> None:
    image_BD, text_BD, columns = random_itc(4, rows=4, extra=2, groups=6)
    columns.group_C[:] = torch.tensor([0, NO_GROUP, 2, 0, NO_GROUP, 3])
    kept = torch.tensor([0, 2, 3])
    left = columns.group_C != NO_GROUP
    options = {"temperature": TAU, "alpha": 0.4}
    itc = itc_loss(image_BD, text_BD, columns, positive_B=torch.arange(4), **options)
    without = Columns(columns.image_CD[left], columns.text_CD[left], columns.group_C[left])
    expected = itc_loss(image_BD[kept], text_BD[kept], without, positive_B=torch.arange(3), **options)
    torch.testing.assert_close(itc.loss, expected.loss)


def test_the_order_of_columns_does_not_matter() -> None:
    image_BD, text_BD, columns = random_itc(5, rows=4, extra=5, groups=4)
    order = torch.randperm(9, generator=seeded(0))
    shuffled = Columns(*(column[order] for column in columns))
    options = {"temperature": TAU, "alpha": 0.4}
    expected = itc_loss(image_BD, text_BD, columns, positive_B=torch.arange(4), **options)
    itc = itc_loss(image_BD, text_BD, shuffled, positive_B=order.argsort()[:4], **options)
    torch.testing.assert_close(itc.loss, expected.loss)


@given(
    seeds,
    st.integers(1, 5),
    st.integers(0, 4),
    st.integers(0, 5),
    temperatures,
    st.sampled_from([0.0, 0.4, 1.0]),
)
@settings(deadline=None, max_examples=60)
def test_itc_of_unit_vectors_is_finite_and_not_negative(
    seed: int, rows: int, extra: int, groups: int, temperature: float, alpha: float
) -> None:
    """`groups` = 0 leaves every row without group, 1 puts all others in one."""
    image_BD, text_BD, columns = random_itc(seed, rows=rows, extra=extra, groups=groups, dtype=torch.float32)
    tau = torch.tensor(temperature, requires_grad=True)
    image_BD.requires_grad_()
    text_BD.requires_grad_()
    itc = itc_loss(image_BD, text_BD, columns, positive_B=torch.arange(rows), temperature=tau, alpha=alpha)
    itc.loss.backward()
    assert torch.isfinite(itc.loss)
    assert itc.loss >= 0
    for gradient in (image_BD.grad, text_BD.grad, tau.grad):
        assert gradient.isfinite().all()
    if not (columns.group_C[:rows] != NO_GROUP).any():
        assert itc.loss == 0


def test_one_row_alone_has_nothing_to_choose_and_loses_nothing() -> None:
    image_BD, text_BD, columns = random_itc(6, rows=1, extra=0, groups=1)
    columns.group_C[:] = 0
    itc = itc_loss(image_BD, text_BD, columns, positive_B=torch.arange(1), temperature=TAU, alpha=0.4)
    assert itc.loss.item() == 0


def test_bfloat16_features_under_autocast_lose_what_their_float32_copies_lose() -> None:
    image_BD, text_BD, columns = random_itc(7, rows=6, extra=9, groups=20, dtype=torch.float32)
    rows = [feature.bfloat16() for feature in (image_BD, text_BD)]
    options = {"positive_B": torch.arange(6), "temperature": 0.01, "alpha": 0.4}
    expected = itc_loss(*(feature.float() for feature in rows), columns, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        itc = itc_loss(*rows, columns, **options)
    assert itc.loss == expected.loss
    assert itc.loss.dtype == torch.float32


def hard_negative_loop(logits_BC: Tensor, group_B: list[int], group_C: list[int]) -> list[list[float]]:
    result = []
    for row, logits in enumerate(logits_BC.tolist()):
        used = [column for column in range(len(group_C)) if group_C[column] != NO_GROUP]
        share = dict(zip(used, softmax_loop([logits[column] for column in used]), strict=True))
        weights = [
            share[column] + NEGATIVE_EPSILON
            if column in share and group_C[column] != group_B[row] and group_B[row] != NO_GROUP
            else 0.0
            for column in range(len(group_C))
        ]
        result.append([weight / (sum(weights) or 1) for weight in weights])
    return result


@given(seeds, st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), temperatures)
@settings(deadline=None, max_examples=60)
def test_hard_negatives_are_of_other_groups_and_drawn_by_blips_rule(
    seed: int, rows: int, columns: int, groups: int, temperature: float
) -> None:
    generator = seeded(seed)
    cosine_BC = torch.rand(rows, columns, generator=generator, dtype=torch.float64) * 2 - 1
    group_B = torch.randint(NO_GROUP, groups, (rows,), generator=generator)
    group_C = torch.full((columns,), 0).random_(NO_GROUP, groups, generator=generator)
    group_C[0] = 0  # the loop version needs one column
    probability_BC = hard_negative_probabilities(cosine_BC / temperature, group_B=group_B, group_C=group_C)
    expected = hard_negative_loop(cosine_BC / temperature, group_B.tolist(), group_C.tolist())
    torch.testing.assert_close(probability_BC, torch.tensor(expected, dtype=torch.float64))
    possible = [
        any(column not in (row, NO_GROUP) for column in group_C.tolist()) and row != NO_GROUP
        for row in group_B.tolist()
    ]
    torch.testing.assert_close(probability_BC.sum(dim=1), torch.tensor(possible, dtype=torch.float64))
    for _ in range(5):
        for row, column in enumerate(draw_negatives(probability_BC, generator).tolist()):
            if possible[row]:
                assert group_C[column] not in (group_B[row], NO_GROUP)
                assert column >= 0
            else:
                assert column == -1


def test_equal_logits_draw_each_column_of_another_group_alike() -> None:
    group = torch.tensor([0, 0, 1, 2])
    probability_BC = hard_negative_probabilities(torch.zeros(4, 4), group_B=group, group_C=group)
    torch.testing.assert_close(probability_BC[0], torch.tensor([0, 0, 1 / 2, 1 / 2]))
    torch.testing.assert_close(probability_BC[2], torch.tensor([1 / 3, 1 / 3, 0, 1 / 3]))


def test_a_column_that_softmax_cannot_see_can_still_be_drawn() -> None:
    logits_BC = torch.tensor([[1000.0, -1000.0, -1000.0]])
    probability_BC = hard_negative_probabilities(
        logits_BC, group_B=torch.tensor([0]), group_C=torch.tensor([0, 1, 2])
    )
    torch.testing.assert_close(probability_BC, torch.tensor([[0.0, 0.5, 0.5]]))


def test_a_batch_of_one_product_has_no_negative() -> None:
    group = torch.zeros(3, dtype=torch.int64)
    probability_BC = hard_negative_probabilities(torch.zeros(3, 3), group_B=group, group_C=group)
    assert draw_negatives(probability_BC, seeded(0)).tolist() == [-1, -1, -1]
    assert draw_negatives(torch.zeros(2, 0), seeded(0)).tolist() == [-1, -1]


def test_negatives_are_drawn_as_often_as_their_probabilities_say() -> None:
    probability = torch.tensor([0.0, 0.5, 0.0, 0.2, 0.3, 0.0])
    drawn = draw_negatives(probability.expand(20_000, 6), seeded(0))
    frequency = torch.bincount(drawn, minlength=6) / 20_000
    assert frequency[probability == 0].tolist() == [0, 0, 0]
    torch.testing.assert_close(frequency, probability, atol=0.015, rtol=0)  # four standard errors


def test_the_best_constant_answer_at_two_unmatched_a_match_gives_the_entropy_of_one_third() -> None:
    third = torch.tensor([math.log(2 / 3), math.log(1 / 3)])
    loss = itm_loss(third.expand(5, 2), third.expand(10, 2))
    tolerance = float32_error(2 + 15, size=math.log(3))  # two answers, fifteen pairs
    assert loss.item() == pytest.approx(math.log(3) - 2 / 3 * math.log(2), abs=tolerance)
    assert loss.item() == pytest.approx(0.6365, abs=5e-5)


def test_itm_equals_its_loop_version_and_its_slices_sum_to_it() -> None:
    positive_B2 = torch.randn(4, 2, generator=seeded(0), dtype=torch.float64)
    negative_M2 = torch.randn(6, 2, generator=seeded(1), dtype=torch.float64)
    losses = [math.log(1 + math.exp(no - yes)) for no, yes in positive_B2.tolist()]
    losses += [math.log(1 + math.exp(yes - no)) for no, yes in negative_M2.tolist()]
    assert itm_loss(positive_B2, negative_M2).item() == pytest.approx(sum(losses) / 10)
    shares = itm_loss(positive_B2[:1], negative_M2[:4], total_pairs=10) + itm_loss(
        positive_B2[1:], negative_M2[4:], total_pairs=10
    )
    assert shares.item() == pytest.approx(sum(losses) / 10)


def test_itm_without_pairs_is_zero_and_can_be_differentiated() -> None:
    logits = torch.zeros(0, 2, requires_grad=True)
    loss = itm_loss(logits, logits)
    loss.backward()
    assert loss.item() == 0


def test_gradients_equal_finite_differences() -> None:
    image_BD, text_BD, columns = random_itc(8, rows=4, extra=3, groups=3)
    tau = torch.tensor(TAU, dtype=torch.float64, requires_grad=True)
    rows = [feature.requires_grad_() for feature in (image_BD, text_BD)]

    def itc(image: Tensor, text: Tensor, temperature: Tensor) -> Tensor:
        return itc_loss(
            image, text, columns, positive_B=torch.arange(4), temperature=temperature, alpha=0.0
        ).loss

    assert torch.autograd.gradcheck(itc, (*rows, tau))
    logits = torch.randn(3, 2, generator=seeded(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda pairs: itm_loss(pairs[:1], pairs[1:]), (logits,))


def test_the_teacher_share_of_the_target_gives_the_temperature_no_gradient() -> None:
    _, _, columns = random_itc(9, rows=3, extra=2, groups=4)
    columns.group_C[:] = torch.arange(5)
    tau = torch.tensor(TAU, dtype=torch.float64, requires_grad=True)
    rows = [feature[:3] for feature in columns[:2]]
    itc = itc_loss(*rows, columns, positive_B=torch.arange(3), temperature=tau, alpha=1.0)
    itc.loss.backward()
    # Target and choice are one softmax here: only a gradient through the target could move the temperature.
    assert tau.grad.item() == pytest.approx(0, abs=1e-12)


def test_shapes_that_do_not_fit_are_refused_with_what_came() -> None:
    image_BD, text_BD, columns = random_itc(10, rows=3, extra=1, groups=4)
    options = {"temperature": TAU, "alpha": 0.4}
    with pytest.raises(ValueError, match=r"text \[2, 8\]"):
        itc_loss(image_BD, text_BD[:2], columns, positive_B=torch.arange(3), **options)
    with pytest.raises(ValueError, match=r"positive \[4\]"):
        itc_loss(image_BD, text_BD, columns, positive_B=torch.arange(4), **options)
    short = columns._replace(group_C=columns.group_C[:3])
    with pytest.raises(ValueError, match=r"group \[3\]"):
        itc_loss(image_BD, text_BD, short, positive_B=torch.arange(3), **options)
    with pytest.raises(ValueError, match=r"column groups \[2\]"):
        hard_negative_probabilities(torch.zeros(2, 3), group_B=torch.zeros(2), group_C=torch.zeros(2))
    with pytest.raises(ValueError, match=r"negative \[2, 3\]"):
        itm_loss(torch.zeros(2, 2), torch.zeros(2, 3))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    image_BD, text_BD, columns = random_itc(11, rows=3, extra=0, groups=4)
    with pytest.raises(ValueError, match="temperature must be positive"):
        itc_loss(image_BD, text_BD, columns, positive_B=torch.arange(3), temperature=temperature, alpha=0.4)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_a_teacher_share_outside_zero_to_one_is_refused(alpha: float) -> None:
    image_BD, text_BD, columns = random_itc(12, rows=3, extra=0, groups=4)
    with pytest.raises(ValueError, match="alpha is the teacher's share"):
        itc_loss(image_BD, text_BD, columns, positive_B=torch.arange(3), temperature=TAU, alpha=alpha)
