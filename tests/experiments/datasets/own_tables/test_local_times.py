"""Local times become the moments that Python's own clock says, also where an hour occurs twice or never."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import duckdb
import pytest

from experiments.datasets.own_tables.local_times import LocalTimes

#: Zones with changes of an hour, half an hour, two hours, three hours, a day, in both hemispheres, and none.
ZONES = [
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Antarctica/Troll",
    "Antarctica/Casey",
    "Pacific/Apia",
    "Africa/Casablanca",
    "Asia/Kolkata",
    "UTC",
]


def by_python(local: datetime, zone: str, fold: int) -> datetime:
    """The moment of a local time, by one value at a time; `fold` 1 is the second of two."""
    return local.replace(tzinfo=ZoneInfo(zone), fold=fold).astimezone(UTC)


def kind(local: datetime, zone: str) -> str:
    """Once, twice or never: whether the moments of both folds differ and lead back to the local time."""
    first, second = (by_python(local, zone, fold) for fold in (0, 1))
    if first == second:
        return "once"
    back = first.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    return "twice" if back == local else "never"


@pytest.mark.parametrize("zone", ZONES)
def test_local_times_become_the_moments_that_python_says(zone):
    first, last = datetime(2009, 1, 1), datetime(2012, 12, 31)
    times = LocalTimes.between(zone, first, last)
    locals_: list[datetime] = [
        first + timedelta(days=9 * number, minutes=97 * number) for number in range(150)
    ]
    for change in times.changes:
        for border in (change.first, change.end):
            locals_ += [border + timedelta(minutes=minutes) for minutes in (-31, -1, 0, 1, 29, 61)]
            locals_ += [border - timedelta(microseconds=1), border + timedelta(seconds=1)]
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("CREATE TABLE t (l TIMESTAMP)")
        connection.executemany("INSERT INTO t VALUES (?)", [(local,) for local in locals_])
        rows = connection.execute(
            f"SELECT l, epoch_us({times.moment_sql('l', ambiguous='earlier')}), "
            f"epoch_us({times.moment_sql('l', ambiguous='later')}), "
            f"{times.repeated_sql('l')}, {times.skipped_sql('l')} FROM t"
        ).fetchall()
    kinds = set()
    for local, earlier, later, repeated, skipped in rows:
        expected = kind(local, zone)
        kinds.add(expected)
        assert (repeated, skipped) == (expected == "twice", expected == "never"), local
        if expected != "never":
            micros = [
                (by_python(local, zone, fold) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
                for fold in (0, 1)
            ]
            assert [earlier, later] == micros, local
    assert len(kinds) == (3 if zone not in ("Asia/Kolkata", "UTC") else 1)


def test_the_end_of_summer_time_in_berlin_repeats_the_hour_from_two(tmp_path):
    (change,) = LocalTimes.between("Europe/Berlin", datetime(2024, 10, 20), datetime(2024, 10, 30)).changes
    assert (change.first, change.end) == (datetime(2024, 10, 27, 2), datetime(2024, 10, 27, 3))
    assert change.repeats
