"""The log of an online experiment: a folder of tables that says who saw which variant, and what happened.

    EXPERIMENT/
      experiment.json      which variant is the control, which the challenger, how units were drawn
      unit_days.parquet    a row for each unit and day (or unit_days.csv)
      slices.parquet       optional: the same for the queries or aisles of a unit and day (or slices.csv)
      latency.parquet      optional: a row for each timed request (or latency.csv)

Columns of `unit_days`:

- `unit` (text or integer), `variant` (text), `day` (date); a unit has one variant for good and at most one
  row a day. A unit without a row on a day did nothing; one without any row was never in the experiment.
- `impressions`, `clicks` and, where they are known, `searches`, `conversions` (orders), `revenue` (what ads
  earned), `relevance` (sum of the grades of shown ads), `errors` (failed searches): what happened that day.
- `pre_impressions`, `pre_clicks`, ...: optional, the same before the experiment began, equal in all rows of a
  unit. Null stands for 0: nothing was known of the unit. They make intervals narrower (CUPED).
- `segment_<name>` (text or boolean): optional, a group of the unit as of the first day, equal in all rows.

Columns of `slices`: `unit`, `day`, `kind` ("query", "aisle"), `slice` (its name) and the same counts.
Columns of `latency`: `variant`, `day`, `ms`.

Shapes: N unit-days, U units, L rows of slices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.abtest.description import DESCRIPTION, Description, ExperimentError
from experiments.abtest.metrics import BEFORE, COUNTED, REQUIRED
from features.artifacts import atomic_folder, atomic_write_json

UNIT_DAYS, SLICES, LATENCY = "unit_days", "slices", "latency"
SEGMENT = "segment_"
_SUFFIXES = (".parquet", ".csv")

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class DayLatency(NamedTuple):
    """The 99th percentile of one day in milliseconds, and how many requests it is of, by variant."""

    day: date
    control_ms: float
    treatment_ms: float
    control_requests: int
    treatment_requests: int


@dataclass(frozen=True, eq=False)
class SliceRows:
    """Rows of the table of slices: which unit, the counts, and which slice of which kind."""

    kinds: tuple[str, ...]
    #: (kind, name) of each slice.
    names: tuple[tuple[str, str], ...]
    slice_L: IntArray
    unit_L: IntArray
    counts: Mapping[str, FloatArray]


@dataclass(frozen=True, eq=False)
class ExperimentLog:
    """Both compared variants of an experiment in memory; other variants are only counted.

    Attributes:
        units: names of the units.
        treated_U: whether a unit saw the challenger.
        first_day: of the log, day 0 of `day_N`.
        unit_N, day_N: of each row, in the order of days.
        counts: what happened in each row, by column.
        before: what each unit did before, by column without `pre_`.
        segments: the group of each unit, by the name of the segment.
    """

    description: Description
    units: tuple[str, ...]
    treated_U: npt.NDArray[np.bool_]
    first_day: date
    days: int
    unit_N: IntArray
    day_N: IntArray
    counts: Mapping[str, FloatArray]
    before: Mapping[str, FloatArray]
    segments: Mapping[str, npt.NDArray[np.str_]]
    other_units: Mapping[str, int]
    slices: SliceRows | None
    latency: tuple[DayLatency, ...]

    @property
    def last_day(self) -> date:
        """The latest day of any row."""
        return self.first_day + timedelta(days=self.days - 1)

    @classmethod
    def open(cls, folder: Path) -> "ExperimentLog":
        """Read and check an experiment.

        Raises:
            ExperimentError: a table or column is missing, a value cannot be, or a unit has two variants.
        """
        description = Description.read(folder)
        with duckdb.connect() as connection:
            return _read(connection, folder, description)


def write_experiment(
    folder: Path,
    description: Description,
    unit_days: pa.Table,
    *,
    slices: pa.Table | None = None,
    latency: pa.Table | None = None,
) -> None:
    """Write an experiment, whole or not at all; an earlier one in its place goes.

    Raises:
        FileExistsError: `folder` holds something else.
    """
    tables = {UNIT_DAYS: unit_days, SLICES: slices, LATENCY: latency}
    with atomic_folder(folder, ours=lambda path: (path / DESCRIPTION).exists()) as temporary:
        atomic_write_json(temporary / DESCRIPTION, description.model_dump(mode="json"))
        for name, table in tables.items():
            if table is not None:
                pq.write_table(table, temporary / f"{name}.parquet")


def _read(connection: duckdb.DuckDBPyConnection, folder: Path, description: Description) -> ExperimentLog:
    path = _table_file(folder, UNIT_DAYS)
    if path is None:
        raise ExperimentError(f"{folder} has no {UNIT_DAYS}.parquet and no {UNIT_DAYS}.csv")
    columns = _open(connection, UNIT_DAYS, path, ("unit", "variant", "day", *REQUIRED))
    counted = [name for name in COUNTED if name in columns]
    before = [name for name in COUNTED if BEFORE + name in columns]
    segments = [name for name in columns if name.startswith(SEGMENT)]
    _check_filled(connection, UNIT_DAYS, path, ("unit", "variant", "day"))
    _check_counts(connection, UNIT_DAYS, path, counted, null=False)
    _check_counts(connection, UNIT_DAYS, path, [BEFORE + name for name in before], null=True)
    _check_units(connection, path, [*(BEFORE + name for name in before), *segments])
    wanted = (description.control, description.treatment)
    groups = {
        str(name): int(units)
        for name, units in connection.execute(
            f"SELECT variant, count(DISTINCT unit) FROM {UNIT_DAYS} GROUP BY variant ORDER BY variant"
        ).fetchall()
    }
    for name in wanted:
        if groups.get(name, 0) < 2:
            raise ExperimentError(
                f"{path}: variant {name!r} of {DESCRIPTION} has {groups.get(name, 0)} units, at least 2 are "
                f"needed; found {', '.join(groups)}"
            )
    connection.execute(
        "CREATE TABLE units AS SELECT unit, any_value(variant) AS variant, "
        + "".join(f"coalesce(any_value({BEFORE}{name}), 0)::DOUBLE AS {BEFORE}{name}, " for name in before)
        + "".join(
            f"coalesce(any_value({_quoted(name)})::VARCHAR, 'unknown') AS {_quoted(name)}, "
            for name in segments
        )
        + f"row_number() OVER (ORDER BY unit) - 1 AS row "
        f"FROM {UNIT_DAYS} WHERE variant IN (?, ?) GROUP BY unit",
        wanted,
    )
    units = connection.sql("SELECT * FROM units ORDER BY row").to_arrow_table()
    rows = connection.sql(
        f"SELECT units.row, day, {', '.join(f'{name}::DOUBLE AS {name}' for name in counted)} "
        f"FROM {UNIT_DAYS} JOIN units USING (unit) ORDER BY day, units.row"
    ).to_arrow_table()
    day_N = rows["day"].cast(pa.int32()).to_numpy().astype(np.int64)
    first = int(day_N[0])
    return ExperimentLog(
        description=description,
        units=tuple(units["unit"].to_pylist()),
        treated_U=np.array(units["variant"].to_pylist()) == description.treatment,
        first_day=date(1970, 1, 1) + timedelta(days=first),
        days=int(day_N[-1]) - first + 1,
        unit_N=rows["row"].to_numpy().astype(np.int64),
        day_N=day_N - first,
        counts={name: rows[name].to_numpy() for name in counted},
        before={name: units[BEFORE + name].to_numpy() for name in before},
        segments={
            name.removeprefix(SEGMENT): np.array(units[name].to_pylist(), dtype=np.str_) for name in segments
        },
        other_units={name: count for name, count in groups.items() if name not in wanted},
        slices=_read_slices(connection, folder),
        latency=_read_latency(connection, folder, description),
    )


def _read_slices(connection: duckdb.DuckDBPyConnection, folder: Path) -> SliceRows | None:
    path = _table_file(folder, SLICES)
    if path is None:
        return None
    keys = ("unit", "day", "kind", "slice")
    columns = _open(connection, SLICES, path, (*keys, *REQUIRED))
    counted = [name for name in COUNTED if name in columns]
    _check_filled(connection, SLICES, path, keys)
    _check_counts(connection, SLICES, path, counted, null=False)
    strangers = _first(
        connection,
        f"SELECT unit FROM {SLICES} WHERE unit NOT IN (SELECT unit FROM {UNIT_DAYS}) ORDER BY unit LIMIT 1",
    )
    if strangers is not None:
        raise ExperimentError(f"{path}: unit {strangers[0]!r} has no row in {UNIT_DAYS}; both must know it")
    rows = connection.sql(
        f"SELECT row, kind, slice, {', '.join(f'sum({name})::DOUBLE AS {name}' for name in counted)} "
        f"FROM {SLICES} JOIN units USING (unit) GROUP BY ALL ORDER BY kind, slice, row"
    ).to_arrow_table()
    names = list(zip(rows["kind"].to_pylist(), rows["slice"].to_pylist(), strict=True))
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return SliceRows(
        kinds=tuple(dict.fromkeys(kind for kind, _ in places)),
        names=tuple(places),
        slice_L=np.array([places[name] for name in names], dtype=np.int64),
        unit_L=rows["row"].to_numpy().astype(np.int64),
        counts={name: rows[name].to_numpy() for name in counted},
    )


def _read_latency(
    connection: duckdb.DuckDBPyConnection, folder: Path, description: Description
) -> tuple[DayLatency, ...]:
    """Days on which both variants were timed."""
    path = _table_file(folder, LATENCY)
    if path is None:
        return ()
    _open(connection, LATENCY, path, ("variant", "day", "ms"))
    _check_filled(connection, LATENCY, path, ("variant", "day", "ms"))
    _check_counts(connection, LATENCY, path, ["ms"], null=False)
    if _number(connection, f"SELECT count(*) FROM {LATENCY} WHERE ms = 0"):
        raise ExperimentError(f"{path}, column 'ms': some requests took 0 ms; give finer numbers")
    found = connection.execute(
        f"SELECT day, quantile_cont(ms, 0.99) FILTER (variant = $1) AS control_ms, "
        f"quantile_cont(ms, 0.99) FILTER (variant = $2) AS treatment_ms, "
        f"count(*) FILTER (variant = $1), count(*) FILTER (variant = $2) FROM {LATENCY} "
        "GROUP BY day HAVING control_ms IS NOT NULL AND treatment_ms IS NOT NULL ORDER BY day",
        [description.control, description.treatment],
    ).fetchall()
    return tuple(DayLatency(*row) for row in found)


def _table_file(folder: Path, name: str) -> Path | None:
    """The file of a table; None if there is none.

    Raises:
        ExperimentError: there are two.
    """
    found = [folder / f"{name}{suffix}" for suffix in _SUFFIXES if (folder / f"{name}{suffix}").exists()]
    if len(found) > 1:
        raise ExperimentError(f"{folder} has both {found[0].name} and {found[1].name}; remove one")
    return found[0] if found else None


def _open(connection: duckdb.DuckDBPyConnection, name: str, path: Path, required: Sequence[str]) -> list[str]:
    """Make a table of a file, `unit`, names and days in their types; returns its columns."""
    reader = "read_csv" if path.suffix == ".csv" else "read_parquet"
    types = {"unit": "VARCHAR", "variant": "VARCHAR", "day": "DATE", "kind": "VARCHAR", "slice": "VARCHAR"}
    try:
        source = connection.execute(f"SELECT * FROM {reader}(?) LIMIT 0", [str(path)])
        columns = [str(column[0]) for column in source.description or ()]
        if missing := [column for column in required if column not in columns]:
            raise ExperimentError(f"{path} has no column {missing[0]!r}; it has {', '.join(columns)}")
        chosen = ", ".join(
            f"{_quoted(column)}::{types[column]} AS {column}" if column in types else _quoted(column)
            for column in columns
        )
        connection.execute(f"CREATE TABLE {name} AS SELECT {chosen} FROM {reader}(?)", [str(path)])
    except duckdb.Error as error:
        raise ExperimentError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    return columns


def _check_filled(
    connection: duckdb.DuckDBPyConnection, name: str, path: Path, columns: Sequence[str]
) -> None:
    if _first(connection, f"SELECT 1 FROM {name} LIMIT 1") is None:
        raise ExperimentError(f"{path} has no rows")
    for column in columns:
        empty = _number(connection, f"SELECT count(*) FROM {name} WHERE {column} IS NULL")
        if empty:
            raise ExperimentError(f"{path}, column {column!r}: {empty:,} rows are empty; fill or remove them")


def _check_counts(
    connection: duckdb.DuckDBPyConnection, name: str, path: Path, columns: Sequence[str], *, null: bool
) -> None:
    """Counts are finite and not negative; `null` says whether they may be unknown."""
    for column in columns:
        wrong = f"coalesce({column}::DOUBLE < 0 OR NOT isfinite({column}::DOUBLE), {not null})"
        try:
            found = _first(connection, f"SELECT {column}, count(*) OVER () FROM {name} WHERE {wrong} LIMIT 1")
        except duckdb.Error:
            raise ExperimentError(f"{path}, column {column!r}: not every value is a number") from None
        if found is not None:
            raise ExperimentError(
                f"{path}, column {column!r}: {found[1]:,} values such as {found[0]} cannot be; give finite "
                "numbers from 0 on"
            )


def _check_units(connection: duckdb.DuckDBPyConnection, path: Path, constant: Sequence[str]) -> None:
    """A unit has one variant, one row a day, and one value of what was known before."""
    switched = connection.execute(
        f"SELECT unit, min(variant), max(variant), count(*) OVER () FROM {UNIT_DAYS} GROUP BY unit "
        "HAVING count(DISTINCT variant) > 1 ORDER BY unit LIMIT 1"
    ).fetchone()
    if switched is not None:
        raise ExperimentError(
            f"{path}: unit {switched[0]!r} saw both {switched[1]!r} and {switched[2]!r}, as {switched[3]:,} "
            "units did: nothing can be said of what changed between days. Find out why routing moved them; "
            "if they are few and fell out by chance, leave all their rows out"
        )
    twice = connection.execute(
        f"SELECT unit, day, count(*) FROM {UNIT_DAYS} GROUP BY unit, day HAVING count(*) > 1 "
        "ORDER BY ALL LIMIT 1"
    ).fetchone()
    if twice is not None:
        raise ExperimentError(f"{path}: unit {twice[0]!r} has {twice[2]} rows on {twice[1]}; add them up")
    for column in constant:
        column = _quoted(column)
        moved = connection.execute(
            f"SELECT unit FROM {UNIT_DAYS} GROUP BY unit HAVING count(DISTINCT {column}) > 1 "
            "ORDER BY unit LIMIT 1"
        ).fetchone()
        if moved is not None:
            raise ExperimentError(
                f"{path}, column {column}: it differs between rows of unit {moved[0]!r}; what was known "
                "before the experiment has one value for a unit"
            )


def _first(connection: duckdb.DuckDBPyConnection, sql: str) -> Any:
    return connection.execute(sql).fetchone()


def _number(connection: duckdb.DuckDBPyConnection, sql: str) -> int:
    found = connection.execute(sql).fetchone()
    return int(found[0]) if found else 0


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
