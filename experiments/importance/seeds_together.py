"""Seeds measured at the same time: each process takes some, and leaves what it finds as parts on disk."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from experiments.importance.measure import measure
from experiments.importance.run_parts import MeasureOptions
from experiments.runtime.job_pool import Job, JobProgress, run_jobs
from features.progress import Progress


def measure_parts(
    folders: Sequence[Path],
    options: MeasureOptions,
    *,
    parts: Path,
    scratch: Path,
    processes: int,
    threads: int,
    progress: Progress,
) -> None:
    """Fill `parts` with what `measure` needs of each run, but for the correlated pairs, which need all runs.

    What fails is left to `measure`, which computes what it does not find, or says what is wrong.
    """
    shares = [folders[first::processes] for first in range(min(processes, len(folders)))]
    jobs = [
        Job(
            name=share[0].name,
            run=partial(_measure, share, replace(options, pairs=0), parts, scratch),
            folder=parts / share[0].name,
        )
        for share in shares
    ]

    def tell(job: JobProgress) -> None:
        if not job.ended:
            progress(job.stage, job.done, job.total)

    run_jobs(jobs, processes=len(jobs), threads=threads, on_progress=tell)


def _measure(
    folders: Sequence[Path], options: MeasureOptions, parts: Path, scratch: Path, tell: Progress
) -> None:
    measure(folders, options, command="", parts=parts, scratch=scratch, progress=tell)
