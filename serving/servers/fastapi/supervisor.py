"""The process that keeps workers: replaces those that die, and puts workers of another package beside them.

Workers share one listening socket. New ones check their package first and wait; the kernel gives connections
to them once they listen, and no more to the old ones once those have stopped to.
"""

import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from prometheus_client.multiprocess import mark_process_dead
from pydantic import ValidationError
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from features.artifacts import FileStamp, atomic_write_bytes, atomic_write_json, file_stamp
from serving.scoring.backoff import Backoff
from serving.servers.fastapi.rollout import TOLD, WANTED, RolloutTold, RolloutWanted, Stage

_log = logging.getLogger(__name__)
_clock = time.monotonic

#: A worker that says nothing for so long is replaced; it says nothing while it imports torch.
IMPORT_S = 60
#: Before a worker is replaced; the pause doubles with each that does not live for the longest of them.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0
#: For workers that are to end, and answer what they have begun.
_LEAVE_S = 40.0


@dataclass(frozen=True)
class Gate:
    """Where new workers wait until they are wanted, by files: `folder`/<pid>.checked, <pid>.failed, open."""

    folder: Path

    def passed(self, compared: int) -> None:
        """This worker has compared so many requests, and would serve."""
        atomic_write_bytes(self.folder / f"{os.getpid()}.checked", str(compared).encode())

    def failed(self, why: str) -> None:
        """This worker would not."""
        atomic_write_bytes(self.folder / f"{os.getpid()}.failed", why.encode())

    @property
    def is_open(self) -> bool:
        """Whether it may serve now."""
        return (self.folder / "open").exists()

    def open(self) -> None:
        """Let them serve."""
        (self.folder / "open").touch()

    def said(self, kind: str, pid: int | None) -> str | None:
        """What a worker left there."""
        try:
            return (self.folder / f"{pid}.{kind}").read_text(encoding="utf-8")
        except OSError:
            return None


@dataclass
class _Coming:
    """Workers of another package, beside those that serve."""

    wanted: RolloutWanted
    gate: Gate
    processes: list[Process] = field(default_factory=list)
    told: Stage | None = None


class Supervisor(Multiprocess):
    """uvicorn's, but a worker that dies young is replaced after a pause, and one is replaced for ever."""

    def __init__(
        self,
        config: uvicorn.Config,
        sockets: list[socket.socket],
        workers_folder: Path,
        *,
        state: Path | None = None,
        config_of: Callable[[Path, Gate | None], uvicorn.Config] | None = None,
    ) -> None:
        """
        Args:
            state: folder in which deployments are asked for.
            config_of: of the workers of an archive; with a gate they wait there.
        """
        super().__init__(config, sockets)
        self._workers_folder = workers_folder
        self._state = state if config_of is not None else None
        self._config_of = config_of
        self._seen: FileStamp | None = file_stamp(state / WANTED) if state is not None else None
        self._last: RolloutWanted | None = None
        self._coming: _Coming | None = None
        self._leaving: list[tuple[Process, float]] = []
        self._again: dict[int, Backoff] = {}
        self._started: dict[int, float] = {}

    def keep_subprocess_alive(self) -> None:
        """Replace workers that have died, each once that is due; go on with a deployment."""
        self._roll_out()
        for place, worker in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            pause = Backoff(first_s=_FIRST_PAUSE_S, longest_s=_LONGEST_PAUSE_S, clock=lambda: _clock())
            again = self._again.setdefault(place, pause)
            started = self._started.setdefault(place, _clock())
            if started < float("inf"):
                if worker.is_alive(timeout=IMPORT_S):
                    continue
                worker.kill()  # it may hang
                worker.join()
                if _clock() - started > _LONGEST_PAUSE_S:
                    again.succeeded()
                pause_s = again.failed()
                said = "worker %s ended with code %s; the next one starts in %.1f s"
                _log.error(said, worker.pid, worker.exitcode, pause_s)
                self._forget(worker)
                self._started[place] = float("inf")
            if again.due:
                self._started[place] = _clock()
                self.processes[place] = Process(self.config, self.sockets)
                self.processes[place].start()

    def terminate_all(self) -> None:
        """End all workers, those of a deployment, too."""
        super().terminate_all()
        if self._coming is not None:
            self._end_coming(self._coming)

    def join_all(self) -> None:
        """Wait for all."""
        super().join_all()
        for worker, _ in self._leaving:
            worker.join()

    @property
    def nobody_serves(self) -> bool:
        """Whether no worker listens now."""
        return not any(self._serves(one) for one in tuple(self.processes))

    def _serves(self, worker: Process) -> bool:
        return worker.exitcode is None and serving_mark(self._workers_folder, worker.pid).exists()

    def _roll_out(self) -> None:
        """One look at the deployment that is wanted, and at how far it is."""
        if self._state is None:
            return
        stamp = file_stamp(self._state / WANTED)
        if stamp is not None and stamp != self._seen:
            self._seen = stamp
            self._take_in(self._state / WANTED)
        if self._coming is not None:
            self._advance(self._coming)
        self._see_off()

    def _take_in(self, path: Path) -> None:
        try:
            wanted = RolloutWanted.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            _log.error("%s cannot be used: %s", path, type(error).__name__)
            return
        coming = self._coming
        if coming is not None and coming.wanted.run == wanted.run:
            coming.wanted = wanted
        elif wanted.stage == "checked":
            if coming is not None:  # whoever wanted it has died
                self._end_coming(coming)
            self._begin(wanted)
        elif wanted.stage == "withdrawn":
            self._tell(wanted, "withdrawn")

    def _begin(self, wanted: RolloutWanted) -> None:
        assert self._config_of is not None
        gate = Gate(self._workers_folder / f"gate-{wanted.run}")
        gate.folder.mkdir()
        config = self._config_of(Path(wanted.archive), gate)
        self._coming = _Coming(wanted, gate, [Process(config, self.sockets) for _ in self.processes])
        for worker in self._coming.processes:
            worker.start()

    def _advance(self, coming: _Coming) -> None:
        wanted, gate = coming.wanted, coming.gate
        dead = next((one for one in coming.processes if one.exitcode is not None), None)
        if wanted.stage == "withdrawn" or dead is not None:
            why = None
            if dead is not None:
                code = f"new worker {dead.pid} ended with code {dead.exitcode}; the log may say why"
                why = gate.said("failed", dead.pid) or code
            self._end_coming(coming)
            self._tell(wanted, "withdrawn" if wanted.stage == "withdrawn" else None, failed=why)
            return
        checked = [gate.said("checked", one.pid) for one in coming.processes]
        if coming.told is None and None not in checked:
            coming.told = "checked"
            self._tell(wanted, "checked", compared=min(int(one or 0) for one in checked))
        if coming.told == "checked" and wanted.stage in ("serving", "alone"):
            gate.open()
            if all(map(self._serves, coming.processes)):
                coming.told = "serving"
                self._tell(wanted, "serving")
        if coming.told == "serving" and wanted.stage == "alone":
            self._replace_by(coming)

    def _replace_by(self, coming: _Coming) -> None:
        assert self._config_of is not None
        for worker in self.processes:
            worker.terminate()
            self._leaving.append((worker, _clock()))
        self.processes = coming.processes
        # Whoever takes the place of one of these heals itself, and waits for nobody.
        self.config = self._config_of(Path(coming.wanted.archive), None)
        self._again, self._started = {}, {}
        self._coming = None
        self._last = coming.wanted
        _log.warning("serving %s", coming.wanted.archive)

    def _see_off(self) -> None:
        """Take note of workers that have left, and end those that do not."""
        for worker, since in tuple(self._leaving):
            if worker.exitcode is None and _clock() - since > _LEAVE_S:
                worker.process.kill()
            if worker.exitcode is not None:
                worker.join()
                self._forget(worker)
                self._leaving.remove((worker, since))
                if not self._leaving and self._last is not None:
                    self._tell(self._last, "alone")
                    self._last = None

    def _end_coming(self, coming: _Coming) -> None:
        self._coming = None
        for worker in coming.processes:
            if worker.exitcode is not None:
                continue
            if self._serves(worker):
                worker.terminate()
                self._leaving.append((worker, _clock()))
            else:
                worker.kill()
                worker.join()

    def _tell(
        self, wanted: RolloutWanted, stage: Stage | None, *, failed: str | None = None, compared: int = 0
    ) -> None:
        assert self._state is not None
        told = RolloutTold(run=wanted.run, stage=stage, failed=failed, compared=compared)
        try:
            atomic_write_json(self._state / TOLD, told.model_dump())
        except OSError as error:
            _log.error("%s cannot be written: %s", self._state / TOLD, error.strerror)

    def _forget(self, worker: Process) -> None:
        mark_process_dead(worker.pid, str(self._workers_folder))
        serving_mark(self._workers_folder, worker.pid).unlink(missing_ok=True)


def serving_mark(workers_folder: Path, pid: int | None) -> Path:
    """A file that is there while this worker takes requests."""
    return workers_folder / f"{pid}.serving"
