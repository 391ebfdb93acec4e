"""The queue holds the last pairs in any batching, counts no empty slot, and resumes from its state."""

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embeddings.training.feature_queue import FeatureQueue
from embeddings.training.losses import NO_GROUP, Columns, itc_loss, unit_vectors

DIM = 3


def pairs(groups: list[int], *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image_BD, text_BD = (unit_vectors(torch.randn(len(groups), DIM, generator=generator)) for _ in range(2))
    return image_BD, text_BD, torch.tensor(groups, dtype=torch.int64)


def held(queue: FeatureQueue) -> list[tuple[int, tuple[float, ...], tuple[float, ...]]]:
    """What is in filled slots, in no particular order."""
    rows = zip(queue.group_Q.tolist(), queue.image_QD.tolist(), queue.text_QD.tolist(), strict=True)
    return sorted((group, tuple(image), tuple(text)) for group, image, text in rows if group != NO_GROUP)


def no_columns() -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros(0, DIM), torch.zeros(0, DIM), torch.zeros(0, dtype=torch.int64)


@given(st.integers(0, 5), st.lists(st.lists(st.integers(NO_GROUP, 4), max_size=9), max_size=6))
@settings(deadline=None, max_examples=80)
def test_the_queue_holds_the_last_pairs_that_have_a_group(size: int, batches: list[list[int]]) -> None:
    queue, model = FeatureQueue(size, DIM), deque(maxlen=size)
    for seed, groups in enumerate(batches):
        image_BD, text_BD, group_B = pairs(groups, seed=seed)
        queue.push(image_BD, text_BD, group_B)
        for group, image, text in zip(groups, image_BD.tolist(), text_BD.tolist(), strict=True):
            if group != NO_GROUP:
                model.append((group, tuple(image), tuple(text)))
        assert held(queue) == sorted(model)
        assert len(queue) == len(model)


def test_one_large_batch_fills_the_queue_like_its_parts() -> None:
    whole, parts = FeatureQueue(4, DIM), FeatureQueue(4, DIM)
    batch = pairs(list(range(11)))
    whole.push(*batch)
    for start in range(0, 11, 2):
        parts.push(*(part[start : start + 2] for part in batch))
    assert held(whole) == held(parts)
    assert whole.group_Q.sort().values.tolist() == [7, 8, 9, 10]


def test_a_reloaded_queue_goes_on_with_the_same_bits() -> None:
    queue = FeatureQueue(5, DIM)
    queue.push(*pairs([0, 1, 2]))
    reloaded = FeatureQueue(5, DIM)
    reloaded.load_state_dict(queue.state_dict())
    for copy in (queue, reloaded):
        copy.push(*pairs([3, 4, 5, 6], seed=1))
    for name, buffer in queue.state_dict().items():
        assert torch.equal(buffer, reloaded.state_dict()[name]), name


def test_columns_are_the_batch_in_order_and_then_the_queue() -> None:
    queue = FeatureQueue(3, DIM)
    queue.push(*pairs([7, 8]))
    image_BD, text_BD, group_B = pairs([1, 2], seed=1)
    columns = queue.columns(image_BD, text_BD, group_B)
    assert torch.equal(columns.image_CD, torch.cat([image_BD, queue.image_QD]))
    assert torch.equal(columns.text_CD, torch.cat([text_BD, queue.text_QD]))
    assert columns.group_C.tolist() == [1, 2, 7, 8, NO_GROUP]


@pytest.mark.parametrize("size", [0, 6])
def test_an_empty_queue_is_no_queue(size: int) -> None:
    batch = pairs([0, 1, 2])
    rows = pairs([0, 1, 2], seed=1)[:2]
    options = {"positive_B": torch.arange(3), "temperature": 0.1, "alpha": 0.4}
    expected = itc_loss(*rows, Columns(*batch), **options)
    assert torch.equal(
        itc_loss(*rows, FeatureQueue(size, DIM).columns(*batch), **options).loss, expected.loss
    )


def test_a_push_before_the_backward_pass_does_not_disturb_it() -> None:
    queue = FeatureQueue(4, DIM)
    queue.push(*pairs([5, 6, 7, 8]))
    gradients = []
    for push_first in (False, True):
        image_BD, text_BD, group_B = pairs([0, 1], seed=1)
        image_BD.requires_grad_()
        columns = queue.columns(*pairs([0, 1], seed=2))
        itc = itc_loss(image_BD, text_BD, columns, positive_B=torch.arange(2), temperature=0.1, alpha=0.4)
        if push_first:
            queue.push(image_BD, text_BD, group_B)
        itc.loss.backward()
        gradients.append(image_BD.grad)
    assert torch.equal(*gradients)
    assert not queue.image_QD.requires_grad


def test_half_precision_features_are_kept_in_float32() -> None:
    queue = FeatureQueue(2, DIM)
    image_BD, text_BD, group_B = pairs([0, 1])
    queue.push(image_BD.bfloat16(), text_BD.bfloat16(), group_B)
    assert queue.image_QD.dtype == torch.float32
    assert torch.equal(queue.image_QD, image_BD.bfloat16().float())
    assert queue.columns(image_BD.bfloat16(), text_BD, group_B).image_CD.dtype == torch.float32


def test_a_batch_without_rows_changes_nothing() -> None:
    queue = FeatureQueue(2, DIM)
    queue.push(*pairs([3]))
    before = held(queue)
    queue.push(*no_columns())
    queue.push(*pairs([NO_GROUP, NO_GROUP], seed=1))
    assert held(queue) == before
    assert queue.next_slot.item() == 1


def test_features_of_another_width_or_number_are_refused() -> None:
    queue = FeatureQueue(2, DIM)
    image_BD, text_BD, group_B = pairs([0, 1])
    with pytest.raises(ValueError, match=r"3 coordinates, one for each of 1 groups; got image \[2, 3\]"):
        queue.push(image_BD, text_BD, group_B[:1])
    with pytest.raises(ValueError, match=r"text \[2, 2\]"):
        queue.columns(image_BD, text_BD[:, :2], group_B)
    with pytest.raises(ValueError, match="size >= 0 and dim >= 1, got size -1"):
        FeatureQueue(-1, DIM)
