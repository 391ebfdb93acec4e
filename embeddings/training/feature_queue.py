"""Ring buffer of the momentum teacher's features: more candidates for ITC than one batch holds (MoCo, ALBEF).

Shapes: B products of a batch, Q slots, C = B + Q columns, D embedding width.
"""

import torch
from torch import Tensor, nn

from embeddings.training.losses import NO_GROUP, Columns


class FeatureQueue(nn.Module):
    """The last Q pairs of teacher image and text features, with their group ids.

    Any batch size will do; of a batch larger than the queue, the last Q rows stay. Slots not yet filled have
    group -1, which no loss counts. Everything is in `state_dict`. Ranks that push the same global batches
    hold the same queue.
    """

    image_QD: Tensor
    text_QD: Tensor
    group_Q: Tensor
    next_slot: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 0 or dim < 1:
            raise ValueError(f"a feature queue needs size >= 0 and dim >= 1, got size {size} and dim {dim}")
        self.register_buffer("image_QD", torch.zeros(size, dim))
        self.register_buffer("text_QD", torch.zeros(size, dim))
        self.register_buffer("group_Q", torch.full((size,), NO_GROUP))
        self.register_buffer("next_slot", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        """Slots that are filled."""
        return int((self.group_Q != NO_GROUP).sum())

    def columns(self, image_BD: Tensor, text_BD: Tensor, group_B: Tensor) -> Columns:
        """The columns of `itc_loss`: the batch first, row i in column i, then all slots; copies."""
        self._check(image_BD, text_BD, group_B)
        return Columns(
            image_CD=torch.cat([image_BD.detach().to(self.image_QD), self.image_QD]),
            text_CD=torch.cat([text_BD.detach().to(self.text_QD), self.text_QD]),
            group_C=torch.cat([group_B.to(self.group_Q), self.group_Q]),
        )

    @torch.no_grad()
    def push(self, image_BD: Tensor, text_BD: Tensor, group_B: Tensor) -> None:
        """Put the batch in place of the oldest pairs; rows with group -1 are passed over.

        Push after the loss: a batch that is already in the queue would stand in its own columns twice.
        """
        self._check(image_BD, text_BD, group_B)
        size, rows = len(self.group_Q), min(len(self.group_Q), len(group_B))
        if not rows:
            return
        # How many rows have a group, the device alone knows: those come first, and the slots beyond them keep
        # what they hold.
        known_B = group_B != NO_GROUP
        count = known_B.sum()
        number_R = torch.arange(rows, device=group_B.device) + (count - rows).clamp_min(0)
        row_R = known_B.to(torch.int8).argsort(descending=True, stable=True)[number_R]
        slot_R = (self.next_slot + torch.arange(rows, device=self.next_slot.device)) % size
        kept_R = number_R < count
        for held_Q, given_B in ((self.image_QD, image_BD), (self.text_QD, text_BD), (self.group_Q, group_B)):
            chosen_R = given_B[row_R].to(held_Q)
            mask_R = kept_R if held_Q.ndim == 1 else kept_R.unsqueeze(1)
            held_Q[slot_R] = torch.where(mask_R, chosen_R, held_Q[slot_R])
        self.next_slot.copy_((self.next_slot + count.clamp_max(rows)) % size)

    def _check(self, image_BD: Tensor, text_BD: Tensor, group_B: Tensor) -> None:
        expected = (len(group_B), self.image_QD.shape[1])
        if image_BD.shape != expected or text_BD.shape != expected:
            raise ValueError(
                f"the queue holds pairs of {expected[1]} coordinates, one for each of {expected[0]} groups; "
                f"got image {list(image_BD.shape)}, text {list(text_BD.shape)}"
            )
