"""The log on disk in time order, scattered to buckets, with what the training window adds up to.

Shapes: N impressions of a batch, P products, Q queries.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.offline.buckets import Buckets
from features.offline.log_reader import LogReader
from features.offline.splits import CODE_OF_SPLIT, TRAIN, UNUSED, PerUserCut, SplitError, TimeCut
from features.progress import Progress
from features.schema import SplitConfig


class Observer(Protocol):
    """Learns from the training rows of each batch, in time order."""

    def observe(self, batch: pa.RecordBatch, train_N: npt.NDArray[np.bool_]) -> None: ...


class Tally:
    """Rows of each split, and training impressions of each product and query."""

    def __init__(self, *, products: int, queries: int) -> None:
        self.train_impressions_P = np.zeros(products, dtype=np.int64)
        self.train_impressions_Q = np.zeros(queries, dtype=np.int64)
        self.train_clicked = 0
        self._rows = dict.fromkeys((*CODE_OF_SPLIT.values(), UNUSED), 0)

    def observe(self, batch: pa.RecordBatch, train_N: npt.NDArray[np.bool_]) -> None:
        """Take in one batch that has its `split`."""
        product_N, query_N = batch.column("product").to_numpy(), batch.column("query").to_numpy()
        np.add.at(self.train_impressions_P, product_N[train_N], 1)
        np.add.at(self.train_impressions_Q, query_N[train_N & (query_N >= 0)], 1)
        self.train_clicked += int(batch.column("clicked").to_numpy()[train_N].sum(dtype=np.int64))
        split_N = batch.column("split").to_numpy()
        for code in self._rows:
            self._rows[code] += int(np.count_nonzero(split_N == code))

    @property
    def train_rows(self) -> int:
        """Training impressions."""
        return self._rows[TRAIN]

    @property
    def unused_rows(self) -> int:
        """Impressions in no split."""
        return self._rows[UNUSED]

    @property
    def train_ctr(self) -> float:
        """Clicks per impression of the training window."""
        return self.train_clicked / self.train_rows

    def check(self, split: SplitConfig) -> None:
        """Raises SplitError if a split is empty or training knows one class only."""
        for name, code in CODE_OF_SPLIT.items():
            if not self._rows[code]:
                raise SplitError(f"the {name} split has no impressions; change [split], now {split}")
        if self.train_clicked in (0, self.train_rows):
            raise SplitError(
                f"all {self.train_rows:,} training impressions have clicked = {int(self.train_clicked > 0)}; "
                "a model needs both classes: check the column `clicked` or change [split]"
            )


@dataclass(frozen=True)
class EncodedLog:
    """Batches of `LogReader.impressions` with a column `split`, in a file of their own."""

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
        codes = _split_codes(reader)
        writer: pa.RecordBatchStreamWriter | None = None
        count = done = 0
        for read in reader.impressions():
            split_N = codes(read)
            batch = read.append_column("split", pa.array(split_N))
            if writer is None:
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                writer = pa.ipc.new_stream(str(path), batch.schema, options=options)
            writer.write_batch(batch)
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


def _split_codes(reader: LogReader) -> Callable[[pa.RecordBatch], npt.NDArray[np.int8]]:
    split, facts = reader.config.split, reader.facts
    if split.method == "per_user":
        by_user = PerUserCut(split, reader.indexes["user"].impressions_K)
        return lambda batch: by_user.codes(batch.column("user").to_numpy())
    by_time = TimeCut.of(split, first_us=facts.first_us, last_us=facts.last_us)
    return lambda batch: by_time.codes(batch.column("time_us").to_numpy())


def _scatter(batch: pa.RecordBatch, partitions: dict[str, Buckets]) -> None:
    """Give each partition what `KeyCounters.count` and the history need of a row."""
    shared = {name: batch.column(name).to_numpy() for name in ("time_us", "click_us", "split")}
    for name, buckets in partitions.items():
        key_N = batch.column(name).to_numpy()
        columns = {"key": key_N, **shared}
        if name == "query":
            columns["product"] = batch.column("product").to_numpy()
        buckets.append(key_N, columns)
