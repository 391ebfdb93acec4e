"""Makes feature snapshots: the log before a moment, counted by the kernels that count for training.

Counts as of a moment are those of an impression at that moment, so each key gets one imagined impression
there. The log is cut before anything else reads it: what happens later can change no byte of a snapshot.

Shapes: N impressions, U users, P products, K keys, W windows, E purchases, M pairs of query and product.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from features.artifacts import (
    atomic_folder,
    atomic_write_json,
    checksums_of,
    refuse_to_replace_input,
)
from features.columns.clock import DAY_US, iso
from features.columns.counters import UNIT_US, CounterBlock
from features.columns.id_map import IdMap
from features.columns.kernels import NO_CLICK, history_offsets, windowed_counts
from features.columns.vocabulary import MISSING_ROW, Vocabulary
from features.feature_set import FeatureSet
from features.inputs.table_specs import is_text
from features.inputs.tables import InputTables
from features.offline.key_counters import PARTITION_OF_KEY
from features.offline.log_checks import LogError
from features.online.growing_array import GrowingArray
from features.online.past_log import PastLog
from features.online.snapshot import (
    KNOWN,
    Known,
    Snapshot,
    SnapshotError,
    SnapshotManifest,
    is_snapshot,
    schema_fingerprint,
)
from features.progress import Progress, silent
from features.schema import CounterConfig, CounterKey, DenseFeature, SparseFeature

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]

_BLOCK_ROWS = 65_536
_INDEX_OF: dict[Known, CounterKey] = {"users": "user", "products": "product", "queries": "query"}
_KNOWN_BY: dict[str, Known] = {"user_id": "users", "product_id": "products", "query": "queries"}


def build_snapshot(
    data: Path,
    feature_set: FeatureSet,
    out: Path,
    *,
    as_of_us: int,
    threads: int = 1,
    memory_limit: str = "2GB",
    progress: Progress = silent,
) -> Snapshot:
    """Write the snapshot of `data` as of a moment to the folder `out`, which appears whole or not at all.

    All of `data`'s products are in it, also those that the feature set has never seen. Only an older snapshot
    or an empty folder is replaced.

    Args:
        feature_set: says what the features are and how their values become rows and numbers.
        as_of_us: microseconds since 1970 UTC; impressions, clicks and purchases count if they were before.
        memory_limit: of the engine.

    Raises:
        ValueError: tables, columns or rows that cannot be used, ids of another type than the feature set's,
            or no impression before the moment. Says which and what to do.
        FileExistsError: `out` holds something that is not a snapshot.
    """
    refuse_to_replace_input(out, data)
    refuse_to_replace_input(out, feature_set.folder)
    tables = InputTables.open(data)
    with atomic_folder(out, ours=is_snapshot) as folder:
        try:
            with PastLog(
                tables,
                feature_set.manifest.config,
                before_us=as_of_us,
                threads=threads,
                memory_limit=memory_limit,
                spill=folder / "spill",
            ) as log:
                _check_id_types(log, feature_set)
                manifest = _write(log, feature_set, folder, as_of_us=as_of_us, report=progress)
        except duckdb.Error as error:
            raise LogError(f"{data}: the engine stopped: {error}") from error
        shutil.rmtree(folder / "spill", ignore_errors=True)
        manifest = manifest.model_copy(update={"checksums": checksums_of(folder)})
        atomic_write_json(folder / "manifest.json", manifest.model_dump(mode="json"))
    return Snapshot.open(out, verify=False)


def _check_id_types(log: PastLog, feature_set: FeatureSet) -> None:
    """Ids of the log are of the kind that the feature set was built from."""
    own = {"user": feature_set.user_ids(), "product": feature_set.catalog_ids()}
    for key, ids in own.items():
        found = log.indexes[key].ids.type
        if is_text(found) != is_text(ids.type):
            raise SnapshotError(
                f"{log.tables.root}: {key}_id is {found}, but {ids.type} in the feature set "
                f"{feature_set.folder}, so nothing would match; give the data that it was built from"
            )


def _write(
    log: PastLog, feature_set: FeatureSet, folder: Path, *, as_of_us: int, report: Progress
) -> SnapshotManifest:
    source = feature_set.manifest
    config = source.config
    steps = 4
    for known in KNOWN:
        IdMap.write(folder / known, log.indexes[_INDEX_OF[known]].ids)
    report("writing the snapshot", 1, steps)
    vocabularies = _vocabularies(feature_set)
    for name, vocabulary in vocabularies.items():
        IdMap.write(folder / "vocabularies" / name, vocabulary.ids)
    product_dense = [feature for feature in config.dense if feature.source == "products"]
    np.save(folder / "products_dense.npy", _product_dense(log, product_dense))
    sparse = {known: [f for f in config.sparse if _known_of(f) == known] for known in KNOWN}
    for known, features in sparse.items():
        np.save(folder / f"{known}_sparse.npy", _sparse(log, known, features, vocabularies))
    report("writing the snapshot", 2, steps)
    window_us = config.history.window_days * DAY_US if config.history else 0
    purchases = _write_history(log, folder, as_of_us=as_of_us, window_us=window_us) if config.history else 0
    report("writing the snapshot", 3, steps)
    unit_us = UNIT_US[config.counters.granularity] if config.counters else 1
    pairs = 0
    if config.counters:
        pairs = _write_counters(log, folder, config.counters, as_of_us=as_of_us)
        _write_dense_counters(folder, feature_set)
    report("writing the snapshot", 4, steps)
    return SnapshotManifest(
        as_of=iso(as_of_us),
        as_of_us=as_of_us,
        counters_as_of_us=as_of_us // unit_us * unit_us,
        config=config,
        dense_columns=source.dense_columns,
        sparse_columns=source.sparse_columns,
        transforms=source.transforms,
        counter_prior_ctr=source.counter_prior_ctr,
        product_dense=tuple(feature.name for feature in product_dense),
        sparse={known: tuple(feature.name for feature in features) for known, features in sparse.items()},
        num_users=len(log.indexes["user"]),
        num_products=len(log.indexes["product"]),
        num_queries=len(log.indexes["query"]),
        num_pairs=pairs,
        num_purchases=purchases,
        impressions=log.facts.impressions,
        last_impression=iso(log.facts.last_us),
        schema_fingerprint=schema_fingerprint(feature_set),
        checksums={},
    )


def _known_of(feature: SparseFeature) -> Known | None:
    """Whose id alone decides the feature's row."""
    if feature.source == "products":
        return "products"
    return _KNOWN_BY.get(feature.column) if feature.source == "impressions" else None


def _vocabularies(feature_set: FeatureSet) -> dict[str, Vocabulary]:
    result: dict[str, Vocabulary] = {}
    for column in feature_set.manifest.sparse_columns:
        table = feature_set.vocabulary(column.name).combine_chunks()
        count_V = table["count"].to_numpy()
        result[column.name] = Vocabulary(column.name, table["id"].combine_chunks(), count_V, column.oov_rows)
    return result


def _product_dense(log: PastLog, features: list[DenseFeature]) -> npt.NDArray[np.float64]:
    value_PD = np.full((len(log.indexes["product"]) + 1, len(features)), np.nan)
    for place, feature in enumerate(features):
        value_PD[:-1, place] = log.product_column(feature.column, as_number=True).to_numpy(
            zero_copy_only=False
        )
    return value_PD


def _sparse(
    log: PastLog, known: Known, features: list[SparseFeature], vocabularies: dict[str, Vocabulary]
) -> Int32s:
    """Rows of the embedding tables of all users, products or queries, and zeros behind them."""
    own_ids = log.indexes[_INDEX_OF[known]].ids
    row_KS = np.full((len(own_ids) + 1, len(features)), MISSING_ROW, np.int32)
    for place, feature in enumerate(features):
        of_product = feature.source == "products"
        values = log.product_column(feature.column, as_number=False) if of_product else own_ids
        vocabulary = vocabularies[feature.name]
        if len(vocabulary.ids) and is_text(values.type) != is_text(vocabulary.ids.type):
            raise SnapshotError(
                f"sparse feature {feature.name!r}: column {feature.column!r} is {values.type}, "
                f"but {vocabulary.ids.type} in the feature set, so nothing would match; cast the column"
            )
        row_KS[:-1, place] = vocabulary.rows_of(values)
    return row_KS


def _write_history(log: PastLog, folder: Path, *, as_of_us: int, window_us: int) -> int:
    """Purchases that an impression at the moment sees, from the log to their files a batch at a time."""
    (folder / "history").mkdir()
    per_user_U = np.zeros(len(log.indexes["user"]), np.int64)
    with (
        GrowingArray(folder / "history" / "product.npy", np.int32) as product_E,
        GrowingArray(folder / "history" / "time_us.npy", np.int64) as time_us_E,
    ):
        for batch in log.purchases():
            columns = {name: batch.column(name).to_numpy() for name in ("user", "product", "time_us")}
            recent = columns["time_us"] >= as_of_us - window_us
            if not recent.any():
                continue
            user_N, time_us_N = columns["user"][recent], columns["time_us"][recent]
            first, users = int(user_N[0]), int(user_N[-1]) - int(user_N[0]) + 1
            start_U, end_U = history_offsets(
                np.arange(users), np.full(users, as_of_us), user_N - first, time_us_N, window=window_us
            )
            seen_U = end_U - start_U
            assert int(seen_U.sum()) == len(user_N), "the kernel sees other purchases than were read"
            per_user_U[first : first + users] += seen_U
            product_E.append(columns["product"][recent])
            time_us_E.append(time_us_N)
    np.save(folder / "history" / "start.npy", np.concatenate([[0], np.cumsum(per_user_U)]))
    return int(per_user_U.sum())


def _write_counters(log: PastLog, folder: Path, config: CounterConfig, *, as_of_us: int) -> int:
    """Tables of all keys; returns how many pairs of query and product have counts."""
    folder = folder / "counters"
    folder.mkdir()
    unit_us = UNIT_US[config.granularity]
    clock = _Clock(
        unit_us=unit_us,
        as_of=as_of_us // unit_us,
        windows=tuple(days * DAY_US // unit_us for days in config.windows_days),
    )
    log.keep_since(as_of_us // unit_us * unit_us - max(config.windows_days) * DAY_US)
    pairs = _Pairs(products=len(log.indexes["product"]))
    for partition in dict.fromkeys(PARTITION_OF_KEY[key] for key in config.keys):
        keys = len(log.indexes[partition])
        count_KC = np.zeros((keys + 1, 2 * len(config.windows_days)), np.int32)
        for first, last, rows in log.ranges(partition):
            key_N = rows["key"].astype(np.int64) - first
            if partition in config.keys:
                count_KC[first:last] = clock.counts(key_N, rows, keys=last - first)
            if partition == "query" and "query_product" in config.keys:
                pairs.add(first, last, key_N, rows, clock)
        if partition in config.keys:
            np.save(folder / f"{partition}.npy", count_KC)
    if "query_product" not in config.keys:
        return 0
    return pairs.save(folder, columns=2 * len(config.windows_days))


def _write_dense_counters(folder: Path, feature_set: FeatureSet) -> None:
    """What the network reads of each table of counts."""
    source = feature_set.manifest
    counters, prior_ctr = source.config.counters, source.counter_prior_ctr
    assert counters is not None
    assert prior_ctr is not None
    for key in counters.keys:
        block = CounterBlock.of(key, counters, source.transforms, prior_ctr=prior_ctr)
        count_KC = np.load(folder / "counters" / f"{key}.npy")
        column_KC = np.empty((len(count_KC), len(block.names)), np.float32)
        for first in range(0, len(count_KC), _BLOCK_ROWS):
            part = slice(first, first + _BLOCK_ROWS)
            column_KC[part] = block.columns(count_KC[part])
        np.save(folder / "counters" / f"{key}_dense.npy", column_KC)


@dataclass(frozen=True)
class _Clock:
    """The moment and the windows, in units of the counters' granularity."""

    unit_us: int
    as_of: int
    windows: tuple[int, ...]

    def counts(self, key_N: Int64s, rows: dict[str, npt.NDArray[Any]], *, keys: int) -> Int32s:
        """int32[K, 2 W]: impressions and clicks of keys 0..K - 1 in the windows that end at the moment."""
        click_us_N = rows["click_us"]
        click_N = np.where(click_us_N == NO_CLICK, NO_CLICK, click_us_N // self.unit_us)
        counted = windowed_counts(
            np.concatenate([key_N, np.arange(keys)]),
            np.concatenate([rows["time_us"] // self.unit_us, np.full(keys, self.as_of)]),
            np.concatenate([click_N, np.full(keys, NO_CLICK)]),
            windows=self.windows,
        )
        tile_K = counted.tile_of_row_N[len(key_N) :]
        return counted.count_TC.take(tile_K, axis=0)


class _Pairs:
    """Gathers the pairs of query and product that have counts, range by range of queries."""

    def __init__(self, *, products: int) -> None:
        self._products = products
        self._per_query: list[Int64s] = [np.zeros(1, np.int64)]
        self._product: list[Int32s] = []
        self._count: list[Int32s] = []

    def add(
        self, first: int, last: int, query_N: Int64s, rows: dict[str, npt.NDArray[Any]], clock: _Clock
    ) -> None:
        """Take in all rows of queries first..last - 1, `query_N` counted from first."""
        pair_N = query_N * self._products + rows["product"]  # both below 2^31: their product fits
        pair_K, key_N = np.unique(pair_N, return_inverse=True)
        count_KC = clock.counts(key_N, rows, keys=len(pair_K))
        counted = count_KC.any(axis=1)
        query_M, product_M = np.divmod(pair_K[counted], self._products)
        self._per_query.append(np.bincount(query_M, minlength=last - first))
        self._product.append(product_M.astype(np.int32))
        self._count.append(count_KC[counted])

    def save(self, folder: Path, *, columns: int) -> int:
        """Write the three tables; returns how many pairs there are."""
        none_C = np.zeros((1, columns), np.int32)
        count_MC = np.concatenate([*self._count, none_C])
        np.save(folder / "query_product.npy", count_MC)
        np.save(folder / "pair_start.npy", np.cumsum(np.concatenate(self._per_query)))
        np.save(folder / "pair_product.npy", np.concatenate([np.zeros(0, np.int32), *self._product]))
        return len(count_MC) - 1
