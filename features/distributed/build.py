"""From four tables to a feature set by a distributed engine: the same files as on one machine, bit for bit.

1. Count: the distinct ids of the log and their rows, a piece of a file in each task. The driver numbers them.
2. Shuffle: rows are encoded and travel to the bucket of their user, query and product, where the kernels find
   histories and count; the last shuffle stores them in time order. Four shuffles of rows, no join.
3. Learn: vocabularies, means, the prior CTR from the training window, over whole batches of the stored log.
4. Add up: the moments of the counters, in integers, hence in any order.
5. Write: one row file in each task. The driver writes ids, vocabularies, purchases and the manifest.

Input, output and scratch lie on a disk that driver and tasks share. Shapes: K keys.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.artifacts import atomic_folder, atomic_write_json, checksums_of, refuse_to_replace_input
from features.columns.counters import counter_transforms
from features.distributed.engine import Engine
from features.distributed.passes import (
    LEARNT,
    NOTES,
    AddingUp,
    Learning,
    Learnt,
    Ranges,
    Writing,
    part_files,
)
from features.distributed.reading import COUNTS, FACTS, HOUR, Counting, Encoding, pieces_of, write_id_maps
from features.distributed.routing import KeyRoutes
from features.distributed.stages import Splitting, TimeRoutes, shuffles
from features.distributed.stored_log import StoredLog
from features.feature_set import FeatureSet, Manifest
from features.inputs.table_specs import TableName
from features.inputs.tables import InputTables
from features.offline.build import check_names, is_feature_set, log_summary, manifest_of, write_ids
from features.offline.catalog_reader import CatalogReader
from features.offline.fitted_columns import DenseColumn, FittedColumns, SparseColumn
from features.offline.history import EventWriter
from features.offline.key_counters import PARTITION_OF_KEY, KeyCounts, merge_moments
from features.offline.log_checks import (
    REQUIRED_OF_IMPRESSIONS,
    LogError,
    check_columns,
    check_impressions,
    check_products_are_known,
    check_purchases,
    too_large,
)
from features.offline.log_reader import IdIndex, LogFacts, no_ids, own_sparse
from features.offline.splits import CODE_OF_SPLIT, TimeCut
from features.offline.time_ordered_log import LabelRule
from features.progress import Progress, silent
from features.schema import FeatureConfig

#: Rows of a bucket, about.
_BUCKET_ROWS = 125_000
#: More buckets than tasks at a time even out what an engine's hashing puts together.
_BUCKETS_PER_TASK = 4
#: A key with more rows has a bucket for each slice of time.
HOT_ROWS = 2_000_000
#: For the catalogue, which the driver reads.
_DRIVER_MEMORY = "500MB"


def build_distributed(
    data: Path,
    out: Path,
    config: FeatureConfig,
    engine: Engine,
    *,
    buckets: int | None = None,
    hot_rows: int = HOT_ROWS,
    progress: Progress = silent,
) -> Manifest:
    """Write the feature set of `data` to the folder `out` as `features.offline.build.build` does.

    Args:
        buckets: of each key; by default what gives each about `_BUCKET_ROWS` rows. They change no number.
        hot_rows: keys with more impressions are cut in slices of time. Users are not where each is split by
            their own time. It changes no number.

    Raises:
        ValueError, FileExistsError: as `build`.
    """
    refuse_to_replace_input(out, data)
    check_names(config)
    tables = InputTables.open(data.absolute())  # tasks may run in another folder
    with atomic_folder(out, ours=is_feature_set) as folder:
        scratch = folder.resolve() / "scratch"
        (scratch / "events").mkdir(parents=True)
        (scratch / "log").mkdir()
        try:
            manifest = _Build(
                tables, folder.resolve(), scratch, config, engine, buckets=buckets, hot_rows=hot_rows
            ).run(progress)
        except duckdb.Error as error:
            raise LogError(f"{data}: the catalogue cannot be read: {error}") from error
        shutil.rmtree(scratch)
        checksums = manifest.checksums
        others = sorted(
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and path.relative_to(folder).as_posix() not in checksums
        )
        checksums = dict(sorted({**checksums, **checksums_of(folder, others)}.items()))
        manifest = manifest.model_copy(update={"checksums": checksums})
        atomic_write_json(folder / "manifest.json", manifest.model_dump(mode="json"))
    return FeatureSet.open(out, verify=False).manifest


@dataclass(frozen=True)
class _CountedLog:
    """What the first pass says; a `LogIds` for dense and sparse columns."""

    tables: InputTables
    facts: LogFacts
    indexes: Mapping[str, IdIndex]
    #: Hours since 1970 with impressions, in rising order, and how many.
    hours: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
    columns: Mapping[tuple[str, bool], pa.Array]

    def product_column(self, column: str, *, as_number: bool) -> pa.Array:
        """One column of the catalogue in `product_index` order."""
        return self.columns[column, as_number]


class _Build:
    """One build: its folders, its engine, and its passes one after the other."""

    def __init__(
        self,
        tables: InputTables,
        folder: Path,
        scratch: Path,
        config: FeatureConfig,
        engine: Engine,
        *,
        buckets: int | None,
        hot_rows: int,
    ) -> None:
        logs: list[TableName] = ["impressions"]
        if tables.has_purchases:
            logs.append("purchases")
        rows = sum(tables.rows(name) for name in logs)
        self._buckets = buckets or max(_BUCKETS_PER_TASK * engine.parallelism, -(-rows // _BUCKET_ROWS))
        self._tables, self._config, self._engine = tables, config, engine
        self._folder, self._scratch, self._hot_rows = folder, scratch, hot_rows
        self._pieces = pieces_of(tables, logs)

    def run(self, report: Progress) -> Manifest:
        """All passes; the manifest has the checksums of the row files."""
        log = self._count()
        config, indexes = self._config, log.indexes
        write_ids(self._folder, indexes)
        dense = tuple(DenseColumn(feature, log) for feature in config.dense)
        sparse = tuple(SparseColumn(feature, log) for feature in config.sparse)
        purchases_U = indexes["user"].purchases_K
        events = int(purchases_U.sum()) if config.history else 0
        counts = tuple(
            KeyCounts(key, config.counters, products=len(indexes["product"]))
            for key in (config.counters.keys if config.counters else ())
            if config.counters
        )
        stored = self._shuffle(log, counts, events=events)
        report("putting the purchases together", 0, 1)
        EventWriter(
            self._folder / "history",
            _events(self._scratch / "events") if config.history else iter(()),
            purchases_U=purchases_U if config.history else np.zeros_like(purchases_U),
        ).finish()
        report("putting the purchases together", 1, 1)

        learnt = self._learn(log, stored, dense, sparse)
        learnt.tally.check(config.split)
        for column, moments in zip(dense, zip(*learnt.moments, strict=True), strict=True):
            for part in moments:
                column.merge(part)
        for number, of_ids in enumerate(sparse):
            if f"sparse:{number}" in learnt.counts:
                of_ids.add(*learnt.counts[f"sparse:{number}"])
        adding = AddingUp(stored, Ranges(stored.batches), counts, learnt.tally.train_ctr)
        total = AddingUp.together(self._engine.run("adding up", len(adding.ranges), adding, NOTES, ()))
        for count in counts:
            without = learnt.tally.train_without.get(PARTITION_OF_KEY[count.key], 0)
            merge_moments(total, count.absent_moments(without, prior_ctr=learnt.tally.train_ctr))
        transforms = counter_transforms({name: total[name] for count in counts for name in count.names})
        fitted = FittedColumns.of(dense, sparse, counter_transforms=transforms)
        fitted.write_vocabularies(self._folder)
        for split in CODE_OF_SPLIT:
            (self._folder / split).mkdir()
        writing = Writing(
            stored,
            part_files(learnt.rows_BS),
            counts,
            learnt.tally,
            dense,
            fitted.sparse_rows,
            transforms,
            learnt.tally.train_ctr,
            self._folder,
            self._scratch,
        )
        found = self._engine.run("writing rows", len(writing.files), writing, NOTES, ())
        totals, checksums = Writing.together(found, writing.files)
        manifest = manifest_of(
            config,
            fitted,
            dense_names=writing.assembler.dense_names,
            tally=learnt.tally,
            users=len(indexes["user"]),
            events=events,
            totals=totals,
            summary=log_summary(log.tables, log.facts, indexes, unused_rows=learnt.tally.unused_rows),
        )
        return manifest.model_copy(update={"checksums": checksums})

    def _count(self) -> _CountedLog:
        """First pass: ids and facts, and everything that is refused."""
        tables, config = self._tables, self._config
        # Whether there are queries at all is not known before their count.
        check_columns(replace(tables, has_queries=True), config)
        with CatalogReader(
            tables, threads=1, memory_limit=_DRIVER_MEMORY, spill=self._scratch / "spill"
        ) as catalog:
            for feature in config.dense:
                if feature.source == "products":
                    catalog.check_sizes(feature)
            catalog.number_products()
            products = catalog.product_ids()
            wanted = {
                (feature.column, feature in config.dense)
                for feature in config.features
                if feature.source == "products"
            }
            columns = {
                (column, as_number): catalog.product_column(column, as_number=as_number)
                for column, as_number in sorted(wanted)
            }
        counting = Counting(tables, config, self._pieces, self._buckets)
        found = self._engine.run("counting ids", len(self._pieces), counting, COUNTS, counting.stages)
        is_fact = pc.equal(found.column("name"), FACTS)
        notes = [json.loads(text) for text in found.filter(is_fact).column("note").to_pylist()]
        counts = found.filter(pc.invert(is_fact))
        names = ["user", "query", *(f"id:{feature.column}" for feature in own_sparse(config))]
        indexes = {name: _index(counts, name) for name in names}
        if not tables.has_queries or not len(indexes["query"]):
            tables = replace(tables, has_queries=False)
            indexes["query"] = no_ids()
        check_columns(tables, config)
        self._tables = tables
        facts = self._facts(notes)
        indexes["product"] = self._products(products, _index(counts, "product"))
        hours = _index(counts, HOUR)
        write_id_maps(self._scratch / "ids", {name: index.ids for name, index in indexes.items()})
        return _CountedLog(tables, facts, indexes, (hours.ids.to_numpy(), hours.impressions_K), columns)

    def _facts(self, notes: Sequence[Mapping[str, Any]]) -> LogFacts:
        shown = [note for note in notes if note["table"] == "impressions"]
        bought = [note for note in notes if note["table"] == "purchases"]

        def total(of: Sequence[Mapping[str, Any]], name: str) -> int:
            return sum(int(note[name]) for note in of)

        for number, value, file, row in (found for note in shown for found in note["too_large"]):
            raise too_large(self._config.dense[number], value, file=file, row=row)
        check_impressions(
            self._tables,
            missing={name: sum(note["missing"][name] for note in shown) for name in REQUIRED_OF_IMPRESSIONS},
            not_a_label=total(shown, "not_a_label"),
            clicked_before_shown=total(shown, "clicked_before_shown"),
        )
        check_purchases(self._tables, lost=total(bought, "lost"))
        return LogFacts(
            total(shown, "rows"),
            anonymous_impressions=total(shown, "anonymous"),
            anonymous_purchases=total(bought, "anonymous"),
            first_us=min(note["first_us"] for note in shown),
            last_us=max(note["last_us"] for note in shown),
            has_click_times="click_timestamp" in self._tables.columns("impressions"),
            clicks_without_time=total(shown, "clicks_without_time"),
        )

    def _products(self, ids: pa.Array, counted: IdIndex) -> IdIndex:
        """The catalogue with the impressions of each product.

        Raises:
            LogError: the logs name a product that it lacks.
        """
        place = pc.index_in(counted.ids, value_set=ids)
        unknown = place.is_null().to_numpy(zero_copy_only=False)
        logs: dict[TableName, npt.NDArray[np.int64]] = {
            "impressions": counted.impressions_K,
            "purchases": counted.purchases_K,
        }
        for table, rows_K in logs.items():
            lost = np.flatnonzero(unknown & (rows_K > 0))
            if len(lost):
                example = pc.min(counted.ids.take(pa.array(lost))).as_py()
                check_products_are_known(self._tables, table, rows=int(rows_K[lost].sum()), example=example)
        shown_P = np.zeros(len(ids), np.int64)
        shown_P[place.to_numpy(zero_copy_only=False).astype(np.int64)] = counted.impressions_K
        return IdIndex(ids, shown_P, np.zeros(len(ids), np.int64))

    def _shuffle(self, log: _CountedLog, counts: tuple[KeyCounts, ...], *, events: int) -> StoredLog:
        """Second pass: encode, count, and store in time order."""
        config, facts, indexes = self._config, log.facts, log.indexes
        split = config.split
        users = indexes["user"]
        weights = {"user": users.impressions_K + users.purchases_K} | {
            name: indexes[name].impressions_K for name in ("product", "query")
        }
        routes = {
            name: KeyRoutes.of(
                weight_K,
                buckets=self._buckets,
                hot_rows=self._hot_rows,
                first_us=facts.first_us,
                last_us=facts.last_us,
                window_days=max(config.counters.windows_days) if config.counters else 1,
            )
            for name, weight_K in weights.items()
        }
        by_time = None
        if split.method == "global":
            by_time = TimeCut.of(split, first_us=facts.first_us, last_us=facts.last_us)
        else:
            routes["user"] = routes["user"].whole_keys()
        pieces = tuple(piece for piece in self._pieces if piece.table == "impressions" or config.history)
        encoding = Encoding(
            log.tables, config, pieces, self._scratch / "ids", routes["user"], facts.has_click_times
        )
        user_start = np.concatenate([[0], np.cumsum(users.purchases_K)])
        np.save(self._scratch / "user_start.npy", user_start)
        stages, stored = shuffles(
            encoding.schema,
            config=config,
            splitting=Splitting(split, LabelRule.of(config, facts), by_time),
            counts=counts,
            routes=routes,
            times=TimeRoutes.of(*log.hours, buckets=self._buckets),
            user_start=self._scratch / "user_start.npy",
            events=events,
            scratch=self._scratch,
        )
        found = self._engine.run("counting", len(pieces), encoding, encoding.schema, stages)
        rows = int(pc.sum(found.column("rows")).as_py())
        assert rows == facts.impressions, "impressions were lost on their way"
        return stored

    def _learn(
        self,
        log: _CountedLog,
        stored: StoredLog,
        dense: tuple[DenseColumn, ...],
        sparse: tuple[SparseColumn, ...],
    ) -> Learnt:
        """Third pass."""
        sizes = {"products": len(log.indexes["product"]), "queries": len(log.indexes["query"])}
        learning = Learning(
            stored,
            Ranges(stored.batches),
            dense,
            tuple(column.codes for column in sparse),
            reducers=self._buckets,
            **sizes,
        )
        found = self._engine.run("learning", len(learning.ranges), learning, LEARNT, learning.stages)
        return Learnt.of(found, **sizes)


def _index(counts: pa.Table, name: str) -> IdIndex:
    """Distinct ids of one index in sorted order."""
    of_name = counts.filter(pc.equal(counts.column("name"), name))
    text = of_name.column("number").null_count == len(of_name) and len(of_name) > 0
    of_name = of_name.sort_by("text" if text else "number")
    return IdIndex(
        of_name.column("text" if text else "number").combine_chunks(),
        of_name.column("shown").to_numpy(),
        of_name.column("bought").to_numpy(),
    )


def _events(folder: Path) -> Iterator[pa.RecordBatch]:
    """All purchases in the order of the users."""
    for path in sorted(folder.glob("*.arrow")):
        with pa.OSFile(str(path)) as file:
            reader = pa.ipc.open_file(file)
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)
