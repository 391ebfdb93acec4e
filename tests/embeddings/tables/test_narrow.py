"""Narrower tables: unit vectors of the first coordinates."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embeddings.embedding_table import EmbeddingTable, EmbeddingTableError
from embeddings.tables.narrow import bytes_per_vector, narrow_table


def table(folder: Path, *, normalised: bool = True, dtype: Any = np.float16) -> EmbeddingTable:
    """Three vectors of width 8: random, zeros, and one whose first four coordinates are zeros."""
    vectors_ND = np.zeros((3, 8), np.float32)
    vectors_ND[0] = np.random.default_rng(0).normal(size=8)
    vectors_ND[0] /= np.linalg.norm(vectors_ND[0])
    vectors_ND[2, 7] = 1
    return EmbeddingTable.write(
        folder,
        ids=pa.array([5, 6, 7]),
        vectors_ND=vectors_ND.astype(dtype),
        encoder_id="e",
        kind="product",
        normalised=normalised,
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_first_coordinates_keep_their_direction_and_zeros_stay_zeros(tmp_path: Path, dtype: Any) -> None:
    wide = table(tmp_path / "wide", dtype=dtype)
    narrow = narrow_table(wide, tmp_path / "narrow", 4)
    first_4 = wide.vectors_ND[1, :4].astype(np.float32)
    np.testing.assert_allclose(narrow.vectors_ND[1], first_4 / np.linalg.norm(first_4), atol=1e-3)
    assert not narrow.vectors_ND[[0, 2, 3]].any()
    assert narrow.ids.equals(wide.ids)
    assert (narrow.manifest.encoder_id, narrow.manifest.kind) == ("e-first-4", "product")
    assert narrow.vectors_ND.dtype == dtype
    assert (bytes_per_vector(wide), bytes_per_vector(narrow)) == (
        8 * wide.vectors_ND.itemsize,
        4 * wide.vectors_ND.itemsize,
    )


@pytest.mark.parametrize("dim", [8, 12, 0])
def test_a_table_that_is_not_wider_is_refused(tmp_path: Path, dim: int) -> None:
    with pytest.raises(EmbeddingTableError, match=f"more than {dim} coordinates; .* has unit vectors of 8"):
        narrow_table(table(tmp_path / "wide"), tmp_path / "narrow", dim)


def test_vectors_that_are_not_unit_vectors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EmbeddingTableError, match="other vectors of 8"):
        narrow_table(table(tmp_path / "wide", normalised=False), tmp_path / "narrow", 4)
