"""An estimate and its resamples as an interval, as JSON and as a cell of a Markdown table.

Shapes: R values, the estimate first and then its resamples.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from experiments.statistics.intervals import Interval, percentile_interval


def interval_of(values_R: npt.NDArray[np.float64]) -> Interval:
    """95 % interval of the first value from the others."""
    return percentile_interval(float(values_R[0]), values_R[1:])


def flat(intervals: Mapping[str, Interval]) -> dict[str, float | None]:
    """{"a": Interval} becomes {"a": mean, "a_low": low, "a_high": high}."""
    found: dict[str, float | None] = {}
    for name, interval in intervals.items():
        found |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return found


def cell(interval: Interval) -> str:
    """As "0.7000 (0.6900 … 0.7100)"; a value without limits stands alone."""
    if interval.low is None or interval.high is None:
        return f"{interval.mean:.4f}"
    return f"{interval.mean:.4f} ({interval.low:.4f} … {interval.high:.4f})"
