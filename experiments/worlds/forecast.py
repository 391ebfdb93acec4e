"""How long the parts of worlds that are left will take, from how long those of their kind took."""

import time
from collections.abc import Callable, Sequence

from experiments.runtime.job_pool import Job, JobProgress

#: Seconds of one thread that a part takes at size small; only until the first one has been measured here.
FIRST_GUESS_S = {"data": 120.0, "encoders": 480.0, "vectors": 60.0, "table 1": 90.0, "ranker": 25.0}


class Forecast:
    """How long the jobs that are left will take, from how long those of their kind took."""

    def __init__(
        self, jobs: Sequence[Job], *, processes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._left = {job.name for job in jobs}
        self._processes = processes
        self._clock = clock
        self._began: dict[str, float] = {}
        self._took: dict[str, list[float]] = {}

    def __call__(self, job: JobProgress) -> float:
        """Hear of a job; seconds that all of them still need."""
        if not job.ended:
            self._began.setdefault(job.name, self._clock())
        elif job.name in self._left:
            self._left.remove(job.name)
            if job.error is None and job.name in self._began:
                spent = self._clock() - self._began[job.name]
                self._took.setdefault(kind_of(job.name), []).append(spent)
        return self.left_s()

    def left_s(self) -> float:
        """Seconds that the jobs still need, over all processes."""
        return sum(self._expected(name) for name in self._left) / self._processes

    def _expected(self, name: str) -> float:
        took = self._took.get(kind_of(name))
        whole = sum(took) / len(took) if took else FIRST_GUESS_S[kind_of(name)]
        began = self._began.get(name)
        return whole if began is None else max(0.1 * whole, whole - (self._clock() - began))


def kind_of(name: str) -> str:
    """Kind of a job: that of "world 3 mixed: ranker dcn seed 1" is "ranker"."""
    part = name.partition(": ")[2]
    return next(kind for kind in FIRST_GUESS_S if part.startswith(kind))
