"""A command as one of the ranks of `torchrun`: the first one speaks for all."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from embeddings.training.ranks import Ranks, failing_together, join_ranks

#: How long ranks wait for one that does not answer.
PATIENCE = timedelta(minutes=5)


@contextmanager
def one_of_ranks(device: torch.device) -> Iterator[Ranks]:
    """This process among those that `torchrun` started, or alone.

    What the caller did wrong, the first rank alone raises; the others end without a word.
    """
    ranks = join_ranks(device.type, timeout=PATIENCE)
    try:
        with failing_together(ranks):
            yield ranks
    except (ValueError, OSError):
        if not ranks.in_group:
            raise
        if not ranks.first:
            sys.exit(2)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends all ranks as soon as one has ended
        raise
    if ranks.in_group:
        dist.destroy_process_group()


def device_of_rank(device: torch.device, ranks: Ranks) -> torch.device:
    """The GPU of this rank, where each has one."""
    if device.type == "cuda" and ranks.in_group:
        return torch.device("cuda", torch.cuda.current_device())
    return device
