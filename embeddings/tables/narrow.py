"""Narrower tables from one: the first d coordinates, scaled back to unit length.

The whitening at the end of stage 2 sorts the coordinates by variance, so the first d say the most that d can.
Training them to stand alone besides (Matryoshka, Kusupati et al. 2022) added nothing that five seeds could
tell apart (experiments/LOG.md).

Shapes: N ids, D embedding width, d < D the narrower one.
"""

from pathlib import Path

import numpy as np

from embeddings.embedding_table import EmbeddingTable, EmbeddingTableError


def narrow_table(table: EmbeddingTable, out: Path, dim: int) -> EmbeddingTable:
    """Write a table of the first `dim` coordinates of each vector of unit vectors, in the same number format.

    Zeros stay zeros. The encoder id says how many coordinates are left, as these are other vectors.

    Raises:
        EmbeddingTableError: the table is not one of unit vectors or not wider than `dim`, or FBGEMM cannot
            take the width.
    """
    if not table.manifest.normalised or not 0 < dim < table.dim:
        raise EmbeddingTableError(
            f"a narrower table needs unit vectors of more than {dim} coordinates; {table.folder} has "
            f"{'unit' if table.manifest.normalised else 'other'} vectors of {table.dim}"
        )
    first_Nd = np.array(table.vectors_ND[1:, :dim], dtype=np.float32)
    length_N = np.linalg.norm(first_Nd, axis=1, keepdims=True)
    unit_Nd = np.divide(first_Nd, length_N, out=np.zeros_like(first_Nd), where=length_N > 0)
    return EmbeddingTable.write(
        out,
        ids=table.ids,
        vectors_ND=unit_Nd.astype(table.vectors_ND.dtype),
        encoder_id=f"{table.manifest.encoder_id}-first-{dim}",
        kind=table.manifest.kind,
        normalised=True,
        holdout=table.manifest.holdout,
    )


def bytes_per_vector(table: EmbeddingTable) -> int:
    """What one vector takes on disk and in memory: float16 of width 128 takes 256 bytes."""
    return table.dim * table.vectors_ND.dtype.itemsize
