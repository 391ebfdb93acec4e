"""Batches of a ranker ahead of their use: read by a thread, and in memory that a GPU copies by itself."""

from collections.abc import Generator, Iterator
from typing import TypeVar

import torch

from embeddings.training.prefetch import prefetch
from features.batches.batch import Batch

T = TypeVar("T")


def ahead(
    located: Iterator[tuple[Batch, T]], device: torch.device, *, by_thread: bool
) -> Generator[tuple[Batch, T], None, None]:
    """Batches, each with what comes with it; by a thread ahead of their use, and pinned for a GPU."""

    def pinned() -> Iterator[tuple[Batch, T]]:
        for batch, more in located:
            yield (batch.pin_memory() if device.type == "cuda" else batch), more

    yield from prefetch(pinned()) if by_thread else pinned()
