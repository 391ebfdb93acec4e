"""Local times to moments, by the time zone database, and which of them are none or two.

When summer time ends an hour of local times occurs twice; when it begins one does not occur at all. Between
two changes of its offset a zone is a constant shift, so a column of local times becomes moments by comparing
it with the few changes in its range.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

_STEP = timedelta(days=1)


@dataclass(frozen=True)
class OffsetChange:
    """A change of a zone's offset; local times from `first` to before `end` occur twice or never."""

    before: timedelta
    after: timedelta
    first: datetime
    end: datetime

    @property
    def repeats(self) -> bool:
        """Whether local times in [first, end) occur twice; else they never occur."""
        return self.after < self.before


@dataclass(frozen=True)
class LocalTimes:
    """One zone's offsets over a range of local times; made by `LocalTimes.between`."""

    offset: timedelta
    changes: tuple[OffsetChange, ...]

    @classmethod
    def between(cls, zone: str, first: datetime, last: datetime) -> "LocalTimes":
        """The zone's offset and its changes from a day before `first` to a day after `last`, both naive."""
        place = ZoneInfo(zone)
        moment, end = first.replace(tzinfo=UTC) - 2 * _STEP, last.replace(tzinfo=UTC) + 2 * _STEP
        start = _offset(place, moment)
        changes = []
        while moment < end:
            following = moment + _STEP
            if _offset(place, following) != _offset(place, moment):
                changes.append(_change(place, moment, following))
            moment = following
        return cls(start, tuple(changes))

    def moment_sql(self, local: str, *, ambiguous: Literal["earlier", "later"]) -> str:
        """A DuckDB expression: TIMESTAMPTZ of a TIMESTAMP of local time, in a session whose zone is UTC."""
        offset_us = str(_us(self.offset))
        for change in self.changes:
            # a repeated time is earlier by the offset before the change
            border = change.end if change.repeats and ambiguous == "earlier" else change.first
            offset_us = f"if({local} >= {_literal(border)}, {_us(change.after)}, {offset_us})"
        return f"CAST({local} - to_microseconds({offset_us}) AS TIMESTAMPTZ)"

    def repeated_sql(self, local: str) -> str:
        """A DuckDB condition: the local time occurs twice."""
        return _within(local, [change for change in self.changes if change.repeats])

    def skipped_sql(self, local: str) -> str:
        """A DuckDB condition: no clock of that zone ever showed the local time."""
        return _within(local, [change for change in self.changes if not change.repeats])


def _offset(zone: ZoneInfo, moment: datetime) -> timedelta:
    found = moment.astimezone(zone).utcoffset()
    assert found is not None
    return found


def _change(zone: ZoneInfo, low: datetime, high: datetime) -> OffsetChange:
    """The change between two moments, to the second."""
    before, after = _offset(zone, low), _offset(zone, high)
    early, late = 0, (high - low) // timedelta(seconds=1)
    while late - early > 1:
        middle = (early + late) // 2
        if _offset(zone, low + timedelta(seconds=middle)) == before:
            early = middle
        else:
            late = middle
    at = (low + timedelta(seconds=late)).replace(tzinfo=None)
    return OffsetChange(before, after, at + min(before, after), at + max(before, after))


def _within(local: str, changes: Sequence[OffsetChange]) -> str:
    parts = [
        f"({local} >= {_literal(change.first)} AND {local} < {_literal(change.end)})" for change in changes
    ]
    return f"({' OR '.join(parts)})" if parts else "false"


def _literal(moment: datetime) -> str:
    return f"TIMESTAMP '{moment:%Y-%m-%d %H:%M:%S}'"


def _us(offset: timedelta) -> int:
    return offset // timedelta(microseconds=1)
