"""A feature snapshot: all that a server must know of users, products and queries as of one moment.

    manifest.json                    the feature schema with its transforms, counts, checksums
    users/ products/ queries/        id maps; queries and users that the log had before the moment
    products_dense.npy [P+1, D]      raw product columns of dense features, float64, NaN for missing
    users_sparse.npy, products_sparse.npy, queries_sparse.npy [K+1, S]
                                     rows of the embedding tables of what is known of each, int32
    vocabularies/<feature>/          id maps: position + 1 + oov_rows is the row of an embedding table
    history/                         start [U+1], product [E], time_us [E]: purchases by user, oldest first
    counters/<key>.npy [K+1, 2W]     impressions and clicks of each window, side by side, int32
    counters/<key>_dense.npy [K+1, 3W]   what the network reads of them, float32
    counters/pair_start.npy [Q+1], pair_product.npy [M]   the products with which each query has counts

The last row of each table is that of an unknown key, which position -1 reads.

Shapes: U users, P products, Q queries, K keys, M pairs of query and product, W windows, E purchases.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.artifacts import StrictModel, json_file_has, read_manifest, verify_checksums
from features.columns.id_map import IdMap, IdMapError, map_array
from features.columns.transforms import Transform
from features.columns.vocabulary import stable_hash
from features.feature_set import FeatureSet, SparseColumn
from features.schema import CounterKey, FeatureConfig

#: What has an id map and sparse rows of its own.
Known = Literal["users", "products", "queries"]
KNOWN: tuple[Known, ...] = ("users", "products", "queries")


class SnapshotError(ValueError):
    """A folder that is not a whole snapshot, or one that cannot be made; says which and what to do."""


class SnapshotManifest(StrictModel):
    """manifest.json of a snapshot. The same log, feature set and moment give the same manifest."""

    format: Literal[1] = 1
    #: ISO 8601 in UTC. What was at or after this moment is not in the snapshot.
    as_of: str
    as_of_us: int
    #: `as_of` floored to the granularity of the counters: they end here.
    counters_as_of_us: int
    config: FeatureConfig
    dense_columns: tuple[str, ...]
    sparse_columns: tuple[SparseColumn, ...]
    transforms: Mapping[str, Transform]
    counter_prior_ctr: float | None
    #: Features in the order of the columns of `products_dense.npy` and of `<known>_sparse.npy`.
    product_dense: tuple[str, ...]
    sparse: Mapping[Known, tuple[str, ...]]
    num_users: int
    num_products: int
    num_queries: int
    num_pairs: int
    num_purchases: int
    #: Of the log before `as_of`; the last one says how fresh the log was.
    impressions: int
    last_impression: str
    schema_fingerprint: str
    checksums: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Purchases:
    """Purchases in [as_of - window, as_of), each user's oldest first, users one after the other.

    Attributes:
        start_U: [U + 1]; those of user u are `start_U[u]` to `start_U[u + 1]`.
        product_E: position in the snapshot's products.
        time_us_E: microseconds since 1970 UTC.
    """

    start_U: npt.NDArray[np.int64]
    product_E: npt.NDArray[np.int32]
    time_us_E: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs of query and product that have counts: those of query q lie at start[q] to start[q + 1].

    Attributes:
        start_Q: [Q + 1].
        product_M: rising within a query.
    """

    start_Q: npt.NDArray[np.int64]
    product_M: npt.NDArray[np.int32]

    def find(self, query: int, product_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Place of each pair, -1 where it has no counts."""
        start, end = (int(self.start_Q[query]), int(self.start_Q[query + 1])) if query >= 0 else (0, 0)
        if start == end:
            return np.full(len(product_N), -1, np.int64)
        product_M = self.product_M[start:end]
        place_N = product_M.searchsorted(product_N.astype(np.int32))
        np.minimum(place_N, end - start - 1, out=place_N)
        found_N: npt.NDArray[np.int64] = np.where(product_M[place_N] == product_N, place_N + start, -1)
        return found_N


@dataclass(frozen=True, eq=False)
class Snapshot:
    """An opened snapshot; its arrays are memory-mapped and read-only.

    Attributes:
        product_dense_PD: raw values, one row of NaN behind those of the products.
        sparse: rows of embedding tables, int32 [K + 1, S]; one row of zeros (missing) behind those known.
        vocabularies: by sparse feature.
        purchases: None where the feature schema has no history.
        counts: by key, int32 [K + 1, 2 W]; empty without counters.
        counters: by key, float32 [K + 1, 3 W]: the same as the network reads it.
        pairs: None where the feature schema does not count pairs.
    """

    folder: Path
    manifest: SnapshotManifest
    users: IdMap
    products: IdMap
    queries: IdMap
    product_dense_PD: npt.NDArray[np.float64]
    sparse: Mapping[Known, npt.NDArray[np.int32]]
    vocabularies: Mapping[str, IdMap]
    purchases: Purchases | None
    counts: Mapping[CounterKey, npt.NDArray[np.int32]]
    counters: Mapping[CounterKey, npt.NDArray[np.float32]]
    pairs: Pairs | None

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> "Snapshot":
        """Map the files and, with `verify`, compare each with its checksum first.

        Raises:
            SnapshotError: no manifest, another format, a file is missing, cut off or has changed; names it.
        """
        what, advice = "a feature snapshot", "make the snapshot again"
        manifest = read_manifest(folder, SnapshotManifest, what=what, error=SnapshotError, advice=advice)
        if verify:
            verify_checksums(folder, manifest.checksums, error=SnapshotError, advice=advice)
        config = manifest.config
        keys = config.counters.keys if config.counters else ()
        try:
            return cls(
                folder=folder,
                manifest=manifest,
                users=IdMap.open(folder / "users"),
                products=IdMap.open(folder / "products"),
                queries=IdMap.open(folder / "queries"),
                product_dense_PD=_array(folder / "products_dense.npy"),
                sparse={known: _array(folder / f"{known}_sparse.npy") for known in KNOWN},
                vocabularies={
                    column.name: IdMap.open(folder / "vocabularies" / column.name)
                    for column in manifest.sparse_columns
                },
                purchases=Purchases(
                    *(_array(folder / "history" / f"{name}.npy") for name in ("start", "product", "time_us"))
                )
                if config.history
                else None,
                counts={key: _array(folder / "counters" / f"{key}.npy") for key in keys},
                counters={key: _array(folder / "counters" / f"{key}_dense.npy") for key in keys},
                pairs=Pairs(
                    _array(folder / "counters" / "pair_start.npy"),
                    _array(folder / "counters" / "pair_product.npy"),
                )
                if "query_product" in keys
                else None,
            )
        except IdMapError as error:
            raise SnapshotError(str(error)) from error

    def product_ids(self) -> pa.Array:
        """Ids of all products in the order of their positions."""
        return self.products.ids()


def is_snapshot(folder: Path) -> bool:
    """Whether `build_snapshot` wrote this folder."""
    return json_file_has(folder / "manifest.json", "counters_as_of_us")


def schema_fingerprint(feature_set: FeatureSet) -> str:
    """SHA-256 of what a model depends on: features, transforms, and the row of every id.

    Snapshots with the fingerprint of a model's feature set can be swapped beneath it.
    """
    manifest = feature_set.manifest
    described: dict[str, Any] = manifest.model_dump(
        mode="json",
        include={
            "dense_columns": True,
            "sparse_columns": True,
            "transforms": {"__all__": {"kind", "mean", "sd", "missing_column"}},
            "counter_prior_ctr": True,
        },
    )
    described["config"] = manifest.config.model_dump(mode="json", exclude={"split"})
    described["vocabularies"] = {
        column.name: hashlib.sha256(
            stable_hash(feature_set.vocabulary(column.name)["id"].combine_chunks()).astype("<u8").tobytes()
        ).hexdigest()
        for column in manifest.sparse_columns
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _array(path: Path) -> npt.NDArray[Any]:
    try:
        return map_array(path)
    except (OSError, ValueError) as error:
        raise SnapshotError(f"{path} cannot be read ({error}); make the snapshot again") from error
