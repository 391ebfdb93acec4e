"""Groups of rows that share something, through any chain."""

from collections.abc import Hashable, Iterable

import numpy as np
import numpy.typing as npt


def connected_groups(count: int, keys: Iterable[tuple[int, Hashable]]) -> npt.NDArray[np.int64]:
    """The group of each of `count` rows: the first row that it is connected to by keys (row, key).

    Rows with one key are connected; a row may have several keys, or none.

    >>> connected_groups(4, [(0, "a"), (1, "b"), (3, "a"), (3, "b")]).tolist()
    [0, 0, 2, 0]
    """
    parent = list(range(count))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first_with: dict[Hashable, int] = {}
    for row, key in keys:
        first, second = root(first_with.setdefault(key, row)), root(row)
        parent[max(first, second)] = min(first, second)
    return np.fromiter(map(root, range(count)), np.int64, count)
