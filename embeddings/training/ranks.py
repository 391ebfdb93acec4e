"""What one of several ranks of a `torchrun` needs: who it is, and tensors from all ranks.

Shapes: W ranks, B rows on one rank; gathered tensors have W * B rows, rank 0 first.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather


@dataclass(frozen=True)
class Ranks:
    """This rank and how many there are; one alone needs no process group."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this rank writes files and reports progress."""
        return self.rank == 0

    def slice_of(self, rows: int) -> slice:
        """This rank's equal part of `rows` rows.

        Raises:
            ValueError: the ranks do not divide the rows.
        """
        if rows % self.count:
            raise ValueError(f"{rows} rows cannot be divided among {self.count} ranks; choose a multiple")
        part = rows // self.count
        return slice(self.rank * part, (self.rank + 1) * part)


def join_ranks(device_type: str) -> Ranks:
    """Join the process group of `torchrun`, or stand alone when it did not start this process."""
    if not dist.is_torchelastic_launched():
        return Ranks()
    if not dist.is_initialized():
        if device_type == "cuda":
            torch.cuda.set_device(dist.get_node_local_rank())
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    return Ranks(rank=dist.get_rank(), count=dist.get_world_size())


def gather_rows(rows: Tensor, ranks: Ranks) -> Tensor:
    """Rows of all ranks, without gradients."""
    if ranks.count == 1:
        return rows.detach()
    parts = [torch.empty_like(rows) for _ in range(ranks.count)]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def gather_rows_with_gradient(rows: Tensor, ranks: Ranks) -> Tensor:
    """Rows of all ranks; what other ranks do with this rank's rows flows back to it."""
    return rows if ranks.count == 1 else torch.cat(all_gather(rows))


def sum_over_ranks(values: Tensor, ranks: Ranks) -> Tensor:
    """Elementwise sum of the ranks' tensors, the same bits on every rank."""
    if ranks.count == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def barrier(ranks: Ranks) -> None:
    """Wait until every rank is here."""
    if ranks.count > 1:
        dist.barrier()
