"""Logits of a whole split, in the split's own order."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embeddings.training.ranks import Ranks, gather_rows
from features.batches.loader import BatchLoader
from ranking.model import Ranker


def predict(
    ranker: Ranker, loader: BatchLoader, *, device: torch.device, ranks: Ranks | None = None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Score every row once, always in float32: reported numbers do not depend on the training precision.

    Args:
        loader: reads the split; of several ranks, each its own `Ranks.cover_of` it.

    Returns:
        clicked [N] and logits [N], row i being row i of the split whatever order the loader reads in; the
        same on all ranks.
    """
    clicked_N = np.zeros(loader.split_rows, np.int8)
    logit_N = np.full(loader.split_rows, np.nan, np.float32)
    scored: list[tuple[NDArray[np.int64], Tensor]] = []
    was_training = ranker.training
    ranker.eval()
    with torch.no_grad():  # under inference_mode, fbgemm has no CPU kernel for fused tables
        for batch in loader:
            on_device = batch.to(device)
            logit_B = ranker(on_device.dense_BF, on_device.sparse, on_device.semantic)
            row_B = batch.row_B.numpy()
            clicked_N[row_B] = batch.clicked_B.numpy()
            scored.append((row_B, logit_B.float()))
    for row_B, logit_B in scored:  # read at the end: a GPU would be idle while the next batch is made
        logit_N[row_B] = logit_B.cpu().numpy()
    ranker.train(was_training)
    if ranks is not None and ranks.count > 1:
        _exchange(clicked_N, ranks, device)
        _exchange(logit_N, ranks, device)
    return clicked_N, logit_N


def _exchange(values_N: NDArray[Any], ranks: Ranks, device: torch.device) -> None:
    """Fill in what other ranks have of their parts."""
    rows = len(values_N)
    own = torch.from_numpy(values_N[ranks.cover_of(rows)]).to(device)
    of_all = gather_rows(own, ranks).cpu().numpy()
    for rank, part in enumerate(np.split(of_all, ranks.count)):
        values_N[Ranks(rank, ranks.count).cover_of(rows)] = part
