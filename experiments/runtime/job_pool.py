"""Jobs that wait for one another, in processes beside this one, a few at the same time.

A process takes one job after another, since starting one takes seconds. When it dies (out of memory,
`kill -9`), only the job that it had fails.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from experiments.runtime.quiet import quiet_imports
from features.artifacts import BusyError
from features.progress import Progress


@dataclass(frozen=True)
class Job:
    """Work to do: `run`, `claim` and what is bound to them must be picklable."""

    name: str
    run: Callable[[Progress], None]
    #: Where `failure.txt` goes.
    folder: Path
    #: Names of the jobs that must have ended well before.
    needs: tuple[str, ...] = ()
    #: Held while the job runs; one that raises a BusyError leaves the folder to who is at work in it.
    claim: Callable[[], AbstractContextManager[None]] = nullcontext


@dataclass(frozen=True)
class JobProgress:
    """Where a job is; `ended` with its last message, which has the `error` if it did not finish."""

    name: str
    stage: str = ""
    done: int = 0
    total: int = 0
    ended: bool = False
    error: str | None = None


OnProgress = Callable[[JobProgress], None]

DIED = "its process died (out of memory?); run the same command again to resume"
BUSY = "another process is at work on it"


@dataclass(frozen=True, eq=False)
class _Worker:
    process: SpawnProcess
    messages: Connection


def run_jobs(
    jobs: Sequence[Job], *, processes: int, threads: int = 1, on_progress: OnProgress | None = None
) -> dict[str, str | None]:
    """Run the jobs in their order, but none before those it needs; a failed one stops only who needs it.

    Processes end with this one, also when it is killed.

    Args:
        threads: that each process may use.

    Returns:
        What went wrong with each job, None where nothing did; BUSY where its claim was taken.

    Raises:
        ValueError: two jobs have one name, or a job needs one that does not come before it.
    """
    _check(jobs)
    context = multiprocessing.get_context("spawn")
    tell = on_progress or (lambda _: None)
    errors: dict[str, str | None] = {}
    waiting, running, idle = list(jobs), dict[_Worker, Job](), list[_Worker]()
    try:
        while waiting or running:
            for job in [job for job in waiting if any(errors.get(name) for name in job.needs)]:
                culprit = next(name for name in job.needs if errors.get(name))
                errors[job.name] = f"it needs {culprit}, which failed: {errors[culprit]}"
                waiting.remove(job)
                tell(JobProgress(job.name, ended=True, error=errors[job.name]))
            ready = [job for job in waiting if all(errors.get(name, DIED) is None for name in job.needs)]
            idle = [worker for worker in idle if worker.process.is_alive()]
            for job in ready[: max(0, processes - len(running))]:
                waiting.remove(job)
                worker = idle.pop() if idle else _start(context, threads)
                running[worker] = job
                worker.messages.send(job)
            if running:  # none when the last jobs all needed one that failed; waiting for nothing never ends
                wait([worker.messages for worker in running])
            for worker in [worker for worker in running if worker.messages.poll()]:
                try:
                    message = worker.messages.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    message = _Ended(DIED)
                if isinstance(message, JobProgress):
                    tell(message)
                    continue
                job = running.pop(worker)
                idle.append(worker)
                errors[job.name] = message.error
                tell(JobProgress(job.name, ended=True, error=message.error))
    finally:
        for worker in (*running, *idle):
            worker.process.terminate()
            worker.process.join()
            worker.messages.close()
    return {job.name: errors[job.name] for job in jobs}


def run_job(job: Job, progress: Progress) -> str | None:
    """Run a job in this process.

    Returns:
        What went wrong, also in `failure.txt`; None if nothing did. BUSY, and nothing is written, where
        another process is at work on it.
    """
    failure = job.folder / "failure.txt"
    try:
        with job.claim():
            failure.unlink(missing_ok=True)
            try:
                job.run(progress)
            except Exception as problem:  # reported by name; the other jobs go on
                job.folder.mkdir(parents=True, exist_ok=True)
                failure.write_text(traceback.format_exc(), encoding="utf-8")
                return f"{type(problem).__name__}: {problem}"
    except BusyError:
        return BUSY
    return None


def prepare_process(threads: int) -> None:
    """What a process does before its first job; torch and Arrow share the budget of `threads`.

    From now on it ends when its parent does, also when that is killed; if it outlived it, it would go on
    writing the folders that the next call resumes. Ctrl-C reaches both, and is left to the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_wait_for_parent, daemon=True).start()
    quiet_imports()
    import pyarrow as pa
    import torch

    torch.set_num_threads(threads)
    pa.set_cpu_count(threads)


@dataclass(frozen=True)
class _Ended:
    error: str | None


def _check(jobs: Sequence[Job]) -> None:
    seen: set[str] = set()
    for job in jobs:
        if job.name in seen or not seen.issuperset(job.needs):
            raise ValueError(
                f"jobs must have different names and come after those they need; {job.name!r} is there twice "
                f"or needs one of {list(job.needs)} too early"
            )
        seen.add(job.name)


def _start(context: multiprocessing.context.SpawnContext, threads: int) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, threads))
    process.start()
    theirs.close()  # so that the pipe ends when the process does
    return _Worker(process, ours)


def _work(messages: Connection, threads: int) -> None:
    prepare_process(threads)
    while True:  # until it is terminated
        job: Job = messages.recv()

        def tell(stage: str, done: int, total: int, name: str = job.name) -> None:
            messages.send(JobProgress(name, stage, done, total))

        messages.send(_Ended(run_job(job, tell)))


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
