"""From four tables to a feature set, point-in-time correct, in bounded memory.

DuckDB numbers the ids and hands out the impressions in time order; they are stored and scattered to buckets
of keys; the kernels count and find histories bucket by bucket; the rows are put together and written. What is
learned from data (vocabularies, means, the prior CTR) comes from the training window alone.

Shapes: N impressions of a batch.
"""

import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.artifacts import (
    atomic_folder,
    atomic_write_json,
    checksums_of,
    json_file_has,
    refuse_to_replace_input,
)
from features.columns.clock import DAY_US
from features.columns.counters import counter_names, counter_transforms
from features.columns.kernels import key_time_order
from features.columns.transforms import ExactMoments, Transform
from features.feature_set import FeatureSet, LogSummary, Manifest
from features.feature_set import SparseColumn as SparseSummary
from features.inputs.origin import Origin
from features.inputs.tables import InputTables
from features.offline.buckets import Buckets
from features.offline.fitted_columns import DenseColumn, FittedColumns, SparseColumn
from features.offline.history import EventWriter, offset_dtype
from features.offline.key_counters import PARTITION_OF_KEY, KeyCounters, KeyCounts, merge_moments
from features.offline.log_checks import LogError
from features.offline.log_reader import IdIndex, LogFacts, LogReader
from features.offline.row_files import RowAssembler, SplitTotals, SplitWriter
from features.offline.splits import CODE_OF_SPLIT
from features.offline.time_ordered_log import EncodedLog, Tally
from features.progress import Progress, silent
from features.schema import CounterKey, FeatureConfig

#: What the kernels need for one row of a bucket, measured; sets how many buckets a memory limit asks for.
_BUCKET_BYTES_PER_ROW = 256
#: Larger buckets fall out of the processor's caches: 7 M rows took 9.1 CPU-seconds in 14 buckets, 8.7 in 56.
_BUCKET_ROWS = 125_000
#: More buckets than this are made where memory asks for them, not for the caches: each costs opened files.
_BUCKETS_FOR_CACHES = 256
_BYTES_OF_UNIT = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_LEAST_MEMORY_BYTES = 200 * 10**6


def build(
    data: Path,
    out: Path,
    config: FeatureConfig,
    *,
    threads: int = 2,
    memory_limit: str = "2GB",
    buckets: int | None = None,
    progress: Progress = silent,
) -> Manifest:
    """Write the feature set of `data` to the folder `out`, which appears whole or not at all.

    Only an older feature set or an empty folder is replaced. Refused are rows of which no feature or label
    can be made. Rows that can hardly be true (copies, odd times and prices) are not looked for: call
    `features.inputs.validation.check_or_raise` first, as `dashclip features build` does.

    Args:
        memory_limit: such as "2GB". Half is the engine's; a quarter bounds the buckets. Id lists come on top.
        buckets: of each key; by default as many as the memory limit asks for. They change no number.

    Raises:
        ValueError: tables, columns or rows that cannot be used, or a split that is empty or knows one class
            only, or an `out` that would replace `data`. Says which and what to do.
        FileExistsError: `out` holds something that is not a feature set.
    """
    refuse_to_replace_input(out, data)
    check_names(config)
    tables = InputTables.open(data)
    memory_bytes = memory_limit_bytes(memory_limit)
    if buckets is None:
        rows = tables.rows("impressions") + (tables.rows("purchases") if tables.has_purchases else 0)
        fit_in_memory = memory_bytes // (4 * threads * _BUCKET_BYTES_PER_ROW)
        buckets = max(-(-rows // fit_in_memory), min(-(-rows // _BUCKET_ROWS), _BUCKETS_FOR_CACHES))
    if buckets < 1:
        raise ValueError(f"{buckets} buckets are asked for; it must be 1 or more")
    with atomic_folder(out, ours=is_feature_set) as folder:
        scratch = folder / "scratch"
        scratch.mkdir()
        try:
            with LogReader(
                tables,
                config,
                threads=threads,
                memory_limit=f"{memory_bytes // 2000}KB",
                spill=scratch / "spill",
            ) as reader:
                parts = _read(reader, folder, scratch, buckets=buckets, report=progress)
        except duckdb.Error as error:
            raise LogError(f"{data}: the engine stopped: {error}") from error
        transforms = _compute(parts, config, threads=threads, report=progress)
        manifest = _write(parts, folder, config, transforms=transforms, report=progress)
        shutil.rmtree(scratch)
        manifest = manifest.model_copy(update={"checksums": checksums_of(folder)})
        atomic_write_json(folder / "manifest.json", manifest.model_dump(mode="json"))
    return FeatureSet.open(out, verify=False).manifest


def is_feature_set(folder: Path) -> bool:
    """Whether `build` wrote this folder."""
    return json_file_has(folder / "manifest.json", "dense_columns")


def memory_limit_bytes(text: str) -> int:
    """`2GB` gives 2,000,000,000.

    Raises:
        ValueError: not a size, or less than 200 MB, below which the engine cannot sort.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMG]i?B)\s*", text, flags=re.IGNORECASE)
    if not match:
        raise ValueError(f"memory limit {text!r} is not a size; write for example 2GB or 512MiB")
    size = int(float(match[1]) * _BYTES_OF_UNIT[match[2].upper()])
    if size < _LEAST_MEMORY_BYTES:
        raise ValueError(f"memory limit {text!r} is too small; give at least 200MB")
    return size


def check_names(config: FeatureConfig) -> None:
    """Every column of the row files has its own name, and every vocabulary a file name."""
    names = [feature.name for feature in config.features]
    names += [f"{feature.name}_missing" for feature in config.dense]
    if config.counters:
        for key in config.counters.keys:
            for window in config.counters.windows_days:
                names += counter_names(key, window)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"the feature set would have two columns named {twice[0]!r}; rename the feature (counters are "
            "named <key>_<quantity>_<days>d, flags of missing values <feature>_missing)"
        )
    for feature in config.features:
        if not re.fullmatch(r"\w[\w.-]*", feature.name):
            raise ValueError(
                f"feature name {feature.name!r} cannot be a file name; use letters, digits, _ - and ."
            )


@dataclass(frozen=True)
class _Parts:
    """What the first pass leaves for the other two."""

    log: EncodedLog
    partitions: dict[str, Buckets]
    events: EventWriter
    counters: tuple[KeyCounters, ...]
    dense: tuple[DenseColumn, ...]
    sparse: tuple[SparseColumn, ...]
    users: int
    summary: LogSummary


def _read(reader: LogReader, folder: Path, scratch: Path, *, buckets: int, report: Progress) -> _Parts:
    """First pass: write ids and events, store and scatter the impressions, learn from the training window."""
    config, indexes, facts = reader.config, reader.indexes, reader.facts
    write_ids(folder, indexes)
    users = indexes["user"]
    with_history = config.history is not None
    events = EventWriter(
        folder / "history",
        reader.purchases() if with_history else iter(()),
        purchases_U=users.purchases_K if with_history else np.zeros_like(users.purchases_K),
    )
    keys = config.counters.keys if config.counters else ()
    weight_of_partition = {"user": users.impressions_K + users.purchases_K} | {
        name: indexes[name].impressions_K for name in ("product", "query") if name in _partitions(keys)
    }
    partitions = {
        name: Buckets(scratch / name, weight_K=weight_K, count=buckets)
        for name, weight_K in weight_of_partition.items()
    }
    dense = tuple(DenseColumn(feature, reader) for feature in config.dense)
    sparse = tuple(SparseColumn(feature, reader) for feature in config.sparse)
    log = EncodedLog.store(
        reader,
        scratch / "log.arrow",
        partitions=partitions,
        observers=(*dense, *sparse),
        report=report,
    )
    counters = tuple(
        KeyCounters(
            KeyCounts(key, config.counters, products=len(indexes["product"])),
            partitions[PARTITION_OF_KEY[key]],
            prior_ctr=log.tally.train_ctr,
        )
        for key in keys
        if config.counters
    )
    summary = log_summary(reader.tables, facts, indexes, unused_rows=log.tally.unused_rows)
    return _Parts(log, partitions, events, counters, dense, sparse, len(users), summary)


def write_ids(folder: Path, indexes: Mapping[str, IdIndex]) -> None:
    """Write which product, query and user each index of the row files is."""
    for file, column, key in (
        ("catalog", "product_id", "product"),
        ("queries", "query", "query"),
        ("users", "user_id", "user"),
    ):
        table = pa.table({column: indexes[key].ids})
        pq.write_table(table, folder / f"{file}.parquet", compression="zstd")


def log_summary(
    tables: InputTables, facts: LogFacts, indexes: Mapping[str, IdIndex], *, unused_rows: int
) -> LogSummary:
    """What the manifest says of the input."""
    return LogSummary(
        impressions=facts.impressions,
        purchases=int(indexes["user"].purchases_K.sum()),
        products=len(indexes["product"]),
        anonymous_impressions=facts.anonymous_impressions,
        anonymous_purchases=facts.anonymous_purchases,
        unused_impressions=unused_rows,
        clicks_counted_from="click_timestamp" if facts.has_click_times else "impression_timestamp",
        clicks_without_time=facts.clicks_without_time,
        absences=tables.absences,
        constructed=Origin.of(tables.root).constructed,
    )


def _partitions(keys: tuple[CounterKey, ...]) -> set[str]:
    return {PARTITION_OF_KEY[key] for key in keys}


def _compute(parts: _Parts, config: FeatureConfig, *, threads: int, report: Progress) -> dict[str, Transform]:
    """Second pass: counters and histories, bucket by bucket; returns the counters' transforms."""

    def compute(task: tuple[str, int]) -> dict[str, ExactMoments]:
        name, bucket = task
        partition = parts.partitions[name]
        first, last = partition.keys(bucket)
        history = config.history if name == "user" else None
        if history:
            parts.events.link(first, last)
        moments: dict[str, ExactMoments] = {}
        columns = partition.read(bucket)
        if columns is None:
            return moments
        order_N = key_time_order(columns["key"], columns["time_us"])
        if history:
            offsets_N2 = parts.events.offsets(
                columns["key"],
                columns["time_us"],
                first_user=first,
                last_user=last,
                window_us=history.window_days * DAY_US,
                order_N=order_N,
            )
            partition.write_result("history", bucket, offsets_N2)
        for counter in parts.counters:
            if counter.partition == name:
                moments |= counter.count(bucket, columns, order_N=order_N)
        partition.discard(bucket)
        return moments

    tasks = [(name, bucket) for name, buckets in parts.partitions.items() for bucket in range(buckets.count)]
    total = {name: ExactMoments() for counter in parts.counters for name in counter.counts.names}
    with ThreadPoolExecutor(threads) as pool:
        for done, moments in enumerate(pool.map(compute, tasks), start=1):
            merge_moments(total, moments)
            report("counting", done, len(tasks))
    parts.events.finish()
    for counter in parts.counters:
        without = parts.log.tally.train_without.get(counter.partition, 0)
        merge_moments(total, counter.count_absent(without))
    return counter_transforms(total)


def _write(
    parts: _Parts,
    folder: Path,
    config: FeatureConfig,
    *,
    transforms: dict[str, Transform],
    report: Progress,
) -> Manifest:
    """Third pass: write the vocabularies and the rows; returns the manifest without its checksums."""
    fitted = FittedColumns.of(parts.dense, parts.sparse, counter_transforms=transforms)
    fitted.write_vocabularies(folder)
    tally = parts.log.tally
    writers = {name: SplitWriter(folder, name) for name in CODE_OF_SPLIT}
    blocks = [counter.block(transforms) for counter in parts.counters]
    assembler = RowAssembler(
        tally,
        dense=parts.dense,
        counters=blocks,
        sparse=fitted.sparse_rows,
        offset_dtype=parts.events.offset_dtype,
    )
    history = parts.partitions["user"].results("history", columns=2, dtype=parts.events.offset_dtype)
    counted = [(counter.partition, counter.reader()) for counter in parts.counters]
    for number, batch in enumerate(parts.log.batches(), start=1):
        order = {
            name: buckets.order(batch.column(name).to_numpy()) for name, buckets in parts.partitions.items()
        }
        rows, oov = assembler.rows(
            batch,
            offsets_N2=history.next(order["user"]),
            counts=[reader.next(order[name]) for name, reader in counted],
        )
        split_N = batch.column("split").to_numpy()
        for name, code in CODE_OF_SPLIT.items():
            of_split_N = split_N == code
            if of_split_N.all():
                writers[name].append(rows, oov)
            elif of_split_N.any():
                part = rows.filter(pa.array(of_split_N))
                writers[name].append(part, {key: flags[of_split_N] for key, flags in oov.items()})
        report("writing rows", number, parts.log.count)
    return manifest_of(
        config,
        fitted,
        dense_names=assembler.dense_names,
        tally=tally,
        users=parts.users,
        events=parts.events.events,
        totals={name: writer.finish() for name, writer in writers.items()},
        summary=parts.summary,
    )


def manifest_of(
    config: FeatureConfig,
    fitted: FittedColumns,
    *,
    dense_names: tuple[str, ...],
    tally: Tally,
    users: int,
    events: int,
    totals: Mapping[str, SplitTotals],
    summary: LogSummary,
) -> Manifest:
    """The manifest without its checksums, whichever engine did the work."""
    return Manifest(
        format=1 if offset_dtype(events) == np.int32 else 2,
        config=config,
        dense_columns=dense_names,
        sparse_columns=tuple(
            SparseSummary(name=vocabulary.name, rows=vocabulary.rows, oov_rows=vocabulary.oov_rows)
            for vocabulary in fitted.vocabularies
        ),
        num_products=len(tally.train_impressions_P),
        num_queries=len(tally.train_impressions_Q),
        num_users=users,
        splits={name: total.summary() for name, total in totals.items()},
        transforms=fitted.transforms,
        counter_prior_ctr=tally.train_ctr if config.counters else None,
        oov_share={name: total.oov_share for name, total in totals.items()},
        missing_share={name: total.missing_share for name, total in totals.items()},
        empty_history_share={name: total.empty_history_share for name, total in totals.items()},
        events=events,
        labels=tally.labels,
        checksums={},
        data=summary,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
