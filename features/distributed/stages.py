"""What is computed in a bucket: histories, labels and counters, each a function from Arrow to Arrow.

A row travels with its results: to the bucket of its user, of its query, of its product, and of its time,
where it is stored. Nothing is ever joined back. Shapes: N rows of a bucket, U users, E purchases.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.artifacts import replaced_file
from features.columns.clock import DAY_US
from features.columns.kernels import history_offsets, next_same_product
from features.distributed.engine import BUCKET, Stage
from features.distributed.reading import HOUR_US
from features.distributed.routing import KIND, OWN, PURCHASE, KeyRoutes
from features.distributed.stored_log import StoredLog
from features.offline.history import EVENT_SCHEMA, offset_dtype
from features.offline.key_counters import PARTITION_OF_KEY, KeyCounts
from features.offline.log_reader import AFTER_ALL, NO_ID
from features.offline.splits import Codes, Int64s, PerUserCut, TimeCut
from features.offline.time_ordered_log import LabelRule
from features.schema import FeatureConfig, SplitConfig

#: What a bucket of time reports: its number and how many rows it stored.
STORED = pa.schema([(BUCKET, pa.int32()), ("rows", pa.int64())])

#: Columns of a row by which it is counted, and by which labels are told from clicks as logged.
LABELLED: tuple[tuple[str, pa.DataType], ...] = (
    ("split", pa.int8()),
    ("logged", pa.bool_()),
    ("open", pa.bool_()),
)


def count_names(key: str, columns: int) -> list[str]:
    """The columns of a key's raw counts on their way."""
    return [f"count:{key}:{number}" for number in range(columns)]


@dataclass(frozen=True)
class TimeRoutes:
    """Buckets of consecutive hours with about equal traffic; the last shuffle brings rows into time order.

    Attributes:
        start_hour_B: first hour of each bucket.
        start_B: rows of the log before each bucket, and at the end all of them.
    """

    start_hour_B: Int64s
    start_B: Int64s

    @classmethod
    def of(cls, hour_H: Int64s, rows_H: Int64s, *, buckets: int) -> "TimeRoutes":
        """Buckets of the hours of a log, in rising order, with the rows of each; none is empty."""
        before_H = np.cumsum(rows_H) - rows_H
        first = np.unique(before_H * buckets // int(rows_H.sum()), return_index=True)[1]
        return cls(hour_H[first], np.append(before_H[first], rows_H.sum()))

    def route(self, rows: pa.Table, key: str) -> pa.Table:
        """The impressions with their `BUCKET`; `key` is their time."""
        hour_N = rows.column(key).to_numpy() // HOUR_US
        bucket_N = np.searchsorted(self.start_hour_B, hour_N, side="right") - 1
        place = rows.schema.get_field_index(BUCKET)
        return rows.set_column(place, BUCKET, pa.array(bucket_N.astype(np.int32)))


Routes = KeyRoutes | TimeRoutes


@dataclass(frozen=True)
class Splitting:
    """Split, label and openness of impressions; one of the two cuts is given."""

    config: SplitConfig
    rule: LabelRule
    by_time: TimeCut | None

    def label(self, rows: Mapping[str, npt.NDArray[Any]], user_N: npt.NDArray[np.int32]) -> dict[str, Any]:
        """`split`, `clicked`, `logged` and `open` of rows that hold all impressions of each user, by time.

        Args:
            user_N: numbered from 0 in this bucket, NO_ID for nobody.
        """
        time_us_N, click_us_N = rows["time_us"], rows["click_us"]
        if self.by_time is not None:
            split_N = self.by_time.codes(time_us_N)
            last_us_N = self.by_time.last_click_us(split_N)
        else:
            split_N, last_us_N = self._by_user(time_us_N, user_N)
        label_N, open_N = self.rule.labels(split_N, last_us_N, time_us_N=time_us_N, click_us_N=click_us_N)
        return {
            "split": split_N,
            "clicked": label_N.astype(np.int8),
            "logged": rows["clicked"] == 1,
            "open": open_N,
        }

    def _by_user(self, time_us_N: Int64s, user_N: npt.NDArray[np.int32]) -> tuple[Codes, Int64s]:
        users = int(user_N.max(initial=NO_ID)) + 1
        cut = PerUserCut(self.config, np.bincount(user_N[user_N >= 0], minlength=users))
        rank_N = cut.ranks(user_N)
        split_N = cut.codes_of_ranks(rank_N, user_N)

        def times(rank_U: Int64s) -> Int64s:
            time_us_U = np.full(len(rank_U), AFTER_ALL, dtype=np.int64)
            found = np.flatnonzero((user_N >= 0) & (rank_N == rank_U[user_N]))
            time_us_U[user_N[found]] = time_us_N[found]
            return time_us_U

        last_us_N = cut.last_click_us(
            split_N,
            user_N,
            validation_us_U=times(cut.validation_from_U),
            test_us_U=times(cut.test_from_U),
        )
        return split_N, last_us_N


@dataclass(frozen=True)
class UserBucket:
    """Labels, histories and counters of some users' impressions; writes their purchases to the shared disk.

    Attributes:
        user_start: the file that says where each user's purchases start among all.
        events: how many purchases there are.
        folder: for the purchases of each run of users.
    """

    config: FeatureConfig
    splitting: Splitting
    counts: tuple[KeyCounts, ...]
    user_start: Path
    events: int
    folder: Path
    onward: Routes
    onward_key: str
    schema: pa.Schema

    def __call__(self, rows: pa.Table) -> pa.Table:
        """`rows` are impressions, own and halo, and purchases of a range of users."""
        bought_N = pc.equal(rows.column(KIND), PURCHASE)
        purchases = rows.filter(bought_N)
        shown = rows.filter(pc.invert(bought_N)).drop_columns(["tie"])
        if self.config.split.method == "per_user":
            shown = shown.sort_by([("time_us", "ascending"), ("impression_id", "ascending")])
        columns = _numpy(shown, ("time_us", "click_us", "clicked", "user"))
        known = columns["user"] >= 0
        of_events_E = purchases.column("user").to_numpy()
        first = min(
            int(columns["user"][known].min(initial=2**31 - 1)), int(of_events_E.min(initial=2**31 - 1))
        )
        user_N = np.where(known, columns["user"] - first, NO_ID).astype(np.int32)
        results = self.splitting.label(columns, user_N)
        offsets_N2 = np.zeros((len(shown), 2), offset_dtype(self.events))
        if self.config.history is not None:
            users = 1 + max(int(user_N.max(initial=0)), int(of_events_E.max(initial=first)) - first)
            offsets_N2[known] = self._histories(
                purchases,
                first=first,
                users=users if known.any() or len(purchases) else 0,
                user_N=user_N[known],
                time_us_N=columns["time_us"][known],
            )
        results |= {"history_start": offsets_N2[:, 0], "history_end": offsets_N2[:, 1]}
        shown = _with_columns(shown, results)
        return _counted(shown, self.counts, key="user", onward=self.onward, onward_key=self.onward_key).cast(
            self.schema
        )

    def _histories(
        self,
        purchases: pa.Table,
        *,
        first: int,
        users: int,
        user_N: npt.NDArray[np.int32],
        time_us_N: Int64s,
    ) -> Int64s:
        """[N, 2]: offsets among all purchases of the log."""
        history = self.config.history
        assert history is not None
        order = [(name, "ascending") for name in ("user", "time_us", "tie", "product")]
        events = purchases.sort_by(order)
        columns = _numpy(events, ("user", "time_us", "product"))
        user_E = (columns["user"] - first).astype(np.int64)
        own_U = np.bincount(user_E, minlength=users)
        start_U = np.cumsum(own_U) - own_U
        all_U = np.load(self.user_start, mmap_mode="r")[first : first + users]
        # From a place among the bucket's purchases to the place among all.
        shift_U = np.asarray(all_U, np.int64) - start_U
        if len(events):  # each slice of a hot user writes the same file
            self._write_events(columns, user_E, shift_U)
        offsets = history_offsets(
            user_N, time_us_N, user_E, columns["time_us"], window=history.window_days * DAY_US
        )
        if not len(events):
            return np.stack([shift_U[user_N]] * 2, axis=1)
        places_N2: Int64s = np.stack(offsets, axis=1).astype(np.int64)
        return places_N2 + shift_U[user_N][:, None]

    def _write_events(self, columns: Mapping[str, npt.NDArray[Any]], user_E: Int64s, shift_U: Int64s) -> None:
        """One file for each run of consecutive purchases, named by where it starts among all."""
        place_E = np.arange(len(user_E)) + shift_U[user_E]
        next_E = next_same_product(user_E, columns["product"])
        last_E = next_E == len(user_E)
        next_E = np.where(last_E, self.events, place_E[np.where(last_E, 0, next_E)])
        events = pa.table([columns["product"], columns["time_us"], next_E], schema=EVENT_SCHEMA)
        starts = [0, *(np.flatnonzero(np.diff(place_E) != 1) + 1).tolist(), len(place_E)]
        for start, end in itertools.pairwise(starts):
            path = self.folder / f"{int(place_E[start]):012d}.arrow"
            with replaced_file(path) as temporary, pa.ipc.new_file(str(temporary), EVENT_SCHEMA) as writer:
                writer.write_table(events.slice(start, end - start))


@dataclass(frozen=True)
class CounterBucket:
    """Counters of the impressions of some queries, or of some products."""

    key: str
    counts: tuple[KeyCounts, ...]
    onward: Routes
    onward_key: str
    schema: pa.Schema

    def __call__(self, rows: pa.Table) -> pa.Table:
        """`rows` are impressions, own and halo, of a range of keys."""
        counted = _counted(rows, self.counts, key=self.key, onward=self.onward, onward_key=self.onward_key)
        return counted.cast(self.schema)


@dataclass(frozen=True)
class StoreBucket:
    """Sorts the impressions of some hours and stores them."""

    log: StoredLog

    def __call__(self, rows: pa.Table) -> pa.Table:
        bucket = rows.column(BUCKET)[0].as_py()
        rows = rows.sort_by([("time_us", "ascending"), ("impression_id", "ascending")])
        self.log.store(bucket, rows.select(self.log.schema.names))
        return pa.table([[bucket], [len(rows)]], schema=STORED)


def shuffles(
    start: pa.Schema,
    *,
    config: FeatureConfig,
    splitting: Splitting,
    counts: Sequence[KeyCounts],
    routes: Mapping[str, KeyRoutes],
    times: TimeRoutes,
    user_start: Path,
    events: int,
    scratch: Path,
) -> tuple[tuple[Stage, ...], StoredLog]:
    """The shuffles of a build in their order, and the log that the last one stores.

    Args:
        start: of the rows that `Encoding` gives.
        routes: of user, and of query and product where they have counters.
        user_start: see `UserBucket`.
    """
    of_partition = {
        name: tuple(count for count in counts if PARTITION_OF_KEY[count.key] == name)
        for name in ("user", "query", "product")
    }
    order = ["user", *(name for name in ("query", "product") if of_partition[name])]
    onward: list[tuple[Routes, str]] = [*((routes[name], name) for name in order[1:]), (times, "time_us")]
    fields = [field for field in start if field.name != "tie"] + [pa.field(*pair) for pair in LABELLED]
    offset = pa.from_numpy_dtype(offset_dtype(events))
    fields += [pa.field(f"history_{end}", offset) for end in ("start", "end")]
    stages: list[Stage] = []
    for name, (route, key) in zip(order, onward, strict=True):
        fields += [
            pa.field(column, pa.int32())
            for count in of_partition[name]
            for column in count_names(count.key, count.columns)
        ]
        schema = pa.schema(fields)
        if name == "user":
            bucket = UserBucket(
                config=config,
                splitting=splitting,
                counts=of_partition[name],
                user_start=user_start,
                events=events,
                folder=scratch / "events",
                onward=route,
                onward_key=key,
                schema=schema,
            )
            stages.append(Stage(bucket, schema))
        else:
            counter = CounterBucket(name, of_partition[name], route, key, schema)
            stages.append(Stage(counter, schema))
    stored = pa.schema([field for field in fields if field.name not in (BUCKET, KIND)])
    log = StoredLog(scratch / "log", stored, times.start_B)
    return (*stages, Stage(StoreBucket(log), STORED)), log


def _counted(
    rows: pa.Table, counts: Sequence[KeyCounts], *, key: str, onward: Routes, onward_key: str
) -> pa.Table:
    """The bucket's own rows with their raw counts, 0 without the key, on their way to the next bucket."""
    columns = _numpy(rows, ("time_us", "click_us", "product", key))
    known = np.flatnonzero(columns[key] >= 0)
    of_key = {name: column[known] for name, column in columns.items()} | {"key": columns[key][known]}
    results: dict[str, Any] = {}
    for count in counts:
        count_CN = np.zeros((count.columns, len(rows)), np.int32)
        if len(known):
            both_TC, tile_of_row_N = count.count(of_key)
            count_CN[:, known] = both_TC.take(tile_of_row_N, axis=0).T
        results |= dict(zip(count_names(count.key, count.columns), count_CN, strict=True))
    own = _with_columns(rows, results).filter(pc.equal(rows.column(KIND), OWN))
    return onward.route(own, onward_key)


def _numpy(rows: pa.Table, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    return {name: rows.column(name).to_numpy() for name in names}


def _with_columns(rows: pa.Table, columns: Mapping[str, npt.NDArray[Any]]) -> pa.Table:
    for name, values in columns.items():
        place = rows.schema.get_field_index(name)
        array = pa.array(np.ascontiguousarray(values))
        rows = rows.append_column(name, array) if place < 0 else rows.set_column(place, name, array)
    return rows
