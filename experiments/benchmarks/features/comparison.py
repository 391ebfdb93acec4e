"""Whether two feature sets hold the same histories and the same counters, value by value.

Shapes: N impressions, E purchase events.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.feature_set import SPLITS, FeatureSet
from features.schema import RESERVED_COLUMNS

_EXACT_COLUMNS = tuple(name for name in RESERVED_COLUMNS if name != "timestamp")
_HISTORY_ARRAYS = ("user_start", "product_index", "timestamp_us", "next_same_product")
#: Smoothed CTRs are compared as float32 after undoing the standardisation.
_CTR_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Comparison:
    """What was compared; `differences` names each column or array that is not the same."""

    rows: int
    columns: int
    differences: tuple[str, ...]

    @property
    def identical(self) -> bool:
        """No difference, and something was compared."""
        return self.rows > 0 and self.columns > 0 and not self.differences


def compare_with_pandas(ours: FeatureSet, theirs: Path) -> Comparison:
    """Compare a feature set with the output of `pandas_features`.

    Counts are restored from their standardised logarithms to whole numbers and must be equal exactly.
    """
    moments: dict[str, tuple[float, float]] = json.loads(
        (theirs / "moments.json").read_text(encoding="utf-8")
    )
    differences = list(_history_differences(ours, theirs))
    columns = [*_EXACT_COLUMNS, *moments]
    rows = 0
    for split in SPLITS:
        paths = ours.split_files(split)
        theirs_path = theirs / split / "part-00000.parquet"
        rows += pq.ParquetFile(theirs_path).metadata.num_rows
        for name in columns:
            mine_N = np.concatenate([pq.read_table(path, columns=[name])[0].to_numpy() for path in paths])
            other_N = pq.read_table(theirs_path, columns=[name])[0].to_numpy()
            if name in moments:
                transform = ours.manifest.transforms[name]
                mine_N = _restored(mine_N, (transform.mean, transform.sd), name)
                other_N = _restored(other_N, moments[name], name)
            if not _equal(mine_N, other_N, name):
                differences.append(f"{split}/{name}")
    return Comparison(rows=rows, columns=len(columns) + len(_HISTORY_ARRAYS), differences=tuple(differences))


def _history_differences(ours: FeatureSet, theirs: Path) -> Iterator[str]:
    for name in _HISTORY_ARRAYS:
        mine = np.load(ours.folder / "history" / f"{name}.npy", mmap_mode="r")
        if not np.array_equal(mine, np.load(theirs / "history" / f"{name}.npy", mmap_mode="r")):
            yield f"history/{name}"


def _restored(value_N: NDArray[np.float32], moments: tuple[float, float], name: str) -> NDArray[np.float64]:
    """Undo the standardisation, and for counts the logarithm too."""
    mean, sd = moments
    raw_N: NDArray[np.float64] = value_N.astype(np.float64) * sd + mean
    return raw_N if "_ctr_" in name else np.rint(np.expm1(raw_N))


def _equal(mine_N: NDArray[np.generic], other_N: NDArray[np.generic], name: str) -> bool:
    if mine_N.shape != other_N.shape:
        return False
    if "_ctr_" in name:
        return bool(np.allclose(mine_N, other_N, rtol=0, atol=_CTR_TOLERANCE))
    return bool(np.array_equal(mine_N, other_N))
