"""Permutations of rows, a function of (seed, repeat, cells) alone.

Every feature of a repeat is moved by the same permutation. So features are compared under the same chance,
and a joint permutation of two features is by construction the permutation of each.

Shapes: N rows.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def row_permutation(
    rows: int,
    *,
    seed: int,
    repeat: int,
    cells_N: NDArray[np.integer] | None = None,
    name: str = "all",
) -> Rows:
    """Where each row takes its values from: row i those of row `result[i]`.

    Args:
        cells_N: rows change places only with rows of the same cell. A cell of one row keeps its own.
        name: of the partition into cells, so that partitions are permuted independently.
    """
    rng = np.random.default_rng([seed, repeat, zlib.crc32(name.encode())])
    if cells_N is None:
        return rng.permutation(rows)
    result = np.empty(rows, np.int64)
    by_cell = np.argsort(cells_N, kind="stable")
    result[by_cell] = np.lexsort((rng.random(rows), cells_N))
    return result
