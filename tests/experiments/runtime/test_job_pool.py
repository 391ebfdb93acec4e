"""Jobs in processes of their own: order, failures that stay alone, and an end with the parent."""

import json
import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

import experiments.runtime.job_pool
from experiments.runtime.job_pool import BUSY, DIED, Job, JobProgress, run_jobs
from features.artifacts import BusyError, file_lock
from features.progress import Progress


def note(path: Path, text: str, tell: Progress) -> None:
    tell("noting", 1, 2)
    with path.open("a") as file:
        file.write(f"{text}\n")


def fail(tell: Progress) -> None:
    raise ValueError("no such luck")


def die(tell: Progress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def note_process(path: Path, tell: Progress) -> None:
    note(path, str(os.getpid()), tell)


def note_threads(path: Path, tell: Progress) -> None:
    import pyarrow as pa
    import torch

    path.write_text(json.dumps([torch.get_num_threads(), pa.cpu_count()]))


def claimed(path: Path) -> AbstractContextManager[None]:
    return file_lock(path, busy=BusyError("taken"))


def say_and_wait(path: Path, tell: Progress) -> None:
    tell("waiting", os.getpid(), 0)
    signal.pause()


def test_a_failed_or_dead_job_stops_only_those_that_need_it(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    said: list[JobProgress] = []
    errors = run_jobs(
        [
            Job("dead", die, tmp_path / "dead"),
            Job("failed", fail, tmp_path / "failed"),
            Job("first", partial(note, notes, "first"), tmp_path / "first"),
            Job("after failed", partial(note, notes, "never"), tmp_path, needs=("first", "failed")),
            Job("after that", partial(note, notes, "never"), tmp_path, needs=("after failed",)),
            Job("second", partial(note, notes, "second"), tmp_path / "second", needs=("first",)),
        ],
        processes=2,
        on_progress=said.append,
    )
    assert notes.read_text() == "first\nsecond\n"
    assert errors == {
        "dead": DIED,
        "failed": "ValueError: no such luck",
        "first": None,
        "after failed": "it needs failed, which failed: ValueError: no such luck",
        "after that": "it needs after failed, which failed: it needs failed, which failed: ValueError: no "
        "such luck",
        "second": None,
    }
    assert "no such luck" in (tmp_path / "failed" / "failure.txt").read_text()
    assert not (tmp_path / "first").exists()
    assert JobProgress("first", "noting", 1, 2) in said
    assert {one.name: one.error for one in said if one.ended} == errors
    assert len([one for one in said if one.ended]) == len(errors)


@pytest.mark.parametrize("threads", [1, 2])
def test_torch_and_arrow_keep_to_the_threads_of_a_process(tmp_path: Path, threads: int) -> None:
    noted = tmp_path / "threads"
    run_jobs([Job("notes", partial(note_threads, noted), tmp_path)], processes=1, threads=threads)
    assert json.loads(noted.read_text()) == [threads, threads]


def test_a_job_whose_claim_is_taken_touches_nothing_and_says_so(tmp_path: Path) -> None:
    notes, lock, folder = tmp_path / "notes", tmp_path / "lock", tmp_path / "taken"
    folder.mkdir()
    (folder / "failure.txt").write_text("of an earlier attempt")
    jobs = [
        Job("taken", partial(note, notes, "never"), folder, claim=partial(claimed, lock)),
        Job("free", partial(note, notes, "free"), tmp_path / "free", claim=partial(claimed, tmp_path / "l")),
    ]
    with claimed(lock):
        assert run_jobs(jobs, processes=1) == {"taken": BUSY, "free": None}
    assert notes.read_text() == "free\n"
    assert (folder / "failure.txt").read_text() == "of an earlier attempt"


def test_a_process_takes_one_job_after_another_until_it_dies(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    noting = partial(note_process, notes)
    jobs = [Job(name, die if name == "dead" else noting, tmp_path) for name in ("a", "b", "dead", "c", "d")]
    errors = run_jobs(jobs, processes=1)
    assert errors == {"a": None, "b": None, "dead": DIED, "c": None, "d": None}
    a, b, c, d = notes.read_text().split()
    assert a == b != c == d


def test_the_end_is_reached_when_the_last_jobs_all_need_one_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = experiments.runtime.job_pool.wait

    def waits(connections: list[Connection]) -> list[object]:
        assert connections, "waits for nothing, hence for ever"
        return list(wait(connections))

    monkeypatch.setattr(experiments.runtime.job_pool, "wait", waits)
    errors = run_jobs(
        [
            Job("failed", fail, tmp_path / "failed"),
            Job("after it", fail, tmp_path, needs=("failed",)),
            Job("after that", fail, tmp_path, needs=("after it",)),
        ],
        processes=2,
    )
    assert all(error is not None and "no such luck" in error for error in errors.values())


def test_a_job_without_a_failure_clears_the_record_of_an_earlier_one(tmp_path: Path) -> None:
    failure = tmp_path / "failure.txt"
    failure.write_text("out of memory")
    run_jobs([Job("again", partial(note, tmp_path / "notes", "done"), tmp_path)], processes=1)
    assert not failure.exists()


@pytest.mark.parametrize("jobs", [[("a", ()), ("a", ())], [("b", ("a",)), ("a", ())], [("a", ("a",))]])
def test_jobs_that_could_never_be_ordered_are_refused(
    jobs: list[tuple[str, tuple[str, ...]]], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="different names and come after those they need"):
        run_jobs([Job(name, fail, tmp_path, needs) for name, needs in jobs], processes=1)


def test_a_callback_that_raises_leaves_no_process_behind(tmp_path: Path) -> None:
    def interrupt(progress: JobProgress) -> None:
        raise KeyboardInterrupt

    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(KeyboardInterrupt):
        run_jobs([Job("w", partial(say_and_wait, tmp_path), tmp_path)], processes=1, on_progress=interrupt)
    left = [
        child
        for child in set(psutil.Process().children(recursive=True)) - before
        if "resource_tracker" not in " ".join(child.cmdline())
    ]
    assert not left


_PARENT = """
from functools import partial
from pathlib import Path
from experiments.runtime.job_pool import Job, run_jobs
from tests.experiments.runtime.test_job_pool import say_and_wait
if __name__ == "__main__":
    job = Job("waits", partial(say_and_wait, Path()), Path())
    run_jobs([job], processes=1, on_progress=lambda progress: print(progress.done, flush=True))
"""


def test_jobs_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", str(script)], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        waiting = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    _, alive = psutil.wait_procs([waiting], timeout=30)
    assert not alive
