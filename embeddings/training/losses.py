"""Losses of the DashCLIP encoders: ITC and ITM of stage 1 (ALBEF, BLIP), PQC of stage 2 (paper equation 1).

Every vector that comes in has length one, so a dot product is a cosine. A group id says which rows show the
same product (variants, copies of a title or a picture); rows of one group are positives of each other and
never negatives, and group -1 (`NO_GROUP`) marks a row or column that takes no part: padding, a product
without image or title, an empty slot of the queue.

Each loss is a sum over the rows given, divided by `total_...`: the count over all ranks and accumulation
steps. Slices of one global batch therefore sum to its loss exactly, and so do their gradients; without the
argument the rows given are the whole batch. (DDP averages gradients: multiply by the number of ranks.)

Shapes: B products, C columns (teacher features of the global batch, then the queue), K negative queries for
each product, Q queries of other products, M unmatched pairs, D embedding width.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from embeddings.catalog.device_copies import to_device
from embeddings.catalog.tokenizer import TokenBatch

NO_GROUP = -1

#: Added to every candidate's share before one is drawn (BLIP): no negative is ever out of reach.
NEGATIVE_EPSILON = 1e-4
#: Titles whose tokens are counted at a time.
RARITY_ROWS = 4_096


class Columns(NamedTuple):
    """Teacher features that the rows of a batch choose from; column j of both sides is one product."""

    image_CD: Tensor
    text_CD: Tensor
    group_C: Tensor


class ITC(NamedTuple):
    """The loss with its graph, and cosine / temperature of both directions without, for hard negatives."""

    loss: Tensor
    image_to_text_BC: Tensor
    text_to_image_BC: Tensor


class InBatch(NamedTuple):
    """Queries of other products as further negatives; True = relevant or possibly so, hence left out."""

    query_QD: Tensor
    relevant_BQ: Tensor


def itc_loss(
    image_BD: Tensor,
    text_BD: Tensor,
    columns: Columns,
    *,
    positive_B: Tensor,
    temperature: Tensor | float,
    alpha: float,
    total_rows: Tensor | float | None = None,
) -> ITC:
    """Image-text contrastive loss with a momentum teacher's soft targets (ALBEF, BLIP).

    Each image picks its title out of C, each title its image. The target is `alpha` times what the teacher
    picks, plus 1 - `alpha` spread evenly over the columns of the row's group.

    Args:
        positive_B: the column of each row's own product. It names the row's group and its teacher features,
            so any slice of rows can stand against the columns of the global batch.
        total_rows: rows of the global batch that have a group.

    Returns:
        The mean over rows and both directions, in nats. Equal features give log(C); columns get no gradient.

    Raises:
        ValueError: shapes do not fit, the temperature is not positive or `alpha` is outside [0, 1].

    Li et al. 2021, https://arxiv.org/abs/2107.07651

    >>> same_BD = torch.ones(2, 4) / 2
    >>> columns = Columns(same_BD, same_BD, torch.tensor([0, 1]))
    >>> found = itc_loss(
    ...     same_BD, same_BD, columns, positive_B=torch.tensor([0, 1]), temperature=0.1, alpha=0.0
    ... )
    >>> round(found.loss.item(), 4) == round(math.log(2), 4)
    True
    """
    if image_BD.shape != text_BD.shape or positive_B.shape != image_BD.shape[:1]:
        raise ValueError(
            "itc_loss needs one image, one text and one positive column a row, got "
            f"image {_shape(image_BD)}, text {_shape(text_BD)}, positive {_shape(positive_B)}"
        )
    if columns.image_CD.shape != columns.text_CD.shape or columns.group_C.shape != columns.image_CD.shape[:1]:
        raise ValueError(
            "itc_loss needs one image, one text and one group a column, got "
            f"image {_shape(columns.image_CD)}, text {_shape(columns.text_CD)}, "
            f"group {_shape(columns.group_C)}"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is the teacher's share of the target and lies in [0, 1], got {alpha}")
    _check_temperature(temperature)
    group_B = columns.group_C[positive_B]
    used_C = columns.group_C != NO_GROUP
    match_BC = (group_B[:, None] == columns.group_C) & used_C
    with _full_precision(image_BD):
        image_CD, text_CD = (_precise(feature_CD).detach() for feature_CD in columns[:2])
        hard_BC = match_BC.to(image_CD.dtype)
        hard_BC = hard_BC / hard_BC.sum(dim=1, keepdim=True).clamp_min(1)

        def direction(row_BD: Tensor, teacher_CD: Tensor, other_CD: Tensor) -> tuple[Tensor, Tensor]:
            logits_BC = _precise(row_BD) @ other_CD.T / temperature
            with torch.no_grad():
                teacher_BC = _mask(teacher_CD[positive_B] @ other_CD.T / temperature, used_C).softmax(dim=1)
                target_BC = alpha * teacher_BC + (1 - alpha) * hard_BC
            log_share_BC = _mask(logits_BC, used_C).log_softmax(dim=1)
            return -(target_BC * log_share_BC).sum(dim=1), logits_BC.detach()

        image_loss_B, image_to_text_BC = direction(image_BD, image_CD, text_CD)
        text_loss_B, text_to_image_BC = direction(text_BD, text_CD, image_CD)
        row_loss_B = (image_loss_B + text_loss_B) / 2
        loss = _share(row_loss_B, group_B != NO_GROUP, total_rows)
    return ITC(loss, image_to_text_BC, text_to_image_BC)


@torch.no_grad()
def hard_negative_probabilities(logits_BC: Tensor, *, group_B: Tensor, group_C: Tensor) -> Tensor:
    """How likely each column is drawn as the unmatched partner of a row, BC: the similar ones most.

    BLIP's rule: the softmax of `logits_BC` (cosine / temperature) plus an epsilon; columns of the row's own
    group get 0. Rows sum to 1; a row without any other group, or without group, is all zeros.
    Equal logits give each column of another group the same share.
    """
    if logits_BC.shape != (len(group_B), len(group_C)):
        raise ValueError(
            "hard_negative_probabilities needs a group for each row and column, got "
            f"logits {_shape(logits_BC)}, row groups {_shape(group_B)}, column groups {_shape(group_C)}"
        )
    used_C = group_C != NO_GROUP
    allowed_BC = (group_B[:, None] != group_C) & used_C & (group_B != NO_GROUP)[:, None]
    share_BC = _mask(_precise(logits_BC), used_C).softmax(dim=1) + NEGATIVE_EPSILON
    share_BC = share_BC * allowed_BC
    return share_BC / share_BC.sum(dim=1, keepdim=True).clamp_min(NEGATIVE_EPSILON)


@torch.no_grad()
def draw_negatives(probability_BC: Tensor, generator: torch.Generator) -> Tensor:
    """One column for each row, int64 B, drawn by its probabilities; -1 where all are zero."""
    rows = len(probability_BC)
    uniform_B = torch.rand(rows, generator=generator, device=generator.device, dtype=torch.float64)
    if probability_BC.shape[1] == 0:
        return torch.full((rows,), -1, device=probability_BC.device)
    cumulative_BC = probability_BC.double().cumsum(dim=1)
    threshold_B1 = to_device(uniform_B, probability_BC.device)[:, None] * cumulative_BC[:, -1:]
    column_B1 = torch.searchsorted(cumulative_BC, threshold_B1, right=True)
    column_B1 = column_B1.clamp_max(probability_BC.shape[1] - 1)
    # A parallel sum may rise by a rounding error where a probability is zero; such a column is never right.
    best_B1 = probability_BC.argmax(dim=1, keepdim=True)
    column_B1 = torch.where(probability_BC.gather(1, column_B1) > 0, column_B1, best_B1)
    return torch.where(probability_BC.gather(1, column_B1) > 0, column_B1, -1).squeeze(1)


def itm_loss(
    logits_positive_B2: Tensor,
    logits_negative_M2: Tensor,
    *,
    total_pairs: Tensor | float | None = None,
) -> Tensor:
    """Image-text matching loss: is this the picture of this title? Logit 1 says yes.

    Returns:
        Mean cross entropy over all pairs, in nats; 0 without pairs. A loss that stays at
        `constant_matching_loss` has learned nothing.

    Li et al. 2022, https://arxiv.org/abs/2201.12086

    >>> round(itm_loss(torch.zeros(1, 2), torch.zeros(2, 2)).item(), 4) == round(math.log(2), 4)
    True
    """
    for name, logits in (("positive", logits_positive_B2), ("negative", logits_negative_M2)):
        if logits.ndim != 2 or logits.shape[1] != 2:
            raise ValueError(f"itm_loss needs two logits a pair, got {name} {_shape(logits)}")
    logits_N2 = _precise(torch.cat([logits_positive_B2, logits_negative_M2]))
    label_N = torch.zeros(len(logits_N2), dtype=torch.int64, device=logits_N2.device)
    label_N[: len(logits_positive_B2)] = 1
    loss_N = functional.cross_entropy(logits_N2, label_N, reduction="none")
    return _share(loss_N, torch.ones_like(loss_N), total_pairs)


def constant_matching_loss(matched: float, unmatched: float) -> float:
    """What ITM costs when it says the share of matched pairs to every pair, in nats.

    No answer that looks at nothing is better: this is the entropy of the mix.

    >>> round(constant_matching_loss(1, 2), 4)
    0.6365
    """
    shares = (matched / (matched + unmatched), unmatched / (matched + unmatched))
    return -sum(share * math.log(share) for share in shares if share > 0)


def grade_loss(
    product_BD: Tensor,
    query_BD: Tensor,
    grade_B: Tensor,
    *,
    scale: Tensor | float,
    shift: Tensor | float,
    total_rows: float | None = None,
) -> Tensor:
    """Binary cross-entropy of sigmoid(`scale` x cosine + `shift`) against grade / 2: a cosine says its grade.

    Args:
        grade_B: 0, 1 or 2.
        total_rows: pairs of the global batch.

    Returns:
        The mean over pairs in nats.

    Raises:
        ValueError: the shapes do not fit.

    >>> product_BD, query_BD = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> loss = grade_loss(product_BD, query_BD, torch.tensor([1]), scale=10.0, shift=0.0)
    >>> round(loss.item(), 4) == round(math.log(2), 4)
    True
    """
    if product_BD.shape != query_BD.shape or grade_B.shape != product_BD.shape[:1]:
        raise ValueError(
            "grade_loss needs one product, one query and one grade a row, got "
            f"product {_shape(product_BD)}, query {_shape(query_BD)}, grade {_shape(grade_B)}"
        )
    with _full_precision(product_BD):
        cosine_B = (_precise(product_BD) * _precise(query_BD)).sum(dim=1)
        target_B = grade_B.to(cosine_B) / 2
        loss_B = functional.binary_cross_entropy_with_logits(
            scale * cosine_B + shift, target_B, reduction="none"
        )
    return loss_B.sum() / (len(loss_B) if total_rows is None else total_rows)


def pqc_loss(
    product_BD: Tensor,
    positive_BD: Tensor,
    negatives_BKD: Tensor,
    *,
    temperature: Tensor | float,
    weight_B: Tensor | None = None,
    in_batch: InBatch | None = None,
    total_weight: Tensor | float | None = None,
) -> Tensor:
    """Product-Query Contrastive loss, DashCLIP equation 1.

    Each product picks its one relevant query out of 1 + K. Other products' queries are deliberately not
    negatives: nothing says that they are irrelevant (paper section 3.2.2). `in_batch` adds those that the
    relevance data lets pass, beyond the paper.

    Args:
        weight_B: weight of each row, as by grade; not negative.
        total_weight: weights of the global batch, summed (its rows, when they weigh alike).

    Returns:
        Weighted mean over the batch, in nats. Equal similarities give log(1 + K).

    Raises:
        ValueError: shapes do not fit or the temperature is not positive.

    https://arxiv.org/abs/2504.07110

    >>> product_BD, negatives_BKD = torch.tensor([[1.0, 0.0]]), torch.tensor([[[1.0, 0.0]] * 3])
    >>> loss = pqc_loss(product_BD, product_BD, negatives_BKD, temperature=0.1)
    >>> round(loss.item(), 4) == round(math.log(1 + 3), 4)
    True
    """
    rows, dim = product_BD.shape
    if positive_BD.shape != (rows, dim) or negatives_BKD.shape != (rows, *negatives_BKD.shape[1:2], dim):
        raise ValueError(
            "pqc_loss needs one positive and K negatives for each product, got "
            f"product {_shape(product_BD)}, positive {_shape(positive_BD)}, negatives {_shape(negatives_BKD)}"
        )
    if in_batch is not None and in_batch.relevant_BQ.shape != (rows, len(in_batch.query_QD)):
        raise ValueError(
            "pqc_loss needs to know of each in-batch query whether it is relevant to each product, got "
            f"queries {_shape(in_batch.query_QD)}, relevant {_shape(in_batch.relevant_BQ)}"
        )
    if weight_B is not None and weight_B.shape != (rows,):
        raise ValueError(f"pqc_loss needs one weight a product, {rows}, got {_shape(weight_B)}")
    _check_temperature(temperature)
    with _full_precision(product_BD):
        product_BD = _precise(product_BD)
        positive_B1 = (product_BD * _precise(positive_BD)).sum(dim=1, keepdim=True)
        negative_BK = torch.einsum("bd,bkd->bk", product_BD, _precise(negatives_BKD))
        logits = torch.cat([positive_B1, negative_BK], dim=1) / temperature
        if in_batch is not None:
            in_batch_BQ = product_BD @ _precise(in_batch.query_QD).T / temperature
            logits = torch.cat([logits, _mask(in_batch_BQ, ~in_batch.relevant_BQ)], dim=1)
        loss_B = -logits.log_softmax(dim=1)[:, 0]
        return _share(loss_B, torch.ones_like(loss_B) if weight_B is None else weight_B, total_weight)


def unit_vectors(vectors: Tensor) -> Tensor:
    """Vectors along the last axis scaled to length one; zeros and subnormals give zeros without gradient."""
    with _full_precision(vectors):
        vectors = _precise(vectors)
        # The largest coordinate first: squares of very small or large ones would leave the float range.
        largest = vectors.detach().abs().amax(dim=-1, keepdim=True)
        is_zero = largest < torch.finfo(vectors.dtype).tiny
        scaled = vectors.masked_fill(is_zero, 0) / largest.masked_fill(is_zero, 1)
        return scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True).masked_fill(is_zero, 1)


def _share(loss_B: Tensor, weight_B: Tensor, total: Tensor | float | None) -> Tensor:
    """Weighted sum of the rows over the total weight; 0, with a graph, where there is none."""
    weight_B = weight_B.to(loss_B)
    if not isinstance(total, Tensor):  # made on the device: a copy to it would wait
        total = weight_B.sum() if total is None else loss_B.new_full((), total)
    return (loss_B * weight_B).sum() / total.to(loss_B).masked_fill(total == 0, 1)


def _mask(logits: Tensor, allowed: Tensor) -> Tensor:
    """Logits that leave what is not allowed a share of zero; finite, so that 0 times its logarithm is 0."""
    return logits.masked_fill(~allowed, torch.finfo(logits.dtype).min)


def _precise(tensor: Tensor) -> Tensor:
    """At least float32: bfloat16 has 8 bits, and 1/temperature magnifies what they lose."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@contextmanager
def _full_precision(tensor: Tensor) -> Iterator[None]:
    """Autocast off: it would multiply float32 features in bfloat16."""
    with torch.autocast(tensor.device.type, enabled=False):
        yield


def _check_temperature(temperature: Tensor | float) -> None:
    # A tensor is the trainer's parameter, which it clamps; looking at its value would wait for the device.
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def rarity(titles: TokenBatch, vocabulary: int) -> Tensor:
    """Inverse document frequency of tokens, log(titles / titles with it), float32, (V,).

    0 for a token that all titles have, as [CLS], and for one that none has.
    """
    count_V = torch.zeros(vocabulary, dtype=torch.int64)
    for ids_BT, mask_BT in zip(
        titles.ids_BT.split(RARITY_ROWS), titles.mask_BT.split(RARITY_ROWS), strict=True
    ):
        in_title_BV = torch.zeros((len(ids_BT), vocabulary), dtype=torch.bool)
        count_V += in_title_BV.scatter_(1, ids_BT, mask_BT.bool()).sum(dim=0)
    return torch.where(count_V > 0, (len(titles.ids_BT) / count_V.clamp_min(1)).log(), 0.0)


def title_token_loss(logits_BV: Tensor, ids_BT: Tensor, mask_BT: Tensor, weight_V: Tensor) -> Tensor:
    """Cross-entropy of the tokens that an image predicts against those of its title.

    The target of a title is its set of tokens, each by its weight, in shares that add up to 1 (Huang et al.
    2024, "SuperClass").

    Args:
        weight_V: weights of the vocabulary; rare tokens say more. Tokens of weight 0 are no target.

    Returns:
        The loss of each row in nats, (B,); 0 for a title without a weighted token.
    """
    target_BV = _token_shares(ids_BT, mask_BT, weight_V.to(logits_BV))
    return -(target_BV * logits_BV.log_softmax(dim=1)).sum(dim=1)


def mean_token_share(titles: TokenBatch, weight_V: Tensor) -> Tensor:
    """Mean target of `title_token_loss` over titles, float32, (V,).

    Its logarithm is the best prediction that looks at no image.
    """
    total_V = torch.zeros(len(weight_V))
    for ids_BT, mask_BT in zip(
        titles.ids_BT.split(RARITY_ROWS), titles.mask_BT.split(RARITY_ROWS), strict=True
    ):
        total_V += _token_shares(ids_BT, mask_BT, weight_V).sum(dim=0)
    return total_V / total_V.sum().clamp_min(torch.finfo(total_V.dtype).tiny)


def _token_shares(ids_BT: Tensor, mask_BT: Tensor, weight_V: Tensor) -> Tensor:
    """Shares of the tokens of each title by their weight, (B, V); zeros without a weighted token."""
    share_BV = weight_V.new_zeros((len(ids_BT), len(weight_V)))
    share_BV = share_BV.scatter_(1, ids_BT, mask_BT.to(weight_V)) * weight_V
    return share_BV / share_BV.sum(dim=1, keepdim=True).clamp_min(torch.finfo(share_BV.dtype).tiny)
