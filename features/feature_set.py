"""A built feature set: its manifest and typed access to its files.

Shapes: E purchase events.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from features.artifacts import verify_checksums
from features.columns.transforms import Transform
from features.schema import Config, FeatureConfig

#: Raised when a reader of the old format would misread the new one.
FORMAT = 1
SPLITS = ("train", "validation", "test")


class FeatureSetError(ValueError):
    """A folder that is not a whole feature set; says which file and what to do."""


class SparseColumn(Config):
    """A sparse feature's embedding table: `rows` counts row 0 (missing) and the `oov_rows` after it."""

    name: str
    rows: int
    oov_rows: int


class SplitSummary(Config):
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


class LogSummary(Config):
    """What the input held, and what it went without."""

    impressions: int
    purchases: int
    products: int
    #: Impressions in no split: before the end of the burn-in.
    unused_impressions: int
    #: "click_timestamp", or "impression_timestamp" when the log does not say when a click happened.
    clicks_counted_from: str
    #: Clicks without a click time although the column exists; counted from their impression.
    clicks_without_time: int
    absences: tuple[str, ...]


class Manifest(Config):
    """manifest.json of a feature set."""

    format: int
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
        path = folder / "manifest.json"
        if not path.is_file():
            raise FeatureSetError(
                f"{folder} is not a feature set (no manifest.json); `dashclip features build`"
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = content.get("format") if isinstance(content, dict) else None
            if found != FORMAT:
                raise FeatureSetError(
                    f"{path} has format {found!r}, this version reads {FORMAT}; build it again"
                )
            manifest = Manifest.model_validate(content)
        except (json.JSONDecodeError, ValidationError) as error:
            raise FeatureSetError(f"{path} cannot be read ({error}); build the feature set again") from error
        if verify:
            verify_checksums(
                folder, manifest.checksums, error=FeatureSetError, advice="build the feature set again"
            )
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
        """User ids in `user_index` order."""
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

    def history_next_same_product(self) -> npt.NDArray[np.int32]:
        """int32[E]: index of the user's next purchase of the same product, E when there is none."""
        return self._history("next_same_product")

    def _history(self, name: str) -> npt.NDArray[Any]:
        return np.load(self.folder / "history" / f"{name}.npy", mmap_mode="r", allow_pickle=False)


def _column(path: Path, name: str) -> pa.Array:
    return pq.read_table(path, columns=[name]).column(name).combine_chunks()
