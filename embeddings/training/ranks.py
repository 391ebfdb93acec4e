"""What one of several ranks of a `torchrun` needs: who it is, tensors from all ranks, and failing together.

Shapes: W ranks, B rows on one rank; gathered tensors have W * B rows, rank 0 first.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store
from torch.distributed.nn.functional import all_gather

T = TypeVar("T")

#: Under this key of the store stands why the first rank that failed did.
_FAILURE = "failure"
#: What errors of lost connections say; backends raise plain RuntimeErrors.
_LOST = ("gloo", "connection", "nccl", "store", "timed out")


class RankFailedError(ValueError):
    """Another rank failed; the message is its own."""


class RankLostError(ValueError):
    """Another rank ended without a word, or no longer answers."""


class _TerminatedError(Exception):
    """SIGTERM, by which `torchrun` ends the ranks that are left when one has ended."""


@dataclass(frozen=True)
class Ranks:
    """This rank and how many there are; one alone needs no process group.

    Attributes:
        store: what all ranks of a process group read and write; None without a group.
    """

    rank: int = 0
    count: int = 1
    store: Store | None = field(default=None, compare=False, repr=False)

    @property
    def in_group(self) -> bool:
        """Whether `torchrun` started this rank, be it the only one."""
        return self.store is not None

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

    def cover_of(self, rows: int) -> slice:
        """This rank's part of `rows` rows, as long as any other's: the last ones overlap if they must.

        >>> [Ranks(rank, 4).cover_of(10) for rank in range(4)]
        [slice(0, 3, None), slice(3, 6, None), slice(6, 9, None), slice(7, 10, None)]
        """
        part = -(-rows // self.count)
        start = min(self.rank * part, rows - part)
        return slice(start, start + part)


def join_ranks(device_type: str, *, timeout: timedelta | None = None) -> Ranks:
    """Join the process group of `torchrun`, or stand alone when it did not start this process.

    Args:
        timeout: how long a rank waits for others before it fails; the backend's own if None.
    """
    if not dist.is_torchelastic_launched():
        return Ranks()
    if not dist.is_initialized():
        if device_type == "cuda":
            torch.cuda.set_device(dist.get_node_local_rank())
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=timeout)
    store = dist.distributed_c10d._get_default_store()
    return Ranks(rank=dist.get_rank(), count=dist.get_world_size(), store=store)


def decided_by_first(ranks: Ranks, decide: Callable[[], T]) -> T:
    """What `decide` returns on the first rank, which alone calls it; it must be picklable.

    Raises:
        Exception: what `decide` raised, on the first rank.
        RankFailedError: the same sentence, on the others.
    """
    if ranks.count == 1:
        return decide()
    outcome: list[Any] = [None, None]
    error: Exception | None = None
    if ranks.first:
        try:
            outcome[0] = decide()
        except Exception as caught:
            error, outcome[1] = caught, str(caught)
    dist.broadcast_object_list(outcome)
    if error is not None:
        raise error
    if outcome[1] is not None:
        raise RankFailedError(outcome[1])
    decided: T = outcome[0]
    return decided


@contextmanager
def failing_together(ranks: Ranks) -> Iterator[None]:
    """What ends one rank ends all, and each learns why: a rank that fails leaves its sentence in the store.

    A rank that dies without one closes its connections, so that the others fail in the next exchange; one
    that hangs lets them wait for the timeout of `join_ranks`.

    Raises:
        RankFailedError: instead of a lost connection, when another rank has said why it failed.
        RankLostError: instead of a lost connection, when none has.
    """
    if ranks.store is None:
        yield
        return
    with _terminated_with_an_error():
        try:
            yield
        except Exception as error:
            _ignore_termination()  # it has an end already
            if not _is_loss(error):
                _leave(ranks, f"rank {ranks.rank}: {str(error) or type(error).__name__}")
                raise
            why = _failure(ranks)
            if why is not None:
                raise RankFailedError(why) from error
            late = "timed out" in str(error).lower()
            what = "does not answer in time" if late else "ended without a word"
            raise RankLostError(
                f"rank {ranks.rank} of {ranks.count} stopped, since another rank {what}; look for the first "
                "cause in the report of torchrun, then go on from the newest checkpoint with --resume"
            ) from error


def _is_loss(error: Exception) -> bool:
    if isinstance(error, _TerminatedError | dist.DistError):
        return True
    text = str(error).lower()
    return type(error) is RuntimeError and any(word in text for word in _LOST)


def _leave(ranks: Ranks, why: str) -> None:
    """Leave a sentence for the other ranks, unless one stands there already or the store is gone."""
    assert ranks.store is not None
    try:
        ranks.store.compare_set(_FAILURE, "", why)
    except RuntimeError:
        return


def _failure(ranks: Ranks) -> str | None:
    """Why the first rank that failed did; None if it left no word, or its store is gone."""
    assert ranks.store is not None
    try:
        return ranks.store.get(_FAILURE).decode() if ranks.store.check([_FAILURE]) else None
    except RuntimeError:
        return None


def _ignore_termination() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def _terminated_with_an_error() -> Iterator[None]:
    """SIGTERM raises an error meanwhile, so that the rank can say why it ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        _ignore_termination()
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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


def gather_objects(value: T, ranks: Ranks) -> list[T]:
    """One picklable value of each rank, rank 0 first."""
    if ranks.count == 1:
        return [value]
    values: list[Any] = [None] * ranks.count
    dist.all_gather_object(values, value)
    return values


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
