"""Reports of windows: all that are on disk for `dashclip drift`, the newest finished ones for the metrics.

Verdicts are of finished windows only: whoever looks at a running one every minute finds chance in the end.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.drift.comparison import FALSE_ALARMS, Compared, compare, moved
from serving.drift.count_files import (
    KINDS,
    Counted,
    Kind,
    is_over,
    kind_of,
    read_counts,
    windows_on_disk,
)
from serving.drift.tally import Tally
from serving.package.training_record import TrainingRecord


@dataclass(frozen=True)
class WindowReport:
    """One window compared; `is_over` is whether its verdicts count."""

    window: str
    requests: int
    candidates: int
    is_over: bool
    columns: tuple[Compared, ...]

    @property
    def alarms(self) -> list[Compared]:
        """Columns that moved; none while the window lasts."""
        return moved(self.columns) if self.is_over else []


def report_of(record: TrainingRecord, window: str, tally: Tally, *, now_s: float) -> WindowReport:
    """One window against the training record."""
    compared = compare(record, tally, false_alarms=FALSE_ALARMS[kind_of(window)])
    over = is_over(window, now_s)
    return WindowReport(window, tally.requests, tally.candidates, over, tuple(compared))


def reports(record: TrainingRecord, counted: Counted, *, now_s: float) -> list[WindowReport]:
    """Of all windows, the newest first, days before hours."""
    windows = sorted(counted.windows, key=lambda window: (kind_of(window) == "day", window), reverse=True)
    return [report_of(record, window, counted.windows[window], now_s=now_s) for window in windows]


class DriftWatch:
    """The newest finished hour and day of all workers that write into one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[Kind, WindowReport] = {}

    def look(
        self, record: TrainingRecord, *, model_version: str, now_s: float
    ) -> Mapping[Kind, WindowReport]:
        """By kind; without one that has no finished window. Costs a listing if nothing has ended.

        Raises:
            ValueError: a file is damaged.
        """
        for kind in KINDS:
            over = [
                window
                for window in windows_on_disk(self._folder)
                if kind_of(window) == kind and is_over(window, now_s)
            ]
            if not over or (kind in self._seen and self._seen[kind].window == over[-1]):
                continue
            counted = read_counts(self._folder, record, model_version=model_version, windows=[over[-1]])
            tally = counted.windows.get(over[-1], Tally(record.columns))
            self._seen[kind] = report_of(record, over[-1], tally, now_s=now_s)
        return self._seen
