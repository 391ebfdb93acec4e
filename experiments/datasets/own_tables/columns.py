"""One column of a source as one column of an input table: an SQL expression, and which values it cannot read.

Values that cannot be read are counted and one is shown; nothing becomes null because it was not understood.
Blank strings are missing, as everywhere (`features.inputs.blanks`).
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb

from experiments.datasets.own_tables.local_times import LocalTimes
from experiments.datasets.own_tables.mapping import (
    ColumnMapping,
    FlagColumn,
    GradeColumn,
    NumberColumn,
    TextColumn,
    TimeColumn,
)
from experiments.datasets.own_tables.sources import Source
from features.inputs.blanks import without_blanks_sql
from features.inputs.plain_types import sql_name
from features.inputs.table_specs import ColumnSpec
from features.inputs.tables import InputError, sql_text

_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 1}
#: Words for a number that is not there.
_NO_NUMBER = "('nan', 'null', 'none')"
_OFFSET = r"\d:\d\d(:\d\d([.,]\d+)?)?\s*([Zz]|[+-]\d\d(:?\d\d)?)$"
#: Text that a number gives again: no zeros before it, so that codes such as 007 stay text.
WHOLE = "-?(0|[1-9][0-9]{0,18})"
#: The same after a detour by float64, within what that tells apart.
POINTED = r"-?(0|[1-9][0-9]{0,14})\.0"
FRACTION = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?"
_NUMERIC = ("INT", "DOUBLE", "FLOAT", "DECIMAL")


@dataclass(frozen=True)
class Reading:
    """How one column of an input table is read; `refusals` are conditions and what to say where they hold."""

    name: str
    sql: str
    raw: str = "NULL"
    place: str = ""
    refusals: Sequence[tuple[str, str]] = field(default=())


def read_column(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    spec: ColumnSpec,
    mapping: ColumnMapping | None,
    *,
    key: str,
) -> Reading | None:
    """The reading of a column; None where no rule names it and the source has none of its name.

    Raises:
        InputError: the rule names a column that the source lacks, or one whose type it cannot read.
    """
    if isinstance(mapping, TextColumn) and mapping.value is not None:
        return Reading(spec.name, f"CAST({sql_text(mapping.value)} AS VARCHAR)")
    wanted = mapping.column if mapping is not None else None
    name = _found(source, wanted or spec.name)
    if name is None:
        if wanted is None:
            return None
        raise InputError(f"{source.place} has no column {wanted!r} ({key}){close_to(wanted, source.columns)}")
    kind = source.columns[name]
    place = f"{source.place}, column {name!r} ({key})"
    raw = f"CAST({without_blanks_sql(sql_name(name))} AS VARCHAR)"
    if spec.kind == "time":
        assert mapping is None or isinstance(mapping, TimeColumn)
        return _time(connection, source, spec, mapping or TimeColumn(column=name), name, place)
    if spec.kind in ("id", "text"):
        if spec.kind == "id" and kind in ("DOUBLE", "FLOAT"):
            number = f"TRY_CAST({sql_name(name)} AS BIGINT)"  # pandas makes 7.0 of 7 where some are null
            bad = f"{number} IS DISTINCT FROM {sql_name(name)} AND isfinite({sql_name(name)})"
            return Reading(
                spec.name,
                f"CAST({number} AS VARCHAR)",
                raw,
                place,
                [
                    (
                        f"({bad}) OR abs({sql_name(name)}) > 9007199254740992",
                        "are no whole ids; store them as text",
                    )
                ],
            )
        return Reading(spec.name, raw, raw, place)
    if spec.kind == "number":
        assert mapping is None or isinstance(mapping, NumberColumn)
        number = _number(name, kind, mapping or NumberColumn(column=name))
        return Reading(spec.name, number, raw, place, [_unread(number, name, kind, _NUMBER_ADVICE)])
    if spec.kind == "flag":
        assert mapping is None or isinstance(mapping, FlagColumn)
        return _flag(spec, mapping or FlagColumn(column=name), name, kind, raw, place)
    assert mapping is None or isinstance(mapping, GradeColumn)
    return _grade(spec, mapping or GradeColumn(column=name), name, kind, raw, place)


def check(connection: duckdb.DuckDBPyConnection, source: Source, readings: Sequence[Reading]) -> int:
    """Hold all values to their readings in one pass; the number of rows.

    Raises:
        InputError: values that cannot be read, of the first such column: how many, one of them, what to do.
    """
    refusals = [(reading, *refusal) for reading in readings for refusal in reading.refusals]
    counted = [
        f"count(*) FILTER (WHERE {bad}), any_value({reading.raw}) FILTER (WHERE {bad})"
        for reading, bad, _ in refusals
    ]
    row = connection.execute(f"SELECT {', '.join(['count(*)', *counted])} FROM {source.scan_sql}").fetchone()
    assert row is not None
    total = int(row[0])
    for (reading, _, advice), count, example in zip(refusals, row[1::2], row[2::2], strict=True):
        if count:
            raise InputError(f"{reading.place}: {count:,} of {total:,} values, such as {example!r}, {advice}")
    return total


def close_to(wanted: str, present: Iterable[str]) -> str:
    """What else a column may be called: the end of a sentence."""
    names = list(present)
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(names)}"


_NUMBER_ADVICE = (
    "are no numbers; write them as 1234.5, or name the mark of fractions (decimal = ',') and the currency "
    "that stands beside them (currency = 'EUR')"
)


def _found(source: Source, name: str) -> str | None:
    if name in source.columns:
        return name
    return next((own for own in source.columns if own.casefold() == name.casefold()), None)


def _unread(value: str, name: str, kind: str, advice: str) -> tuple[str, str]:
    """There is a value, but nothing could be made of it."""
    there = without_blanks_sql(sql_name(name))
    if kind in ("DOUBLE", "FLOAT"):
        there = f"nullif({there}, 'nan'::DOUBLE)"
    if kind == "VARCHAR":
        there = f"CASE WHEN lower(trim({there})) IN {_NO_NUMBER} THEN NULL ELSE {there} END"
    return (f"({there}) IS NOT NULL AND ({value}) IS NULL", advice)


def _number(name: str, kind: str, mapping: NumberColumn) -> str:
    value = sql_name(name)
    if kind != "VARCHAR":
        number = f"TRY_CAST({value} AS DOUBLE)"
    else:
        text = f"trim({value})"
        if mapping.currency is not None:
            word = "".join(f"[{letter}]" if letter != "^" else r"\^" for letter in mapping.currency)
            text = rf"regexp_replace({text}, '^{word}\s*|\s*{word}$', '', 'i')".replace("[']", "['']")
        mark, other = (r"\.", ",") if mapping.decimal == "." else (",", r"\.")
        bare = other.removeprefix("\\")
        grouped = f"'[+-]?[0-9]{{1,3}}({other}[0-9]{{3}})+({mark}[0-9]+)?'"
        ungrouped = f"replace({text}, '{bare}', '')"
        text = f"CASE WHEN regexp_full_match({text}, {grouped}) THEN {ungrouped} ELSE {text} END"
        if mapping.decimal == ",":
            text = f"CASE WHEN contains({text}, '.') THEN NULL ELSE replace({text}, ',', '.') END"
        number = f"TRY_CAST({text} AS DOUBLE)"
    return f"CASE WHEN isfinite({number}) THEN {number} ELSE NULL END"


def _flag(spec: ColumnSpec, mapping: FlagColumn, name: str, kind: str, raw: str, place: str) -> Reading:
    if mapping.yes is not None:
        words = ", ".join(sql_text(word) for word in mapping.yes)
        return Reading(spec.name, f"CAST(coalesce({raw} IN ({words}), false) AS TINYINT)", raw, place)
    if mapping.at_least is not None:
        number = _number(name, kind, NumberColumn(column=name))
        flag = f"CAST({number} >= {mapping.at_least!r} AS TINYINT)"
        return Reading(spec.name, flag, raw, place, [_unread(flag, name, kind, _NUMBER_ADVICE)])
    word = f"lower(trim({raw}))"
    flag = (
        f"CAST(CASE WHEN {word} IN ('1', 'true', '1.0') THEN 1 WHEN {word} IN ('0', 'false', '0.0') THEN 0 "
        "END AS TINYINT)"
    )
    advice = (
        "are neither 0 nor 1; say which numbers are clicks (at_least = 4, say, for ratings) or which words "
        "(yes = ['clicked'])"
    )
    return Reading(spec.name, flag, raw, place, [_unread(flag, name, kind, advice)])


def _grade(spec: ColumnSpec, mapping: GradeColumn, name: str, kind: str, raw: str, place: str) -> Reading:
    if mapping.values is not None:
        cases = " ".join(f"WHEN {sql_text(word)} THEN {grade}" for word, grade in mapping.values.items())
        grade = f"CAST(CASE {raw} {cases} END AS TINYINT)"
        words = ", ".join(map(repr, mapping.values))
        return Reading(spec.name, grade, raw, place, [_unread(grade, name, kind, f"are none of {words}")])
    number = _number(name, kind, NumberColumn(column=name))
    if mapping.limits is not None:
        low, high = mapping.limits
        grade = f"CAST(({number} >= {low!r})::TINYINT + ({number} >= {high!r})::TINYINT AS TINYINT)"
        return Reading(spec.name, grade, raw, place, [_unread(grade, name, kind, _NUMBER_ADVICE)])
    grade = f"CASE WHEN {number} IN (0, 1, 2) THEN CAST({number} AS TINYINT) END"
    advice = (
        "are none of 0 (irrelevant), 1 (moderate), 2 (high); map words (values = { Exact = 2 }) or numbers "
        "(limits = [1.75, 2.5])"
    )
    return Reading(spec.name, grade, raw, place, [_unread(grade, name, kind, advice)])


def _time(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    spec: ColumnSpec,
    mapping: TimeColumn,
    name: str,
    place: str,
) -> Reading:
    value, kind = sql_name(name), source.columns[name]
    raw = f"CAST({without_blanks_sql(value)} AS VARCHAR)"
    moment, local = "NULL::TIMESTAMPTZ", "NULL::TIMESTAMP"
    if kind == "TIMESTAMP WITH TIME ZONE":
        moment = value
    elif kind.startswith("TIMESTAMP") or kind == "DATE":
        local = f"CAST({value} AS TIMESTAMP)"
    elif mapping.unit is not None:
        factor = _UNITS[mapping.unit]
        scaled = (
            f"(CASE WHEN regexp_full_match({raw}, '-?[0-9]+') THEN TRY_CAST({raw} AS HUGEINT) * {factor} "
            f"ELSE TRY_CAST(round(TRY_CAST({raw} AS DOUBLE) * {factor}) AS HUGEINT) END)"
        )
        whole = f"TRY_CAST({scaled}{' // 1000' if mapping.unit == 'ns' else ''} AS BIGINT)"
        moment = f"TRY(make_timestamptz({whole}))"
    elif kind != "VARCHAR":
        raise InputError(
            f"{place} holds {kind}, which is no time; say what its numbers count since 1970 (unit = 's', "
            "'ms', 'us' or 'ns')"
        )
    elif mapping.format is not None:
        parsed = f"try_strptime(trim({raw}), {sql_text(mapping.format)})"
        if "%z" in mapping.format:
            moment = parsed
        else:
            local = parsed
    else:
        text, offset = f"trim({raw})", f"regexp_matches(trim({raw}), '{_OFFSET}')"
        moment = f"CASE WHEN {offset} THEN TRY_CAST({text} AS TIMESTAMPTZ) END"
        local = f"CASE WHEN NOT {offset} THEN TRY_CAST({text} AS TIMESTAMP) END"
    how = f"the format {mapping.format!r}" if mapping.format else "ISO 8601"
    if mapping.unit is not None:
        how = f"{mapping.unit} since 1970"
    unread = (
        f"{raw} IS NOT NULL AND {moment} IS NULL AND {local} IS NULL",
        f"are no times in {how}; say how they are written (format = '%d.%m.%Y %H:%M' or unit = 's')",
    )
    naive, example, first, last = _one(
        connection,
        f"SELECT count({local}), any_value({raw}) FILTER (WHERE {local} IS NOT NULL), min({local}), "
        f"max({local}) FROM {source.scan_sql}",
    )
    if not naive:
        return Reading(spec.name, moment, raw, place, [unread])
    if mapping.zone is None:
        raise InputError(
            f"{place}: {naive:,} times, such as {example!r}, have no offset from UTC, so the moment is not "
            "known; state the zone of the clock that wrote them in the mapping (zone = 'Europe/Berlin', or "
            "'UTC')"
        )
    times = LocalTimes.between(mapping.zone, first, last)
    refusals = [
        unread,
        (times.skipped_sql(local), f"never showed on a clock in {mapping.zone}; is the zone right?"),
    ]
    if mapping.ambiguous == "refuse":
        refusals.append(
            (
                times.repeated_sql(local),
                f"occur twice in {mapping.zone}, where the clock was put back; say which of the two moments "
                "is meant (ambiguous = 'earlier' or 'later'), or export in UTC",
            )
        )
    meant = times.moment_sql(local, ambiguous="later" if mapping.ambiguous == "later" else "earlier")
    sql = f"coalesce({moment}, {meant})"
    return Reading(spec.name, sql, raw, place, refusals)


def _one(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = connection.execute(sql).fetchone()
    assert row is not None
    return row
