"""The log on disk in time order, scattered to buckets, with what the training window adds up to.

Shapes: N impressions of a batch, P products, Q queries.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.columns.kernels import NO_CLICK
from features.feature_set import LabelSummary
from features.offline.buckets import Buckets
from features.offline.log_reader import NO_ID, LogFacts, LogReader
from features.offline.splits import (
    CODE_OF_SPLIT,
    TEST,
    TRAIN,
    UNUSED,
    Codes,
    Int64s,
    PerUserCut,
    SplitError,
    TimeCut,
)
from features.progress import Progress
from features.schema import FeatureConfig, SplitConfig


class Observer(Protocol):
    """Learns from the training rows of each batch, in time order."""

    def observe(self, batch: pa.RecordBatch, train_N: npt.NDArray[np.bool_]) -> None: ...


class Tally:
    """Rows and clicks of each split, and training impressions of each product, query and of nobody."""

    def __init__(self, *, products: int, queries: int) -> None:
        self.labels = {name: LabelSummary() for name in CODE_OF_SPLIT}
        self.train_impressions_P = np.zeros(products, dtype=np.int64)
        self.train_impressions_Q = np.zeros(queries, dtype=np.int64)
        self.train_clicked = 0
        self.train_without_user = 0
        self._rows = dict.fromkeys((*CODE_OF_SPLIT.values(), UNUSED), 0)

    def observe(self, batch: pa.RecordBatch, train_N: npt.NDArray[np.bool_]) -> None:
        """Take in one batch that has its `split`."""
        product_N, query_N = batch.column("product").to_numpy(), batch.column("query").to_numpy()
        np.add.at(self.train_impressions_P, product_N[train_N], 1)
        np.add.at(self.train_impressions_Q, query_N[train_N & (query_N >= 0)], 1)
        self.train_without_user += int(np.count_nonzero(batch.column("user").to_numpy()[train_N] == NO_ID))
        self.train_clicked += int(batch.column("clicked").to_numpy()[train_N].sum(dtype=np.int64))
        split_N = batch.column("split").to_numpy()
        for code in self._rows:
            self._rows[code] += int(np.count_nonzero(split_N == code))

    def count_labels(
        self,
        split_N: Codes,
        *,
        logged_N: npt.NDArray[np.bool_],
        counted_N: npt.NDArray[np.bool_],
        label_N: npt.NDArray[np.bool_],
        open_N: npt.NDArray[np.bool_],
    ) -> None:
        """Take in what became of clicks as logged: counted in their window, and known in time."""
        for name, code in CODE_OF_SPLIT.items():
            rows_N = split_N == code
            self.labels[name] += LabelSummary(
                rows=int(rows_N.sum()),
                clicks=int((rows_N & logged_N).sum()),
                after_window=int((rows_N & logged_N & ~counted_N).sum()),
                after_split=int((rows_N & counted_N & ~label_N).sum()),
                open_windows=int((rows_N & open_N).sum()),
            )

    def facts(self) -> dict[str, Any]:
        """For JSON: all but the impressions of each product and query."""
        return {
            "labels": {name: label.model_dump() for name, label in self.labels.items()},
            "train_clicked": self.train_clicked,
            "train_without_user": self.train_without_user,
            "rows": [self._rows[code] for code in sorted(self._rows)],
        }

    def merge_facts(self, facts: Mapping[str, Any]) -> None:
        """Take in the `facts` of other rows; the order does not matter."""
        for name, label in facts["labels"].items():
            self.labels[name] += LabelSummary(**label)
        self.train_clicked += facts["train_clicked"]
        self.train_without_user += facts["train_without_user"]
        for code, rows in zip(sorted(self._rows), facts["rows"], strict=True):
            self._rows[code] += rows

    @property
    def train_rows(self) -> int:
        """Training impressions."""
        return self._rows[TRAIN]

    @property
    def unused_rows(self) -> int:
        """Impressions in no split."""
        return self._rows[UNUSED]

    @property
    def train_without(self) -> dict[str, int]:
        """Training impressions without a user, and without a query."""
        with_query = int(self.train_impressions_Q.sum())
        return {"user": self.train_without_user, "query": self.train_rows - with_query}

    @property
    def train_ctr(self) -> float:
        """Clicks per impression of the training window."""
        return self.train_clicked / self.train_rows

    def check(self, split: SplitConfig) -> None:
        """Raises SplitError if a split is empty or training knows one class only."""
        for name, code in CODE_OF_SPLIT.items():
            if not self._rows[code]:
                why = " (those without a user only train)" if split.method == "per_user" else ""
                raise SplitError(f"the {name} split has no impressions{why}; change [split], now {split}")
        if self.train_clicked in (0, self.train_rows):
            late = self.labels["train"].after_window + self.labels["train"].after_split
            left_out = f" ({late:,} clicks came too late for a label: see [labels])" if late else ""
            raise SplitError(
                f"all {self.train_rows:,} training impressions have clicked = {int(self.train_clicked > 0)}"
                f"{left_out}; a model needs both classes: check the column `clicked` or change [split]"
            )


@dataclass(frozen=True)
class LabelRule:
    """Which clicks are labels: those that were known when the row's split ended (the test split: the log)."""

    attribution_us: int
    log_ends_us: int

    @classmethod
    def of(cls, config: FeatureConfig, facts: LogFacts) -> "LabelRule":
        """A log without click times leaves no window open."""
        return cls(config.labels.attribution_us if facts.has_click_times else 0, facts.last_us)

    def labels(
        self, split_N: Codes, last_us_N: Int64s, *, time_us_N: Int64s, click_us_N: Int64s
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Labels, and rows whose window was not over when the label was read.

        Args:
            last_us_N: the last moment whose clicks a label may use.
        """
        label_N = (click_us_N != NO_CLICK) & (click_us_N <= last_us_N)
        known_us_N = np.where(split_N == TEST, self.log_ends_us, last_us_N)
        return label_N, time_us_N + self.attribution_us - 1 > known_us_N


@dataclass(frozen=True)
class EncodedLog:
    """Batches of `LogReader.impressions` in a file of their own: `clicked` is the label, `split` is new.

    Without `click_us`, which is in the buckets.
    """

    path: Path
    count: int
    tally: Tally

    @classmethod
    def store(
        cls,
        reader: LogReader,
        path: Path,
        *,
        partitions: dict[str, Buckets],
        observers: Sequence[Observer],
        report: Progress,
    ) -> "EncodedLog":
        """Read the impressions once: store them, scatter them to every partition, let observers learn.

        Raises:
            SplitError: a split is empty or training knows one class only.
        """
        tally = Tally(products=len(reader.indexes["product"]), queries=len(reader.indexes["query"]))
        labelled = _Labels(reader, tally)
        writer: pa.RecordBatchStreamWriter | None = None
        count = done = 0
        last_us = reader.facts.first_us
        for read in reader.impressions():
            time_us_N = read.column("time_us").to_numpy()
            in_order = time_us_N[0] >= last_us and not (time_us_N[1:] < time_us_N[:-1]).any()
            assert in_order, "the engine gave impressions out of order"
            last_us = int(time_us_N[-1])
            batch = labelled.batch(read)
            split_N = batch.column("split").to_numpy()
            stored = batch.drop_columns(["click_us"])  # rows need the label alone
            if writer is None:
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                writer = pa.ipc.new_stream(str(path), stored.schema, options=options)
            writer.write_batch(stored)
            _scatter(batch, partitions)
            for observer in (tally, *observers):
                observer.observe(batch, split_N == TRAIN)
            count += 1
            done += len(batch)
            report("reading the log", done, reader.facts.impressions)
        assert writer is not None
        writer.close()
        assert done == reader.facts.impressions, "impressions were lost while ids were numbered"
        for buckets in partitions.values():
            buckets.finish()
        tally.check(reader.config.split)
        return cls(path, count, tally)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The batches again, in the same order."""
        with pa.OSFile(str(self.path)) as file:
            yield from pa.ipc.open_stream(file)


class _Labels:
    """Gives each impression its split, and as `clicked` the label that was known when the split ended."""

    def __init__(self, reader: LogReader, tally: Tally) -> None:
        split = reader.config.split
        self._tally = tally
        self._rule = LabelRule.of(reader.config, reader.facts)
        self._by_user: PerUserCut | None = None
        if split.method == "global":
            self._by_time = TimeCut.of(split, first_us=reader.facts.first_us, last_us=reader.facts.last_us)
            return
        self._by_user = PerUserCut(split, reader.indexes["user"].impressions_K)
        self._validation_us_U, self._test_us_U = (
            reader.impression_times(rank_U)
            for rank_U in (self._by_user.validation_from_U, self._by_user.test_from_U)
        )

    def batch(self, read: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with its labels and splits; batches must come in time order."""
        user_N, time_us_N = read.column("user").to_numpy(), read.column("time_us").to_numpy()
        if self._by_user:
            split_N = self._by_user.codes(user_N)
            last_us_N = self._by_user.last_click_us(
                split_N, user_N, validation_us_U=self._validation_us_U, test_us_U=self._test_us_U
            )
        else:
            split_N = self._by_time.codes(time_us_N)
            last_us_N = self._by_time.last_click_us(split_N)
        click_us_N = read.column("click_us").to_numpy()
        label_N, open_N = self._rule.labels(split_N, last_us_N, time_us_N=time_us_N, click_us_N=click_us_N)
        logged_N = read.column("clicked").to_numpy() == 1
        self._tally.count_labels(
            split_N, logged_N=logged_N, counted_N=click_us_N != NO_CLICK, label_N=label_N, open_N=open_N
        )
        place = read.schema.get_field_index("clicked")
        labelled = read.set_column(place, "clicked", pa.array(label_N.astype(np.int8)))
        return labelled.append_column("split", pa.array(split_N))


def _scatter(batch: pa.RecordBatch, partitions: dict[str, Buckets]) -> None:
    """Give each partition what `KeyCounters.count` and the history need of a row."""
    shared = {name: batch.column(name).to_numpy() for name in ("time_us", "click_us", "split")}
    for name, buckets in partitions.items():
        key_N = batch.column(name).to_numpy()
        columns = {"key": key_N, **shared}
        if name == "query":
            columns["product"] = batch.column("product").to_numpy()
        buckets.append(key_N, columns)
