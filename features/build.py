"""From four tables to a feature set, point-in-time correct, in bounded memory.

DuckDB numbers the ids and hands out the impressions in time order; they are stored and scattered to buckets
of keys; the kernels count and find histories bucket by bucket; the rows are put together and written. What is
learnt from data (vocabularies, means, the prior CTR) comes from the training window alone.

Shapes: N impressions of a batch, P products, Q queries.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from features.buckets import Buckets
from features.columns import DenseColumn, SparseColumn
from features.counters import PARTITION_OF_KEY, KeyCounters, counter_transforms, merge_moments
from features.encoding import LogError, LogReader
from features.feature_set import FORMAT, FeatureSet, LogSummary, Manifest
from features.feature_set import SparseColumn as SparseSummary
from features.files import atomic_folder, atomic_write_json, sha256_of
from features.history import EventWriter
from features.row_files import SplitWriter, row_schema
from features.schema import FeatureConfig
from features.splits import (
    CODE_OF_SPLIT,
    DAY_US,
    NO_QUERY,
    TRAIN,
    UNUSED,
    PerUserCut,
    SplitError,
    TimeCut,
    query_frequency,
)
from features.tables import InputTables
from features.transforms import ExactMoments, Transform

#: Called with a stage, what is done and the total.
Progress = Callable[[str, int, int], None]

#: What the kernels need for one row of a bucket, measured; sets how many buckets a memory limit asks for.
_BUCKET_BYTES_PER_ROW = 256
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
    progress: Progress | None = None,
) -> Manifest:
    """Write the feature set of `data` to the folder `out`, which appears whole or not at all.

    Args:
        memory_limit: such as "2GB". Half is the engine's; a quarter bounds the buckets. Id lists come on top.
        buckets: of each key; by default as many as the memory limit asks for. They change no number.

    Raises:
        ValueError: tables, columns or rows that cannot be used, or a split that is empty or knows one class
            only. Says which and what to do.
    """
    tables = InputTables.open(data)
    memory_bytes = memory_limit_bytes(memory_limit)
    if buckets is None:
        rows = tables.rows("impressions") + (tables.rows("purchases") if tables.has_purchases else 0)
        buckets = -(-rows * _BUCKET_BYTES_PER_ROW * threads * 4 // memory_bytes)
    if not 1 <= buckets <= 1024:
        raise ValueError(
            f"{buckets} buckets; between 1 and 1024 work: change the buckets or the memory limit"
        )
    report = progress or _silent
    with atomic_folder(out) as folder:
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
                log = _read(reader, folder, scratch, buckets=buckets, report=report)
        except duckdb.Error as error:
            raise LogError(f"{data}: the engine stopped: {error}") from error
        transforms = _compute(log, config, threads=threads, report=report)
        manifest = _write_rows(log, folder, config, transforms=transforms, report=report)
        shutil.rmtree(scratch)
        manifest = manifest.model_copy(update={"checksums": _checksums(folder)})
        atomic_write_json(folder / "manifest.json", manifest.model_dump(mode="json"))
    return FeatureSet.open(out, verify=False).manifest


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


@dataclass
class _EncodedLog:
    """The log after reading: on disk in time order, scattered to buckets, with what the passes need of it."""

    path: Path
    batches: int
    partitions: dict[str, Buckets]
    events: EventWriter
    counters: dict[str, list[KeyCounters]]
    dense: list[DenseColumn]
    sparse: list[SparseColumn]
    train_impressions_P: npt.NDArray[np.int64]
    train_impressions_Q: npt.NDArray[np.int64]
    train_rows: int
    train_clicked: int
    users: int
    summary: LogSummary


def _read(reader: LogReader, folder: Path, scratch: Path, *, buckets: int, report: Progress) -> _EncodedLog:
    """First pass: store and scatter the impressions, learn from the training window."""
    config, indexes, facts = reader.config, reader.indexes, reader.facts
    _write_ids(folder, reader)
    users = indexes["user"]
    with_history = config.history is not None
    events = EventWriter(
        folder / "history",
        reader.purchases() if with_history else iter(()),
        purchases_U=users.purchases_K if with_history else np.zeros(len(users), dtype=np.int64),
    )
    weights = {"user": users.impressions_K + users.purchases_K}
    for key in config.counters.keys if config.counters else ():
        partition = PARTITION_OF_KEY[key]
        weights.setdefault(partition, indexes[partition].impressions_K)
    partitions = {
        name: Buckets(scratch / name, weight_K=weight_K, count=buckets) for name, weight_K in weights.items()
    }
    dense = [DenseColumn(feature, reader) for feature in config.dense]
    sparse = [SparseColumn(feature, reader) for feature in config.sparse]
    cut = _cut(reader)
    train_impressions_P = np.zeros(len(indexes["product"]), dtype=np.int64)
    train_impressions_Q = np.zeros(len(indexes["query"]), dtype=np.int64)
    rows_of_code = dict.fromkeys((*CODE_OF_SPLIT.values(), UNUSED), 0)
    train_clicked = batches = done = 0
    writer: pa.RecordBatchStreamWriter | None = None
    path = scratch / "log.arrow"
    for batch in reader.impressions():
        user_N, product_N, query_N, time_us_N = (
            batch.column(name).to_numpy() for name in ("user", "product", "query", "time_us")
        )
        split_N = cut.codes(user_N) if isinstance(cut, PerUserCut) else cut.codes(time_us_N)
        batch = batch.append_column("split", pa.array(split_N))
        if writer is None:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            writer = pa.ipc.new_stream(str(path), batch.schema, options=options)
        writer.write_batch(batch)
        times = {"time_us": time_us_N, "click_us": batch.column("click_us").to_numpy(), "split": split_N}
        for name, partition_buckets in partitions.items():
            key_N = batch.column(name).to_numpy()
            columns = {"key": key_N, **times}
            if name == "query":
                columns["product"] = product_N
            partition_buckets.append(key_N, columns)
        train_N = split_N == TRAIN
        for dense_column in dense:
            dense_column.observe(batch, train_N)
        for sparse_column in sparse:
            sparse_column.observe(batch, train_N)
        np.add.at(train_impressions_P, product_N[train_N], 1)
        np.add.at(train_impressions_Q, query_N[train_N & (query_N >= 0)], 1)
        train_clicked += int(batch.column("clicked").to_numpy()[train_N].sum(dtype=np.int64))
        for code in rows_of_code:
            rows_of_code[code] += int(np.count_nonzero(split_N == code))
        batches += 1
        done += len(batch)
        report("reading the log", done, facts.impressions)
    assert writer is not None
    writer.close()
    for partition_buckets in partitions.values():
        partition_buckets.finish()
    assert done == facts.impressions, "impressions were lost while ids were numbered"
    _check_splits(config, rows_of_code, train_clicked)
    train_rows = rows_of_code[TRAIN]
    counters: dict[str, list[KeyCounters]] = {name: [] for name in partitions}
    for key in config.counters.keys if config.counters else ():
        assert config.counters is not None
        partition = PARTITION_OF_KEY[key]
        counters[partition].append(
            KeyCounters(
                key,
                partitions[partition],
                config.counters,
                prior_ctr=train_clicked / train_rows,
                products=len(indexes["product"]),
            )
        )
    summary = LogSummary(
        impressions=facts.impressions,
        purchases=int(users.purchases_K.sum()),
        products=len(indexes["product"]),
        unused_impressions=rows_of_code[UNUSED],
        clicks_counted_from="click_timestamp" if facts.has_click_times else "impression_timestamp",
        clicks_without_time=facts.clicks_without_time,
        absences=reader.tables.absences,
    )
    return _EncodedLog(
        path=path,
        batches=batches,
        partitions=partitions,
        events=events,
        counters=counters,
        dense=dense,
        sparse=sparse,
        train_impressions_P=train_impressions_P,
        train_impressions_Q=train_impressions_Q,
        train_rows=train_rows,
        train_clicked=train_clicked,
        users=len(users),
        summary=summary,
    )


def _cut(reader: LogReader) -> TimeCut | PerUserCut:
    split, facts = reader.config.split, reader.facts
    if split.method == "per_user":
        return PerUserCut(split, reader.indexes["user"].impressions_K)
    return TimeCut.of(split, first_us=facts.first_us, last_us=facts.last_us)


def _check_splits(config: FeatureConfig, rows_of_code: dict[int, int], train_clicked: int) -> None:
    for name, code in CODE_OF_SPLIT.items():
        if not rows_of_code[code]:
            raise SplitError(f"the {name} split has no impressions; change [split], now {config.split}")
    if train_clicked in (0, rows_of_code[TRAIN]):
        raise SplitError(
            f"all {rows_of_code[TRAIN]:,} training impressions have clicked = {int(train_clicked > 0)}; "
            "a model needs both classes: check the column `clicked` or change [split]"
        )


def _write_ids(folder: Path, reader: LogReader) -> None:
    for file, column, key in (
        ("catalog", "product_id", "product"),
        ("queries", "query", "query"),
        ("users", "user_id", "user"),
    ):
        table = pa.table({column: reader.indexes[key].ids})
        pq.write_table(table, folder / f"{file}.parquet", compression="zstd")


def _compute(
    log: _EncodedLog, config: FeatureConfig, *, threads: int, report: Progress
) -> dict[str, Transform]:
    """Second pass: counters and histories, bucket by bucket; returns the counters' transforms."""

    def compute(task: tuple[str, int]) -> dict[str, ExactMoments]:
        name, bucket = task
        partition = log.partitions[name]
        first, last = partition.keys(bucket)
        if name == "user" and config.history:
            log.events.link(first, last)
        moments: dict[str, ExactMoments] = {}
        columns = partition.read(bucket)
        if columns is None:
            return moments
        if name == "user" and config.history:
            offsets_N2 = log.events.offsets(
                columns["key"],
                columns["time_us"],
                first_user=first,
                last_user=last,
                window_us=config.history.window_days * DAY_US,
            )
            partition.write_result("history", bucket, offsets_N2)
        for counter in log.counters[name]:
            moments |= counter.count(bucket, columns)
        partition.discard(bucket)
        return moments

    tasks = [
        (name, bucket) for name, partition in log.partitions.items() for bucket in range(partition.count)
    ]
    total: dict[str, ExactMoments] = {
        name: ExactMoments() for counters in log.counters.values() for key in counters for name in key.names
    }
    with ThreadPoolExecutor(threads) as pool:
        for done, moments in enumerate(pool.map(compute, tasks), start=1):
            merge_moments(total, moments)
            report("counting", done, len(tasks))
    without_query = log.train_rows - int(log.train_impressions_Q.sum())
    for counter in log.counters.get("query", ()):
        merge_moments(total, counter.count_absent(without_query))
    log.events.finish()
    return counter_transforms(total)


def _write_rows(
    log: _EncodedLog,
    folder: Path,
    config: FeatureConfig,
    *,
    transforms: dict[str, Transform],
    report: Progress,
) -> Manifest:
    """Third pass: put the rows together and write the splits, vocabularies and the manifest's content."""
    fitted = {column.feature.name: column.fit() for column in log.dense}
    vocabularies = [column.fit() for column in log.sparse]
    (folder / "vocabularies").mkdir()
    for vocabulary in vocabularies:
        path = folder / "vocabularies" / f"{vocabulary.name}.parquet"
        pq.write_table(vocabulary.table(), path, compression="zstd")
    counters = [key for keys in log.counters.values() for key in keys]
    if config.counters:
        counters.sort(key=lambda counter: config.counters.keys.index(counter.key))  # type: ignore[union-attr]
    dense_names = tuple(name for column in log.dense for name in column.names)
    dense_names += tuple(name for counter in counters for name in counter.names)
    sparse_names = tuple(vocabulary.name for vocabulary in vocabularies)
    readers = [counter.reader() for counter in counters]
    history = log.partitions["user"].results("history", columns=2)
    frequency_Q = np.append(query_frequency(log.train_impressions_Q), np.int8(NO_QUERY))
    seen_P = log.train_impressions_P > 0
    writers: dict[str, SplitWriter] = {}
    schema: pa.Schema | None = None
    try:
        for number, batch in enumerate(_batches(log.path), start=1):
            product_N, query_N, user_N = (
                batch.column(name).to_numpy() for name in ("product", "query", "user")
            )
            keys = {"product": product_N, "query": query_N, "user": user_N}
            offsets_N2 = history.next(user_N)
            start_N, end_N = np.ascontiguousarray(offsets_N2[:, 0]), np.ascontiguousarray(offsets_N2[:, 1])
            columns: dict[str, pa.Array | npt.NDArray[np.generic]] = {
                "impression_id": batch.column("impression_id"),
                "timestamp": batch.column("time_us").cast(pa.timestamp("us", tz="UTC")),
                "clicked": batch.column("clicked"),
                "product_index": product_N,
                "query_index": query_N,
                "user_index": user_N,
                "history_start": start_N,
                "history_end": end_N,
                "slice_has_purchases": end_N > start_N,
                "slice_seen_product": seen_P[product_N],
                "slice_query_frequency": frequency_Q[query_N],
            }
            for dense in log.dense:
                columns |= dense.columns(batch)
            for counter, counts in zip(counters, readers, strict=True):
                count_NC = counts.next(keys[PARTITION_OF_KEY[counter.key]])
                columns |= counter.columns(count_NC, transforms)
            oov: dict[str, npt.NDArray[np.bool_]] = {}
            for column, vocabulary in zip(log.sparse, vocabularies, strict=True):
                row_N = column.rows(batch)
                columns[vocabulary.name] = row_N
                oov[vocabulary.name] = vocabulary.is_oov(row_N)
            if schema is None:
                kind = batch.schema.field("impression_id").type
                schema = row_schema(kind, dense=dense_names, sparse=sparse_names)
                writers = {name: SplitWriter(folder, name, schema) for name in CODE_OF_SPLIT}
            rows = pa.RecordBatch.from_arrays(
                [pa.array(columns[field.name], type=field.type) for field in schema], schema=schema
            )
            split_N = batch.column("split").to_numpy()
            for name, code in CODE_OF_SPLIT.items():
                of_split_N = split_N == code
                if of_split_N.all():
                    writers[name].append(rows, oov)
                elif of_split_N.any():
                    part = rows.filter(pa.array(of_split_N))
                    writers[name].append(part, {key: flags[of_split_N] for key, flags in oov.items()})
            report("writing rows", number, log.batches)
    finally:
        for counts in (*readers, history):
            counts.close()
    summaries = {name: writer.finish() for name, writer in writers.items()}
    return Manifest(
        format=FORMAT,
        config=config,
        dense_columns=dense_names,
        sparse_columns=tuple(
            SparseSummary(name=vocabulary.name, rows=vocabulary.rows, oov_rows=vocabulary.oov_rows)
            for vocabulary in vocabularies
        ),
        num_products=len(log.train_impressions_P),
        num_queries=len(log.train_impressions_Q),
        num_users=log.users,
        splits=summaries,
        transforms=fitted | transforms,
        counter_prior_ctr=log.train_clicked / log.train_rows if config.counters else None,
        oov_share={name: writer.oov_share for name, writer in writers.items()},
        missing_share={name: writer.missing_share for name, writer in writers.items()},
        empty_history_share={name: writer.empty_history_share for name, writer in writers.items()},
        events=log.events.events,
        checksums={},
        data=log.summary,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(path)) as file:
        yield from pa.ipc.open_stream(file)


def _checksums(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in paths}


def _silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""
