"""Runs of a sweep that train on cores of their own while this process is busy with something else.

The sweep that comes later finds them finished: they have its configs, its folders and one thread, as its own.
"""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from experiments.runtime.job_pool import prepare_process, run_job
from experiments.sweeps.sweep import PlannedRun, job_of, processes_of
from features.machine import usable_cores
from features.progress import silent
from ranking.run import is_finished


@contextmanager
def trained_meanwhile(
    runs: Sequence[PlannedRun], *, processes: int | None, log: Path
) -> Iterator[list[PlannedRun]]:
    """Train those of `runs` that are not finished, one after the other in one process, while the block runs.

    Torch in this process has the other cores for as long. At the end of the block the training stops where it
    is. What was stopped or failed is left to the sweep, which goes on with it and reports it.

    Args:
        processes: of the sweep that comes later, as given to `execute_sweep`.
        log: a line for each run, and all that its process has to say.

    Yields:
        The runs that train: none if all are finished, or without a second core or process.
    """
    import torch

    waiting = [run for run in runs if not is_finished(run.folder)]
    left = usable_cores() - 1
    if processes_of(processes) < 2 or left < 1 or not waiting:
        yield []
        return
    before = torch.get_num_threads()
    process = multiprocessing.get_context("spawn").Process(target=_train, args=(waiting, log), daemon=True)
    process.start()
    torch.set_num_threads(min(before, left))
    try:
        yield waiting
    finally:
        torch.set_num_threads(before)
        process.terminate()
        process.join()


def _train(runs: Sequence[PlannedRun], log: Path) -> None:
    with log.open("a", encoding="utf-8") as file:
        for stream in (1, 2):  # the terminal belongs to the parent
            os.dup2(file.fileno(), stream)
    prepare_process(threads=1)
    for run in runs:
        error = run_job(job_of(run), silent)
        print(f"{run.folder}: {error or 'finished'}", flush=True)
