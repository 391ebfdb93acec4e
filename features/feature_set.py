"""A built feature set: its manifest and typed access to its files.

Shapes: E purchase events.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from features.artifacts import StrictModel, read_manifest, verify_checksums
from features.columns.transforms import Transform
from features.schema import FeatureConfig

SPLITS = ("train", "validation", "test")


class FeatureSetError(ValueError):
    """A folder that is not a whole feature set; says which file and what to do."""


class SparseColumn(StrictModel):
    """A sparse feature's embedding table: `rows` counts row 0 (missing) and the `oov_rows` after it."""

    name: str
    rows: int
    oov_rows: int


class SplitSummary(StrictModel):
    """One split; `start` and `end` are the first and the last impression, ISO 8601 in UTC."""

    rows: int
    clicked: int
    start: str
    end: str
    files: tuple[str, ...]

    @property
    def ctr(self) -> float:
        """Clicks per impression."""
        return self.clicked / self.rows


class LabelSummary(StrictModel):
    """What became of one split's clicks; see `features.schema.LabelConfig`."""

    rows: int = 0
    #: Clicks as logged. Those of the next two kinds are no labels.
    clicks: int = 0
    #: Clicks that came when the attribution window was over.
    after_window: int = 0
    #: Clicks within the window, but after the end of the split.
    after_split: int = 0
    #: Rows whose window was not over when their label was read: at the end of the split, or of the log.
    open_windows: int = 0

    def __add__(self, other: "LabelSummary") -> "LabelSummary":
        own, others = self.model_dump(), other.model_dump()
        return LabelSummary(**{name: own[name] + others[name] for name in own})


class LogSummary(StrictModel):
    """What the input held, and what it went without."""

    impressions: int
    #: Of known users.
    purchases: int
    products: int
    #: Impressions in no split: before the end of the burn-in.
    unused_impressions: int
    #: "click_timestamp", or "impression_timestamp" when the log does not say when a click happened.
    clicks_counted_from: str
    #: Clicks without a click time although the column exists; counted from their impression.
    clicks_without_time: int
    #: Without a user; a feature set that was built when they were refused has none.
    anonymous_impressions: int = 0
    anonymous_purchases: int = 0
    absences: tuple[str, ...]
    #: Impressions were made of purchases, as the folder of the tables says: nobody saw them.
    constructed: bool = False


class Manifest(StrictModel):
    """manifest.json of a feature set; `format` rises when an old reader would misread the new one.

    2: places in histories have 64 bits, because there are 2^31 purchases or more.
    """

    format: Literal[1, 2] = 1
    config: FeatureConfig
    dense_columns: tuple[str, ...]
    sparse_columns: tuple[SparseColumn, ...]
    num_products: int
    num_queries: int
    num_users: int
    splits: Mapping[str, SplitSummary]
    transforms: Mapping[str, Transform]
    #: CTR of the training window, towards which sparse counters are smoothed; None without counters.
    counter_prior_ctr: float | None
    #: {split: {feature: share of its rows}} whose id the vocabulary lacks, and whose id is missing.
    oov_share: Mapping[str, Mapping[str, float]]
    missing_share: Mapping[str, Mapping[str, float]]
    #: Share of a split's rows without any purchase in the history window.
    empty_history_share: Mapping[str, float]
    events: int
    #: By split; none in a feature set that was built before labels had a window.
    labels: Mapping[str, LabelSummary] = {}
    checksums: Mapping[str, str]
    data: LogSummary
    created: str


@dataclass(frozen=True)
class FeatureSet:
    """A folder written by `features.offline.build.build`. Arrays are memory-mapped and read-only."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> "FeatureSet":
        """Read the manifest and, with `verify`, compare every file with its checksum.

        Raises:
            FeatureSetError: no manifest, another format, a file is missing or has changed.
        """
        advice = "build the feature set again with `dashclip features build`"
        manifest = read_manifest(folder, Manifest, what="a feature set", error=FeatureSetError, advice=advice)
        if verify:
            verify_checksums(folder, manifest.checksums, error=FeatureSetError, advice=advice)
        return cls(folder, manifest)

    def split_files(self, split: str) -> list[Path]:
        """Row files of "train", "validation" or "test", in time order."""
        if split not in self.manifest.splits:
            raise FeatureSetError(f"no split {split!r}; there are {', '.join(self.manifest.splits)}")
        return [self.folder / name for name in self.manifest.splits[split].files]

    def catalog_ids(self) -> pa.Array:
        """Product ids in `product_index` order."""
        return _column(self.folder / "catalog.parquet", "product_id")

    def queries(self) -> pa.Array:
        """Query strings in `query_index` order; empty without queries."""
        return _column(self.folder / "queries.parquet", "query")

    def user_ids(self) -> pa.Array:
        """User ids in `user_index` order; the index -1 is nobody."""
        return _column(self.folder / "users.parquet", "user_id")

    def vocabulary(self, feature: str) -> pa.Table:
        """id, row, count of a sparse feature's vocabulary, in row order."""
        if feature not in {column.name for column in self.manifest.sparse_columns}:
            known = ", ".join(column.name for column in self.manifest.sparse_columns)
            raise FeatureSetError(f"no sparse feature {feature!r}; there are {known}")
        return pq.read_table(self.folder / "vocabularies" / f"{feature}.parquet")

    def history_product_index(self) -> npt.NDArray[np.int32]:
        """int32[E]: the product of each purchase, events sorted by (user_index, timestamp, purchase_id)."""
        return self._history("product_index")

    def history_next_same_product(self) -> npt.NDArray[np.integer]:
        """[E]: index of the user's next purchase of the same product, E when there is none."""
        return self._history("next_same_product")

    def _history(self, name: str) -> npt.NDArray[Any]:
        mapped = np.load(self.folder / "history" / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return np.asarray(mapped)  # still mapped, without the cost of the subclass at each access


def _column(path: Path, name: str) -> pa.Array:
    return pq.read_table(path, columns=[name]).column(name).combine_chunks()
