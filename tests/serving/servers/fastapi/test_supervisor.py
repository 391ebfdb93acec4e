"""Workers of another package beside those that serve, by processes that do as they are told."""

import itertools
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from features.artifacts import atomic_write_json
from serving.servers.fastapi.rollout import TOLD, WANTED

module = pytest.importorskip("serving.servers.fastapi.supervisor", reason="needs the extra `fastapi`")

OLD, NEW = "old", "new"


class Worker:
    """A process that lives until it is told to end; the test leaves its marks."""

    pids: Iterator[int]
    all: list["Worker"]

    def __init__(self, config: object, _: object) -> None:
        self.config = config
        self.pid = next(Worker.pids)
        self.exitcode: int | None = None
        self.ended = ""
        self.process = SimpleNamespace(kill=lambda: self._end("killed"))
        Worker.all.append(self)

    def start(self) -> None:
        pass

    def is_alive(self, timeout: float) -> bool:
        return self.exitcode is None

    def _end(self, how: str) -> None:
        self.ended = self.ended or how
        if how == "killed":
            self.exitcode = -9

    def terminate(self) -> None:
        self._end("terminated")

    def kill(self) -> None:
        self._end("killed")

    def join(self) -> None:
        pass


class Bench:
    """A supervisor of two old workers, and the files that it reads and writes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        Worker.pids, Worker.all = itertools.count(1), []
        self.now = 0.0
        self.state, self.marks = folder / "state", folder / "marks"
        self.state.mkdir()
        self.marks.mkdir()
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        monkeypatch.setattr(module, "Process", Worker)
        monkeypatch.setattr(module, "_clock", lambda: self.now)
        self.gates: list[object] = []

        def config_of(archive: Path, gate: object) -> object:
            self.gates.append(gate)
            return f"{archive} {'waits' if gate else 'heals'}"

        self.supervisor = module.Supervisor(
            SimpleNamespace(workers=2), [], self.marks, state=self.state, config_of=config_of
        )
        self.supervisor.processes = [Worker(OLD, None), Worker(OLD, None)]
        for worker in Worker.all:
            self.serves(worker)

    def want(self, stage: str, run: str = "r") -> None:
        atomic_write_json(self.state / WANTED, {"run": run, "archive": NEW, "stage": stage})

    def look(self) -> None:
        self.now += 0.5
        self.supervisor.keep_subprocess_alive()

    def told(self) -> dict[str, object]:
        return dict(json.loads((self.state / TOLD).read_text()))

    def serves(self, worker: Worker) -> None:
        module.serving_mark(self.marks, worker.pid).touch()

    def gate_says(self, worker: Worker, kind: str, text: str) -> None:
        (self.marks / "gate-r" / f"{worker.pid}.{kind}").write_text(text)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_new_workers_wait_until_all_have_checked_and_old_ones_end_once_they_serve(bench: Bench) -> None:
    bench.want("checked")
    bench.look()
    old, new = Worker.all[:2], Worker.all[2:]
    assert [one.config for one in new] == ["new waits"] * 2
    bench.gate_says(new[0], "checked", "12")
    bench.look()
    assert not (bench.state / TOLD).exists()
    bench.gate_says(new[1], "checked", "11")
    bench.look()
    assert (bench.told()["stage"], bench.told()["compared"]) == ("checked", 11)
    assert not (bench.marks / "gate-r" / "open").exists()
    bench.want("serving")
    bench.look()
    assert (bench.marks / "gate-r" / "open").exists()
    bench.serves(new[0])
    bench.look()
    assert bench.told()["stage"] == "checked"
    bench.serves(new[1])
    bench.look()
    assert bench.told()["stage"] == "serving"
    assert [one.ended for one in old] == ["", ""]
    bench.want("alone")
    bench.look()
    assert [one.ended for one in old] == ["terminated"] * 2
    assert bench.supervisor.processes == new
    for one in old:
        assert bench.told()["stage"] == "serving"
        one.exitcode = 0
        bench.look()
    assert bench.told()["stage"] == "alone"
    new[0].exitcode = -9  # whoever takes its place is of the new package, and waits for nobody
    bench.look()
    bench.look()
    assert bench.supervisor.processes[0].config == "new heals"


def test_a_new_worker_that_fails_ends_the_deployment_and_no_old_worker(bench: Bench) -> None:
    bench.want("checked")
    bench.look()
    new = Worker.all[2:]
    bench.gate_says(new[1], "failed", "recorded requests get other scores")
    new[1].exitcode = 3
    bench.look()
    assert bench.told()["failed"] == "recorded requests get other scores"
    assert new[0].ended == "killed"
    bench.look()
    assert [one.ended for one in bench.supervisor.processes] == ["", ""]
    assert [one.config for one in bench.supervisor.processes] == [OLD, OLD]
    bench.want("withdrawn")
    bench.look()
    assert bench.told()["stage"] == "withdrawn"


def test_new_workers_that_serve_already_are_withdrawn_gently(bench: Bench) -> None:
    bench.want("checked")
    bench.look()
    new = Worker.all[2:]
    for one in new:
        bench.gate_says(one, "checked", "12")
    bench.look()
    bench.want("serving")
    bench.look()
    bench.serves(new[0])
    bench.want("withdrawn")
    bench.look()
    assert [one.ended for one in new] == ["terminated", "killed"]
    assert bench.told()["stage"] == "withdrawn"
    assert [one.ended for one in bench.supervisor.processes] == ["", ""]


def test_a_second_deployment_ends_what_the_first_has_left(bench: Bench) -> None:
    bench.want("checked")
    bench.look()
    bench.want("checked", run="s")
    bench.look()
    first, second = Worker.all[2:4], Worker.all[4:]
    assert [one.ended for one in first] == ["killed"] * 2
    assert [one.ended for one in second] == [""] * 2


def test_a_worker_that_does_not_leave_is_ended(bench: Bench) -> None:
    bench.want("checked")
    bench.look()
    old, new = Worker.all[:2], Worker.all[2:]
    for one in new:
        bench.gate_says(one, "checked", "12")
        bench.serves(one)
    bench.look()
    bench.want("alone")
    bench.look()
    bench.now += 41
    bench.look()
    assert [one.ended for one in old] == ["terminated"] * 2
    assert [one.exitcode for one in old] == [-9, -9]
    assert bench.told()["stage"] == "alone"


def test_a_file_that_is_no_deployment_and_one_from_before_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, monkeypatch)
    (bench.state / WANTED).write_text("{")
    bench.look()
    assert len(Worker.all) == 2
    bench.want("serving")  # nobody has checked it
    bench.look()
    assert len(Worker.all) == 2
