"""Jobs that wait for one another, each in a process of its own, a few at the same time.

A process of its own gives its memory back, and when it dies (out of memory, `kill -9`) no other job notices.
"""

import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from experiments.runtime.quiet import quiet_imports

#: Stage of a job, how far it is, out of how much.
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Job:
    """Work to do: `run` and what is bound to it must be picklable."""

    name: str
    run: Callable[[Tell], None]
    #: Where `failure.txt` goes.
    folder: Path
    #: Names of the jobs that must have ended well before.
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobProgress:
    """Where a job is; `ended` with its last message, whether it finished or failed."""

    name: str
    stage: str = ""
    done: int = 0
    total: int = 0
    ended: bool = False


OnProgress = Callable[[JobProgress], None]

DIED = "its process died (out of memory?); run the same command again to resume"


@dataclass(frozen=True)
class _Running:
    job: Job
    process: SpawnProcess
    messages: Connection


def run_jobs(
    jobs: Sequence[Job], *, processes: int, threads: int = 1, on_progress: OnProgress | None = None
) -> dict[str, str | None]:
    """Run the jobs in their order, but none before those it needs; a failed one stops only who needs it.

    Processes end with this one, also when it is killed.

    Args:
        threads: that torch may use in each process.

    Returns:
        What went wrong with each job, None where nothing did.

    Raises:
        ValueError: two jobs have one name, or a job needs one that does not come before it.
    """
    _check(jobs)
    context = multiprocessing.get_context("spawn")
    tell = on_progress or (lambda _: None)
    errors: dict[str, str | None] = {}
    waiting, running = list(jobs), list[_Running]()
    try:
        while waiting or running:
            for job in [job for job in waiting if any(errors.get(name) for name in job.needs)]:
                culprit = next(name for name in job.needs if errors.get(name))
                errors[job.name] = f"it needs {culprit}, which failed: {errors[culprit]}"
                waiting.remove(job)
                tell(JobProgress(job.name, ended=True))
            ready = [job for job in waiting if all(errors.get(name, DIED) is None for name in job.needs)]
            for job in ready[: max(0, processes - len(running))]:
                waiting.remove(job)
                running.append(_start(context, job, threads))
            if running:  # none when the last jobs all needed one that failed; waiting for nothing never ends
                wait([one.messages for one in running])
            for one in [one for one in running if one.messages.poll()]:
                try:
                    message = one.messages.recv()
                except (EOFError, OSError):
                    message = _Ended(DIED)
                if isinstance(message, JobProgress):
                    tell(message)
                    continue
                one.process.join()
                one.messages.close()
                running.remove(one)
                errors[one.job.name] = message.error
                tell(JobProgress(one.job.name, ended=True))
    finally:
        for one in running:
            one.process.terminate()
            one.process.join()
    return {job.name: errors[job.name] for job in jobs}


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


def _start(context: multiprocessing.context.SpawnContext, job: Job, threads: int) -> _Running:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(job, sender, threads), name=job.name)
    process.start()
    sender.close()  # so that the pipe ends when the process does
    return _Running(job, process, receiver)


def _run(job: Job, messages: Connection, threads: int) -> None:
    end_with_parent()
    quiet_imports()
    import torch

    torch.set_num_threads(threads)

    def tell(stage: str, done: int, total: int) -> None:
        messages.send(JobProgress(job.name, stage, done, total))

    failure, error = job.folder / "failure.txt", None
    failure.unlink(missing_ok=True)
    try:
        job.run(tell)
    except Exception as problem:  # reported by name; the other jobs go on
        job.folder.mkdir(parents=True, exist_ok=True)
        failure.write_text(traceback.format_exc(), encoding="utf-8")
        error = f"{type(problem).__name__}: {problem}"
    messages.send(_Ended(error))


def end_with_parent() -> None:
    """From now on this process ends when the one that started it does, also when that is killed.

    If it outlived it, it would go on writing the folders that the next call resumes.
    """
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
