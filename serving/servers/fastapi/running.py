"""What of FastAPI runs for a store or a state folder: written down, found again, stopped. No FastAPI here."""

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from features.artifacts import atomic_write_bytes, atomic_write_json
from serving.servers.torchserve.server import SERVER_FOLDER

#: In a state folder: the process id alone, and what else there is to know.
PID_NAME = "server.pid"
_RUNNING_NAME = "fastapi.json"
_STOP_S = 60.0


@dataclass(frozen=True)
class RunningFastApi:
    """A supervising process.

    Attributes:
        started: when, as the operating system says: another process may get its number.
        url: of predictions.
        workers: how many it keeps.
        archive: name of the archive it serves; None if it serves a package, so that nothing can be deployed.
    """

    pid: int
    started: float
    url: str
    workers: int
    archive: str | None

    def process(self) -> psutil.Process | None:
        """Its process; None if that has ended."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            alive = process.status() != psutil.STATUS_ZOMBIE and process.create_time() == self.started
            return process if alive else None
        return None


@contextmanager
def written_down(state: Path, *, url: str, workers: int, archive: str | None) -> Iterator[None]:
    """Let others find this process by its state folder.

    Raises:
        ValueError: another one serves from there.
    """
    if (other := running_fastapi(state)) is not None:
        raise ValueError(
            f"a server runs in {state} already (process {other.pid}); `dashclip stop {state}` ends it"
        )
    started = psutil.Process().create_time()
    here = RunningFastApi(os.getpid(), started, url, workers, archive)
    atomic_write_bytes(state / PID_NAME, f"{here.pid}\n".encode())
    atomic_write_json(state / _RUNNING_NAME, asdict(here))
    try:
        yield
    finally:
        for name in (PID_NAME, _RUNNING_NAME):
            (state / name).unlink(missing_ok=True)


def fastapi_state(place: Path) -> Path:
    """The state folder of a server: of a store, or one of its own."""
    return place if (place / _RUNNING_NAME).is_file() else place / SERVER_FOLDER


def running_fastapi(place: Path) -> RunningFastApi | None:
    """The server of a store or a state folder, if it is alive."""
    try:
        said = json.loads((fastapi_state(place) / _RUNNING_NAME).read_text(encoding="utf-8"))
        server = RunningFastApi(**said)
    except (OSError, ValueError, TypeError):
        return None
    return server if server.process() is not None else None


def stop_fastapi(place: Path, *, drain_s: float) -> bool:
    """Have it answer what it has begun, and wait until it is gone. False if none runs."""
    server = running_fastapi(place)
    process = server.process() if server else None
    if process is None:
        return False
    family = [process, *process.children(recursive=True)]
    process.terminate()
    _, left = psutil.wait_procs([process], timeout=max(drain_s, 1.0) if drain_s else 0)
    if left:
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    psutil.wait_procs(family, timeout=_STOP_S)
    return True
