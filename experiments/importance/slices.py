"""Slices of the evaluated rows: where importance is asked for conditionally.

A partition cuts the rows into cells; importance in a cell permutes within the cell. So the purchase history
of users who have none has exactly no importance: there is nothing to exchange it for.

Shapes: N rows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.importance.result import ALL
from experiments.importance.split_rows import SplitRows
from features.feature_set import FeatureSet

Mask = NDArray[np.bool_]

#: A slice with fewer clicks, or fewer rows without one, is left out: its AUC is mostly chance.
MIN_CLASS_ROWS = 20
_MAX_AISLES = 40


@dataclass(frozen=True)
class Partition:
    """Cells of rows; `slices` names those that are reported, with their cell.

    Attributes:
        cells_N: None for the partition of one cell.
    """

    name: str
    cells_N: NDArray[np.int64] | None
    slices: dict[str, int]

    def mask(self, slice: str, rows: int) -> Mask:
        """Rows of a slice."""
        if self.cells_N is None:
            return np.ones(rows, dtype=bool)
        return self.cells_N == self.slices[slice]


def whole() -> Partition:
    """Every row in one cell."""
    return Partition(ALL, None, {ALL: 0})


def partitions_of(rows: SplitRows, feature_set: FeatureSet) -> tuple[list[Partition], list[str]]:
    """Partitions by purchases, query frequency, age of the product and aisle; remarks on what is left out.

    Only slices with at least `MIN_CLASS_ROWS` clicks and as many rows without a click are named.
    """
    cells: dict[str, tuple[NDArray[np.integer], dict[str, int]]] = {
        "purchases": (rows.flags["slice_has_purchases"], {"has purchases": 1, "no purchases": 0}),
        "query frequency": (
            rows.flags["slice_query_frequency"],
            {"head query": 2, "torso query": 1, "tail query": 0},
        ),
        "product age": (
            rows.flags["slice_seen_product"],
            {"product seen in training": 1, "new product": 0},
        ),
    }
    aisles = _aisles(rows, feature_set)
    notes: list[str] = []
    if aisles is None:
        notes.append("The schema has no id feature that reads the products' aisle: no view per aisle.")
    else:
        cells["aisle"] = aisles
    clicked_N = rows.flags["clicked"]
    found: list[Partition] = []
    for name, (cells_N, slices) in cells.items():
        sizes = {
            slice: (int((cells_N == cell).sum()), int(clicked_N[cells_N == cell].sum()))
            for slice, cell in slices.items()
        }
        kept = {
            slice: slices[slice]
            for slice, (count, clicks) in sizes.items()
            if min(clicks, count - clicks) >= MIN_CLASS_ROWS
        }
        left_out = [f"{slice} ({sizes[slice][0]:,} rows)" for slice in slices if slice not in kept]
        if name == "query frequency" and (cells_N < 0).all():
            notes.append("The data set has no queries: no view by query frequency.")
        elif left_out:
            notes.append(
                f"Left out for fewer than {MIN_CLASS_ROWS} clicks or as few rows without: "
                f"{', '.join(left_out)}."
            )
        if len(kept) > 1:
            found.append(Partition(name, cells_N.astype(np.int64), kept))
    return found, notes


def _aisles(rows: SplitRows, feature_set: FeatureSet) -> tuple[NDArray[np.integer], dict[str, int]] | None:
    """Aisle of each row and the names of the most frequent ones, from the vocabulary of the aisle feature."""
    names = [
        feature.name
        for feature in feature_set.manifest.config.sparse
        if feature.source == "products" and feature.column == "aisle" and feature.name in rows.sparse_names
    ]
    if not names:
        return None
    cells_N = np.array(rows.sparse_NS[:, rows.sparse_names.index(names[0])])
    vocabulary = feature_set.vocabulary(names[0])
    count_of = np.bincount(cells_N)
    by_count = sorted(
        (
            (-int(count_of[row]), f"aisle: {aisle}", row)
            for aisle, row in zip(vocabulary["id"].to_pylist(), vocabulary["row"].to_pylist(), strict=True)
            if row < len(count_of) and count_of[row]
        ),
    )
    return cells_N, {name: row for _, name, row in by_count[:_MAX_AISLES]}
