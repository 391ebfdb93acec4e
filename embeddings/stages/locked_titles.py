"""Vectors of titles by a text encoder that is not trained: each title is read once, not once an epoch.

Beside a large text encoder the image encoders of the small sizes cost little, so an epoch that read every
title again would spend most of its time on vectors that do not change.

Shapes: N rows, U distinct titles, D embedding width.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.training.base_loop import autocast
from embeddings.training.length_chunks import by_length
from embeddings.training.precision import Precision

#: Titles that are read together.
CHUNK = 256


class LockedTitles:
    """Unit vectors in the space of ITC of the titles of some rows."""

    def __init__(
        self,
        encoder: DashClipEncoder,
        titles: Sequence[str],
        rows_N: npt.NDArray[np.int64],
        *,
        precision: Precision,
    ) -> None:
        """Read them by the text side of the product encoder, as it is now and where it lies.

        Args:
            titles: of the whole catalogue.
            precision: of the passes, as in `OptimizerConfig`.
        """
        texts, place_N = np.unique(
            np.array([titles[row] for row in rows_N.tolist()], dtype=object), return_inverse=True
        )
        self._place = dict(zip(rows_N.tolist(), place_N.tolist(), strict=True))
        tokens = encoder.title_tokens(texts.tolist())
        length_U = tokens.mask_BT.sum(dim=1).numpy()
        product, device = encoder.product.eval(), encoder.device
        self._vectors_UD = torch.empty(len(texts), encoder.config.embedding_dim, device=device)
        with torch.no_grad(), autocast(device, precision):
            for rows in by_length(length_U, CHUNK):
                longest = int(length_U[rows].max())
                ids_BT, mask_BT = (
                    part[rows, :longest].to(device) for part in (tokens.ids_BT, tokens.mask_BT)
                )
                read_BD = product.text_features(product.text_tokens(ids_BT, mask_BT), mask_BT)
                self._vectors_UD[rows] = read_BD.float()

    def of(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Of some of the rows, float32, (N, D)."""
        return self._vectors_UD[[self._place[row] for row in rows.tolist()]]
