"""What one worker serves, counted in the bins of its model's training record, by hour and by day."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from serving.drift.count_files import KINDS, Kind, about_counts, remove_old, window_at, write_counts
from serving.drift.tally import GROUPS, Tally, Values, group_of
from serving.drift.watched import Reader
from serving.package.manifest import PackageManifest
from serving.package.training_record import TrainingRecord
from serving.wire.reply import ScoreReply

#: Requests a second that a worker counts at most: an hour then has up to 18,000, and none of them waits.
MOST_A_SECOND = 5.0
#: Candidates after which what was read is put into bins, many at once.
_BUFFERED = 4_096


class LiveCounts:
    """Counts only: no ids, no queries. Threads may share it.

    Of more than `most_a_second` requests some are left out, evenly over time.
    """

    def __init__(
        self,
        record: TrainingRecord,
        reader: Reader,
        *,
        model_version: str,
        most_a_second: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.record = record
        self.model_version = model_version
        self._reader = reader
        self._clock = clock
        self._pause_s = 1 / (most_a_second or MOST_A_SECOND)
        self._next_s = 0.0
        self._nobody = 0
        self._waiting: list[Values] = []
        self._waiting_candidates = 0
        self._windows: dict[Kind, str] = {}
        self._tallies: dict[Kind, Tally] = {}
        #: Windows that ended and are not on disk yet.
        self._ended: list[tuple[str, Tally]] = []
        self._changing = threading.Lock()
        # A process id alone comes again.
        self._worker = f"{os.getpid()}-{int(clock() * 1e3)}"

    @classmethod
    def of_package(cls, manifest: PackageManifest) -> Self | None:
        """Empty counts for a package; None if it was made before requests were counted.

        Raises:
            ValueError: the training record has columns that the model does not read.
        """
        record = manifest.training_record
        if record is None:
            return None
        reader = Reader(
            record.columns,
            dense_columns=manifest.dense_columns,
            sparse_columns=tuple(manifest.sparse_rows),
        )
        return cls(record, reader, model_version=manifest.model_version)

    def count(self, reply: ScoreReply, user_id: int | str | None) -> None:
        """Add one request, unless others of this moment were counted."""
        now_s = self._clock()
        if reply.rows is None or now_s < self._next_s:
            return
        self._next_s = now_s + self._pause_s
        if user_id is None:
            self._nobody = (self._nobody + 1) % GROUPS
        values = self._reader.values(reply, group=self._nobody if user_id is None else group_of(user_id))
        with self._changing:
            self._turn(now_s)
            self._waiting.append(values)
            self._waiting_candidates += len(values.request_of_N)
            if self._waiting_candidates >= _BUFFERED:
                self._put_into_bins()

    def write(self, folder: Path) -> None:
        """Write the windows of now, and those that have ended since; the oldest on disk go."""
        with self._changing:
            self._turn(self._clock())
            self._put_into_bins()
            ended, self._ended = self._ended, []
            running = [(self._windows[kind], tally) for kind, tally in self._tallies.items()]
            for window, tally in [*ended, *running]:
                if tally.requests:
                    about = about_counts(self.record, self.model_version)
                    write_counts(folder, window, self._worker, tally, about=about)
        if ended:
            remove_old(folder)

    def _turn(self, now_s: float) -> None:
        """Begin windows where the ones before have ended."""
        for kind in KINDS:
            window = window_at(kind, now_s)
            if self._windows.get(kind) != window:
                self._put_into_bins()
                if kind in self._tallies:
                    self._ended.append((self._windows[kind], self._tallies[kind]))
                self._windows[kind], self._tallies[kind] = window, Tally(self.record.columns)

    def _put_into_bins(self) -> None:
        if self._waiting:
            values = Values.joined(self._waiting)
            for tally in self._tallies.values():
                tally.add(values)
            self._waiting, self._waiting_candidates = [], 0
