"""Parts of an impression's UTC time, the same when features are built and when a request is served.

Shapes: N impressions.
"""

from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

DAY_US = 86_400_000_000
_HOUR_US = 3_600_000_000

#: How many values each part of the time has, from 0.
VALUES_OF_PART = {"hour_of_day": 24, "day_of_week": 7}


def timestamp_part(part: str, time_us_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """hour_of_day 0..23 or day_of_week 0..6 from Monday, in UTC. 1970-01-01 was a Thursday, 3."""
    if part == "hour_of_day":
        return (time_us_N % DAY_US // _HOUR_US).astype(np.int32)
    assert part == "day_of_week"
    return ((time_us_N // DAY_US + 3) % 7).astype(np.int32)


def timestamp_part_of(part: str, time_us: int) -> int:
    """`timestamp_part` of one time."""
    assert part in VALUES_OF_PART
    return time_us % DAY_US // _HOUR_US if part == "hour_of_day" else (time_us // DAY_US + 3) % 7


def iso(time_us: int) -> str:
    """ISO 8601 in UTC: 0 gives 1970-01-01T00:00:00+00:00."""
    seconds, microsecond = divmod(time_us, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=microsecond).isoformat()
