"""What a sweep left on disk, read and checked: runs, test rows, slices, truth. Nothing is dropped unnamed.

A sweep folder holds `sweep.json` and `<variant>/seed-<n>/` run folders. All runs are scored on the same
test rows in the same order; that is checked, because every difference in the report is taken row by row.

Shapes: N test rows.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from features.inputs.plain_types import plain_type, plain_values
from features.inputs.tables import open_files

FloatArray = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

PREDICTIONS = Path("predictions") / "test.parquet"
_COLUMNS = (
    "impression_id",
    "clicked",
    "logit",
    "user_index",
    "query_index",
    "slice_has_purchases",
    "slice_seen_product",
    "slice_query_frequency",
)
SLICE_TITLES = {
    "all": "All test impressions",
    "has_purchases": "Users with purchases",
    "no_purchases": "Users without purchases",
    "seen_product": "Products seen in training",
    "unseen_product": "Products not seen in training",
    "head_query": "Head queries",
    "torso_query": "Torso queries",
    "tail_query": "Tail queries",
}

#: What makes a folder a sweep.
SWEEP = "sweep.json"


class SweepResultsError(ValueError):
    """A sweep folder from which no comparison can be made; the message says what is wrong with it."""


class Floor(BaseModel):
    """A score without any model, shown beside the variants."""

    model_config = ConfigDict(frozen=True)
    name: str
    auc: float
    norm_logloss: float | None = None


class SweepRecord(BaseModel):
    """The part of `sweep.json` that a report needs; the sweep may record more."""

    model_config = ConfigDict(frozen=True)
    name: str
    baseline: str
    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    simulated: bool
    #: Impressions were made of purchases: nobody saw them.
    constructed: bool = False
    truth: str | None = None
    data: str | dict[str, Any] | None = None
    command: str | None = None
    titles: dict[str, str] = {}
    second_baseline: str | None = None
    ceilings: tuple[str, ...] = ()
    floor: Floor | None = None


@dataclass(frozen=True)
class Run:
    """One finished run: its test logits, and what it recorded about itself."""

    variant: str
    seed: int
    logits_N: FloatArray
    history: tuple[dict[str, Any], ...]
    record: dict[str, Any]
    environment: dict[str, Any]


@dataclass(frozen=True)
class UnusableRun:
    """A run the sweep asked for that the report cannot use, and why."""

    variant: str
    seed: int
    reason: str


@dataclass(frozen=True)
class EvaluatedRows:
    """What every run was tested on.

    Attributes:
        users_N, queries_N: row numbers, -1 for none.
        drawn_N: what a bootstrap draws, numbered from 0: users, and each impression of nobody by itself, as
            strangers are not one person.
    """

    impression_id: pa.ChunkedArray
    clicked_N: npt.NDArray[np.int8]
    users_N: npt.NDArray[np.int64]
    drawn_N: npt.NDArray[np.int64]
    queries_N: npt.NDArray[np.int64]
    slices: dict[str, Mask]
    click_probability_N: FloatArray | None

    @property
    def num_drawn(self) -> int:
        """How many users the test rows have, and impressions of nobody."""
        return int(self.drawn_N.max()) + 1


@dataclass(frozen=True)
class SweepResults:
    """A sweep as found: `runs[variant][seed]`, the runs that cannot be used, and remarks for the reader."""

    folder: Path
    record: SweepRecord
    rows: EvaluatedRows
    runs: dict[str, dict[int, Run]]
    unusable: tuple[UnusableRun, ...]
    notes: tuple[str, ...]


def load_sweep(folder: Path) -> SweepResults:
    """Read every finished run of a sweep folder; runs that are missing or broken are listed, not skipped.

    Raises:
        SweepResultsError: `sweep.json` is missing or wrong, no run is usable, or two runs were tested on
            different rows.
    """
    record = _read_record(folder / SWEEP)
    runs: dict[str, dict[int, Run]] = {}
    unusable: list[UnusableRun] = []
    first: tuple[Path, pa.Table] | None = None
    for variant in record.variants:
        for seed in record.seeds:
            run_folder = folder / variant / f"seed-{seed}"
            try:
                run, table = _read_run(run_folder, variant=variant, seed=seed)
            except _UnusableError as reason:
                unusable.append(UnusableRun(variant, seed, str(reason)))
                continue
            if first is None:
                first = run_folder, table
            _same_rows(first, (run_folder, table))
            runs.setdefault(variant, {})[seed] = run
    if first is None:
        detail = (
            f" ({unusable[0].variant}, seed {unusable[0].seed}: {unusable[0].reason})" if unusable else ""
        )
        raise SweepResultsError(f"{folder} has no finished run{detail}; run `dashclip sweep` first")

    notes: list[str] = []
    probability_N, truth_note = _read_truth(record.truth, folder, first[1]["impression_id"])
    if truth_note:
        notes.append(truth_note)
    slices, slice_notes = _slices(first[1])
    notes.extend(slice_notes)
    users_N = first[1]["user_index"].to_numpy().astype(np.int64)
    if (anonymous := int((users_N < 0).sum())) > 0:
        notes.append(
            f"{anonymous:,} of {len(users_N):,} test impressions are without a user: intervals over users "
            "take each for a user of its own, AUCs within users leave them out."
        )
    rows = EvaluatedRows(
        impression_id=first[1]["impression_id"],
        clicked_N=first[1]["clicked"].to_numpy().astype(np.int8),
        users_N=users_N,
        drawn_N=_drawn(users_N),
        queries_N=first[1]["query_index"].to_numpy().astype(np.int64),
        slices=slices,
        click_probability_N=probability_N,
    )
    return SweepResults(folder, record, rows, runs, tuple(unusable), tuple(notes))


def _drawn(users_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """`[7, -1, 7, -1]` gives three: `[2, 1, 2, 0]`."""
    own_N = users_N.copy()
    nobody = np.flatnonzero(users_N < 0)
    own_N[nobody] = -np.arange(1, len(nobody) + 1)
    return np.unique(own_N, return_inverse=True)[1].astype(np.int64)


class _UnusableError(Exception):
    """Why a run cannot be used."""


def _read_record(path: Path) -> SweepRecord:
    try:
        record = SweepRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise SweepResultsError(
            f"{path} does not exist; give the folder that `dashclip sweep` wrote (it holds sweep.json)"
        ) from None
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"])) or "the file"
        raise SweepResultsError(f"{path}: {key}: {problem['msg']}; run the sweep again") from None
    if record.baseline not in record.variants:
        raise SweepResultsError(
            f"{path}: the baseline {record.baseline!r} must be one of the variants {list(record.variants)}"
        )
    return record


def _read_run(folder: Path, *, variant: str, seed: int) -> tuple[Run, pa.Table]:
    if not folder.is_dir():
        raise _UnusableError("was not run")
    failure = folder / "failure.txt"
    # One of an earlier attempt may lie beside a run that then finished.
    if failure.exists() and not (folder / "run.json").exists():
        lines = failure.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise _UnusableError(f"failed: {lines[-1] if lines else 'failure.txt is empty'}")
    recorded = _read_json(folder / "run.json")  # written last, so it marks a finished run
    metrics = _read_json(folder / "metrics.json")
    path = folder / PREDICTIONS
    if not path.is_file():
        raise _UnusableError(f"has no {PREDICTIONS.as_posix()}")
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in _COLUMNS if name not in file.schema_arrow.names]
            if missing:
                raise _UnusableError(f"{PREDICTIONS.as_posix()} lacks the columns {', '.join(missing)}")
            table = file.read(columns=list(_COLUMNS))
    except (pa.ArrowException, OSError) as error:
        raise _UnusableError(f"{PREDICTIONS.as_posix()} cannot be read: {error}") from None
    if table.num_rows == 0:
        raise _UnusableError(f"{PREDICTIONS.as_posix()} has no rows")
    logits_N = table["logit"].to_numpy().astype(np.float64)
    if not np.isfinite(logits_N).all():
        row = int(np.argmin(np.isfinite(logits_N)))
        raise _UnusableError(f"{PREDICTIONS.as_posix()} has the logit {logits_N[row]} in row {row}")
    run = Run(
        variant=variant,
        seed=seed,
        logits_N=logits_N,
        history=tuple(metrics.get("history") or ()),
        record=recorded,
        environment=_read_json(folder / "environment.json", required=False),
    )
    return run, table.drop_columns(["logit"])


def _read_json(path: Path, *, required: bool = True) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not required:
            return {}
        raise _UnusableError(f"did not finish (no {path.name})") from None
    except (OSError, ValueError) as error:
        raise _UnusableError(f"{path.name} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise _UnusableError(f"{path.name} must hold a JSON object")
    return content


def _same_rows(first: tuple[Path, pa.Table], other: tuple[Path, pa.Table]) -> None:
    for name in ("impression_id", "clicked", "user_index"):
        if not first[1][name].equals(other[1][name]):
            raise SweepResultsError(
                f"{first[0]} and {other[0]} were tested on different rows (column {name}, "
                f"{first[1].num_rows:,} and {other[1].num_rows:,} rows); a comparison needs the same ones: "
                "delete the run of the older features and sweep again"
            )


def _slices(table: pa.Table) -> tuple[dict[str, Mask], list[str]]:
    bought_N = table["slice_has_purchases"].to_numpy().astype(bool)
    seen_N = table["slice_seen_product"].to_numpy().astype(bool)
    frequency_N = table["slice_query_frequency"].to_numpy()
    slices = {
        "all": np.ones(table.num_rows, dtype=bool),
        "has_purchases": bought_N,
        "no_purchases": ~bought_N,
        "seen_product": seen_N,
        "unseen_product": ~seen_N,
    }
    if (frequency_N < 0).all():
        return slices, ["The data set has no queries: no query slices and no AUC within queries."]
    slices |= {
        "head_query": frequency_N == 2,
        "torso_query": frequency_N == 1,
        "tail_query": frequency_N == 0,
    }
    return slices, []


def _read_truth(
    truth: str | None, folder: Path, impression_id: pa.ChunkedArray
) -> tuple[FloatArray | None, str | None]:
    """True click probability of each test row, or the sentence that says why there is none."""
    absent = "so the best reachable AUC and the share of the reachable gain are not given."
    if truth is None:
        return None, f"The true click probabilities are not known (as always with real data), {absent}"
    path = folder / truth  # relative to the sweep, never to the current folder; an absolute one stays itself
    if not path.exists():
        return None, f"The file of true click probabilities, {truth}, does not exist any more, {absent}"
    if path.is_dir():
        path = path / "impressions.parquet"
    wanted = plain_values(impression_id.combine_chunks(), plain_type(impression_id.type))
    source, columns = open_files("impressions", [path]), ["impression_id", "click_probability"]
    known = pa.Table.from_batches(
        (
            batch.filter(pc.is_in(batch.column("impression_id"), value_set=wanted))
            for batch in source.to_batches(columns)
        ),
        schema=pa.schema([source.schema.field(name) for name in columns]),
    )
    found = pc.index_in(wanted, value_set=known["impression_id"].combine_chunks())
    if found.null_count:
        first = wanted[int(np.argmax(found.is_null().to_numpy(zero_copy_only=False)))]
        return None, (
            f"{found.null_count:,} test impressions (the first is {first}) have no true click probability in "
            f"{truth}, {absent}"
        )
    return known["click_probability"].to_numpy()[found.to_numpy()].astype(np.float64), None
