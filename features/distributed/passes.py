"""The passes over the stored log: learning from the training window, adding up counters, writing rows.

A task takes some whole batches of the log, the same that one machine would read, so that floating-point sums
are the same to the last bit. Shapes: N rows of a batch.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.artifacts import sha256_of
from features.columns.kernels import NO_CLICK
from features.columns.transforms import ExactMoments, Moments, Transform
from features.distributed.engine import BUCKET, Stage
from features.distributed.stages import count_names
from features.distributed.stored_log import StoredLog
from features.offline.fitted_columns import DenseColumn, SparseCodes, SparseRows
from features.offline.key_counters import PARTITION_OF_KEY, KeyCounts, merge_moments
from features.offline.log_reader import BATCH_ROWS
from features.offline.row_files import ROW_GROUPS_PER_FILE, RowAssembler, SplitTotals, SplitWriter
from features.offline.splits import CODE_OF_SPLIT, TRAIN
from features.offline.time_ordered_log import Tally

#: Batches of a task that learns.
_BATCHES = 16
_FILE_ROWS = ROW_GROUPS_PER_FILE * BATCH_ROWS

#: What a task says: JSON.
NOTES = pa.schema([("note", pa.string())])
#: How many training rows have each code of a sparse feature, of products and of queries; or JSON in `note`.
LEARNT = pa.schema(
    [
        (BUCKET, pa.int32()),
        ("name", pa.string()),
        ("code", pa.int64()),
        ("rows", pa.int64()),
        ("note", pa.string()),
    ]
)
_NOTE = "note"


@dataclass(frozen=True)
class Ranges:
    """Tasks of `_BATCHES` batches each."""

    batches: int

    def __len__(self) -> int:
        return -(-self.batches // _BATCHES)

    def of(self, task: int) -> tuple[int, int]:
        """The task's first batch, and one after its last."""
        return task * _BATCHES, min((task + 1) * _BATCHES, self.batches)


@dataclass(frozen=True)
class Learning:
    """What the training window teaches: counts of codes, moments of dense columns, the tally."""

    log: StoredLog
    ranges: Ranges
    dense: tuple[DenseColumn, ...]
    sparse: tuple[SparseCodes, ...]
    products: int
    queries: int
    reducers: int

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Adds up what the tasks have counted."""
        return (Stage(_sum_learnt, LEARNT),)

    def __call__(self, task: int) -> pa.Table:
        """Counts of one range of batches."""
        first, last = self.ranges.of(task)
        tally = Tally(products=self.products, queries=self.queries)
        codes: dict[int, list[npt.NDArray[np.int32]]] = {}
        moments: list[list[dict[str, Any]]] = []
        rows_of_split: list[list[int]] = []
        for batch in self.log.read(first, last):
            split_N = batch.column("split").to_numpy()
            train_N = split_N == TRAIN
            tally.observe(batch, train_N)
            tally.count_labels(
                split_N,
                logged_N=_flags(batch, "logged"),
                counted_N=batch.column("click_us").to_numpy() != NO_CLICK,
                label_N=batch.column("clicked").to_numpy() == 1,
                open_N=_flags(batch, "open"),
            )
            for number, sparse in enumerate(self.sparse):
                codes.setdefault(number, []).append(sparse.of(batch)[train_N])
            moments.append([asdict(column.moments_of(batch, train_N)) for column in self.dense])
            rows_of_split.append([int((split_N == code).sum()) for code in CODE_OF_SPLIT.values()])
        counted = [
            _code_counts(
                f"sparse:{number}", *np.unique(np.concatenate(parts), return_counts=True), self.reducers
            )
            for number, parts in codes.items()
        ]
        for name, count_K in (("product", tally.train_impressions_P), ("query", tally.train_impressions_Q)):
            present = np.flatnonzero(count_K)
            counted.append(_code_counts(name, present, count_K[present], self.reducers))
        note = {
            "task": task,
            "tally": tally.facts(),
            "moments": moments,
            "rows_of_split": rows_of_split,
        }
        row = {BUCKET: 0, "name": _NOTE, "code": None, "rows": None, "note": json.dumps(note)}
        return pa.concat_tables([*counted, pa.Table.from_pylist([row], schema=LEARNT)])


@dataclass(frozen=True)
class Learnt:
    """What `Learning` found, put together.

    Attributes:
        rows_BS: of each batch, how many rows each split has.
    """

    tally: Tally
    moments: tuple[tuple[Moments, ...], ...]
    counts: Mapping[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]
    rows_BS: npt.NDArray[np.int64]

    @classmethod
    def of(cls, found: pa.Table, *, products: int, queries: int) -> "Learnt":
        """From the rows of all tasks."""
        is_note = pc.equal(found.column("name"), _NOTE)
        notes = [json.loads(text) for text in found.filter(is_note).column("note").to_pylist()]
        notes.sort(key=lambda note: int(note["task"]))
        tally = Tally(products=products, queries=queries)
        for note in notes:
            tally.merge_facts(note["tally"])
        numbers = found.filter(pc.invert(is_note))
        counts = {}
        for name in pc.unique(numbers.column("name")).to_pylist():
            of_name = numbers.filter(pc.equal(numbers.column("name"), name))
            counts[name] = of_name.column("code").to_numpy(), of_name.column("rows").to_numpy()
        for name, total_K in (("product", tally.train_impressions_P), ("query", tally.train_impressions_Q)):
            code_K, rows_K = counts.pop(name, (np.zeros(0, np.int64), np.zeros(0, np.int64)))
            total_K[code_K] = rows_K
        moments = tuple(tuple(Moments(**part) for part in of) for note in notes for of in note["moments"])
        rows = [of for note in notes for of in note["rows_of_split"]]
        return cls(tally, moments, counts, np.array(rows, np.int64))


@dataclass(frozen=True)
class AddingUp:
    """Training moments of the counters."""

    log: StoredLog
    ranges: Ranges
    counts: tuple[KeyCounts, ...]
    prior_ctr: float

    def __call__(self, task: int) -> pa.Table:
        """Moments of one range of batches."""
        total: dict[str, ExactMoments] = {}
        keys = sorted({PARTITION_OF_KEY[count.key] for count in self.counts})
        names = [name for count in self.counts for name in count_names(count.key, count.columns)]
        for batch in self.log.read(*self.ranges.of(task), columns=["split", *keys, *names]):
            train_N = batch.column("split").to_numpy() == TRAIN
            for count in self.counts:
                # Rows without the key are added by the driver, all at once.
                known_N = train_N & (batch.column(PARTITION_OF_KEY[count.key]).to_numpy() >= 0)
                count_NC = raw_counts(batch, count)[known_N]
                ones_N = np.ones(len(count_NC), np.int64)
                merge_moments(total, count.moments(count_NC, ones_N, prior_ctr=self.prior_ctr))
        return _note({name: asdict(moments) for name, moments in total.items()})

    @staticmethod
    def together(found: pa.Table) -> dict[str, ExactMoments]:
        """The moments of all tasks, whatever their order."""
        total: dict[str, ExactMoments] = {}
        for text in found.column("note").to_pylist():
            merge_moments(total, {name: ExactMoments(**part) for name, part in json.loads(text).items()})
        return total


@dataclass(frozen=True)
class PartFile:
    """One row file: rows first..last - 1 of a split, which lie in some batches of the log."""

    split: str
    number: int
    first: int
    last: int
    first_batch: int
    last_batch: int
    #: Rows of the split before the first batch.
    before: int


def part_files(rows_BS: npt.NDArray[np.int64]) -> tuple[PartFile, ...]:
    """The files of all splits, each of `ROW_GROUPS_PER_FILE` whole row groups but the last one."""
    files = []
    for place, split in enumerate(CODE_OF_SPLIT):
        end_B = np.cumsum(rows_BS[:, place])
        for number, first in enumerate(range(0, int(end_B[-1]), _FILE_ROWS)):
            last = min(first + _FILE_ROWS, int(end_B[-1]))
            first_batch = int(np.searchsorted(end_B, first, side="right"))
            last_batch = int(np.searchsorted(end_B, last, side="left")) + 1
            before = int(end_B[first_batch] - rows_BS[first_batch, place])
            files.append(PartFile(split, number, first, last, first_batch, last_batch, before))
    return tuple(files)


@dataclass(frozen=True)
class Writing:
    """Row files of the feature set, one for each task."""

    log: StoredLog
    files: tuple[PartFile, ...]
    counts: tuple[KeyCounts, ...]
    tally: Tally
    dense: tuple[DenseColumn, ...]
    sparse: tuple[SparseRows, ...]
    transforms: Mapping[str, Transform]
    prior_ctr: float
    folder: Path
    scratch: Path

    @property
    def assembler(self) -> RowAssembler:
        """Puts rows together as one machine does."""
        return RowAssembler(
            self.tally,
            dense=self.dense,
            counters=[count.block(self.transforms, prior_ctr=self.prior_ctr) for count in self.counts],
            sparse=self.sparse,
            offset_dtype=self.log.schema.field("history_start").type.to_pandas_dtype(),
        )

    def __call__(self, task: int) -> pa.Table:
        """Write one file; it appears whole."""
        file = self.files[task]
        assembler, code = self.assembler, CODE_OF_SPLIT[file.split]
        root = self.scratch / f"rows-{uuid4().hex}"
        writer = SplitWriter(root, file.split, first_file=file.number)
        position = file.before
        for batch in self.log.read(file.first_batch, file.last_batch):
            offsets_N2 = np.stack(
                [batch.column(f"history_{end}").to_numpy() for end in ("start", "end")], axis=1
            )
            counts = [raw_counts(batch, count) for count in self.counts]
            rows, oov = assembler.rows(batch, offsets_N2=offsets_N2, counts=counts)
            of_split = np.flatnonzero(batch.column("split").to_numpy() == code)
            wanted = of_split[max(file.first - position, 0) : max(file.last - position, 0)]
            position += len(of_split)
            writer.append(rows.take(pa.array(wanted)), {name: flags[wanted] for name, flags in oov.items()})
        totals = writer.finish()
        (name,) = totals.files
        checksum = sha256_of(root / name)
        (root / name).replace(self.folder / name)
        shutil.rmtree(root)
        return _note({"task": task, "totals": asdict(totals), "checksum": checksum})

    @staticmethod
    def together(found: pa.Table, files: Sequence[PartFile]) -> tuple[dict[str, SplitTotals], dict[str, str]]:
        """Totals of each split, and the checksum of each file."""
        notes = sorted((json.loads(text) for text in found.column("note").to_pylist()), key=_task)
        totals = {split: SplitTotals() for split in CODE_OF_SPLIT}
        checksums = {}
        for file, note in zip(files, notes, strict=True):
            part = SplitTotals(**note["totals"])
            checksums[part.files[0]] = note["checksum"]
            totals[file.split].merge(part)
        return totals, checksums


def raw_counts(batch: pa.RecordBatch, count: KeyCounts) -> npt.NDArray[np.int32]:
    """int32[N, C] of a key."""
    columns = [batch.column(name).to_numpy() for name in count_names(count.key, count.columns)]
    return np.stack(columns, axis=1)


def _task(note: Mapping[str, Any]) -> int:
    return int(note["task"])


def _note(content: Mapping[str, Any]) -> pa.Table:
    return pa.table([[json.dumps(content)]], schema=NOTES)


def _flags(batch: pa.RecordBatch, name: str) -> npt.NDArray[np.bool_]:
    flags_N: npt.NDArray[np.bool_] = batch.column(name).to_numpy(zero_copy_only=False)
    return flags_N


def _code_counts(name: str, code_K: Any, rows_K: Any, reducers: int) -> pa.Table:
    code_K = code_K.astype(np.int64)
    return pa.table(
        [
            pa.array((code_K % reducers).astype(np.int32)),
            pa.repeat(name, len(code_K)),
            pa.array(code_K),
            pa.array(rows_K.astype(np.int64)),
            pa.nulls(len(code_K), pa.string()),
        ],
        schema=LEARNT,
    )


def _sum_learnt(found: pa.Table) -> pa.Table:
    """`LEARNT` of one bucket, each code once."""
    is_note = pc.equal(found.column("name"), _NOTE)
    numbers = found.filter(pc.invert(is_note))
    summed = numbers.group_by([BUCKET, "name", "code"]).aggregate([("rows", "sum")])
    summed = summed.rename_columns({"rows_sum": "rows"})
    summed = summed.append_column("note", pa.nulls(len(summed), pa.string()))
    return pa.concat_tables([summed.select(LEARNT.names).cast(LEARNT), found.filter(is_note).cast(LEARNT)])
