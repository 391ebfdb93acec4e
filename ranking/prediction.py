"""Logits of a whole split, in the split's own order."""

import numpy as np
import torch
from numpy.typing import NDArray

from features.batches.loader import BatchLoader
from ranking.model import Ranker


def predict(
    ranker: Ranker, loader: BatchLoader, *, device: torch.device
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Score every row once, always in float32: reported numbers do not depend on the training precision.

    Returns:
        clicked [N] and logits [N], row i being row i of the split whatever order the loader reads in.
    """
    clicked_N = np.zeros(loader.rows, np.int8)
    logit_N = np.full(loader.rows, np.nan, np.float32)
    was_training = ranker.training
    ranker.eval()
    with torch.no_grad():  # under inference_mode, fbgemm has no CPU kernel for fused tables
        for batch in loader:
            on_device = batch.to(device)
            logit_B = ranker(on_device.dense_BF, on_device.sparse, on_device.semantic)
            row_B = batch.row_B.numpy()
            clicked_N[row_B] = batch.clicked_B.numpy()
            logit_N[row_B] = logit_B.float().cpu().numpy()
    ranker.train(was_training)
    return clicked_N, logit_N
