"""TorchServe as a background process: started on an archive, waited for, stopped.

    STATE/            STORE/server, or where one says: then nothing is written into the store
                      config.properties, log4j2.xml, metrics.yaml; key_file.json (the tokens, mode 0600),
                      inference_key.json (the one that cannot manage); example.json (what probes ask);
                      logs/*.jsonl; drift/ (live counts); workers/ (what each says of itself);
                      server.json (what is running)

`start` does what `torchserve --start` does from there, and waits for a real prediction: TorchServe's own
/ping says 200 while no worker lives. An attendant beside it (`attendant.py`) answers probes, renews tokens.
"""

import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import psutil

from features.artifacts import atomic_write_bytes, atomic_write_json
from serving.client import INFERENCE_KEY_FILE, ClientError, ScoreClient, share_inference_key
from serving.drift.count_files import DRIFT_FOLDER, begin_counts
from serving.package.signature import TrustedKey
from serving.servers.background import DRAINING, TRUSTED_KEY, WORKERS_FOLDER
from serving.servers.environment import allowed, importable
from serving.servers.healing import NO_MODEL
from serving.servers.torchserve.archive import Archive
from serving.servers.torchserve.drain import drain
from serving.servers.torchserve.files import (
    CONFIG_NAME,
    LOGGING_NAME,
    ServerSettings,
    large_name,
    write_server_files,
)
from serving.servers.torchserve.log_ends import tail_of, worker_ends
from serving.servers.torchserve.ports import reachable, taken
from serving.wire.json_codec import decode_request

SERVER_FOLDER = "server"
KEY_FILE = "key_file.json"
#: Of the logs, what workers print that is not a line of our own.
WORKERS_OUTPUT = "workers_output.jsonl"
#: The body of a request that the server answers with 200.
EXAMPLE = "example.json"
_STATE_NAME = "server.json"
_JAVA_CLASS = "org.pytorch.serve.ModelServer"
_LAUNCHER = "serving.servers.torchserve.launcher"
_STOP_S = 30.0
_ATTENDANT_S = 60.0
_BECOMING_S = 5.0


class ServerError(ValueError):
    """A server that does not start, or is not there."""


class OpenManagementError(ServerError):
    """Management that everybody could use."""


@dataclass(frozen=True)
class RunningServer:
    """What runs for a store.

    Attributes:
        url: where predictions are asked for, up to the model's name.
        key_file: tokens of this run, None without token authorization.
        scratch: the folder of its sockets and unpacked archives, removed by `stop`.
        probes: address and port of its attendant.
        attendant: process of it; None if it is part of the process that waits for the server.
        large_url: where large requests go, if they have workers of their own.
    """

    pid: int
    url: str
    management_url: str
    metrics_url: str
    key_file: Path | None
    logs: Path
    scratch: Path
    token_minutes: int = 60
    probes: tuple[str, int] = ("", 0)
    attendant: int | None = None
    large_url: str | None = None

    @property
    def probes_url(self) -> str:
        """http://address:port of /live and /ready."""
        return f"http://{self.probes[0]}:{self.probes[1]}"

    @property
    def alive(self) -> bool:
        """Whether its process is there, and is this TorchServe."""
        return self.process() is not None

    def process(self) -> psutil.Process | None:
        """Its process; None if that has ended, even if another one has its number now."""
        try:
            process = psutil.Process(self.pid)
            command = _command_of(process)
            ours = _JAVA_CLASS in command or _LAUNCHER in command  # which becomes the other
            here = Path(process.cwd()) == self.logs.parent
            return process if ours and here and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None

    def client(self, *, timeout_s: float) -> ScoreClient:
        """A client of it that tries each request once."""
        return ScoreClient(
            self.url,
            key_file=self.key_file,
            management_url=self.management_url,
            retries=0,
            timeout_s=timeout_s,
            large_url=self.large_url,
        )


def start(
    archive: Archive,
    settings: ServerSettings,
    *,
    state: Path | None = None,
    trusted_key: Path | None = None,
    timeout_s: float = 120.0,
    progress: Callable[[str], None] | None = None,
) -> RunningServer:
    """Start TorchServe for one archive and wait until it answers its example with scores.

    Args:
        state: folder of its files, keys, logs and counts; STORE/server by default. Everybody who is later
            asked about the server (`running`, `stop`) takes this folder, too.
        trusted_key: public key that has to have signed what is served.

    Raises:
        ServerError: java is missing, a port is taken, a server already runs here, or no worker answers in
            time; then the end of the workers' log is in the error, and nothing is left running.
    """
    report = progress or (lambda _: None)
    folder = prepare(archive, settings, state=state, trusted_key=trusted_key)
    report("starting TorchServe")
    with (folder / "logs" / "console.log").open("wb") as console:
        server, _ = launch(folder, archive, settings, output=console)
    report("waiting for the first prediction")
    try:
        wait_for_scores(server, folder, timeout_s=timeout_s)
        server = _with_attendant(server, folder)
    except BaseException:
        stop(folder)
        raise
    return server


def prepare(
    archive: Archive,
    settings: ServerSettings,
    *,
    state: Path | None = None,
    trusted_key: Path | None = None,
    console: bool = False,
) -> Path:
    """The state folder of a server to be started, with its files and nothing of the run before.

    Raises:
        ServerError: a port is taken, or a server already runs here.
    """
    folder = (state or archive.path.parent / SERVER_FOLDER).absolute()
    _check_free(folder, settings)
    stop(folder)  # what a server that died has left
    for name in (KEY_FILE, TRUSTED_KEY):  # of the run before, as all here
        (folder / name).unlink(missing_ok=True)
    for name in ("logs", WORKERS_FOLDER):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True, exist_ok=True)
    begin_counts(folder / DRIFT_FOLDER)
    write_server_files(folder, archive, settings, console=console)
    atomic_write_bytes(folder / EXAMPLE, archive.example())
    if trusted_key is not None:
        TrustedKey.read(trusted_key)
        atomic_write_bytes(folder / TRUSTED_KEY, trusted_key.read_bytes())
    return folder


def launch(
    folder: Path, archive: Archive, settings: ServerSettings, *, output: IO[bytes] | int
) -> tuple[RunningServer, subprocess.Popen[bytes]]:
    """Start TorchServe in a prepared folder, as a child of this process; its output goes to `output`.

    Raises:
        ServerError: there is no java.
    """
    if shutil.which("java") is None:
        raise ServerError("TorchServe needs java 11 or later (Debian: apt-get install default-jre-headless)")
    # A short path: the workers' sockets lie there, and the kernel takes 108 bytes.
    scratch = Path(tempfile.mkdtemp(prefix="dashclip-"))
    logs = str((folder / "logs").resolve())
    environment = {**allowed(os.environ), "OMP_NUM_THREADS": "1"}
    environment |= dict.fromkeys(("TMPDIR", "TEMP"), str(scratch))
    environment |= dict.fromkeys(("LOG_LOCATION", "METRICS_LOCATION"), logs)
    command = [sys.executable, "-m", _LAUNCHER, "--start", "--ncs", "--model-store"]
    command += [str(archive.path.parent.resolve()), "--ts-config", CONFIG_NAME, "--log-config", LOGGING_NAME]
    # A session of its own: Ctrl-C reaches it through whoever waits for it, once.
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=importable(environment),
        stdin=subprocess.DEVNULL,  # else it would hold, and could read, what the caller's shell reads
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    predictions = f"{settings.url('inference')}/predictions"
    server = RunningServer(
        pid=process.pid,
        url=f"{predictions}/{archive.name}",
        management_url=settings.url("management"),
        metrics_url=f"{settings.url('metrics')}/metrics",
        key_file=(folder / KEY_FILE).resolve() if settings.token_authorization else None,
        logs=(folder / "logs").resolve(),
        scratch=scratch,
        token_minutes=settings.token_minutes,
        probes=(settings.address_of("probes"), settings.ports["probes"]),
        large_url=f"{predictions}/{large_name(archive.name)}" if settings.large_workers else None,
    )
    _remember(server, folder)
    return server, process


def wait_for_scores(server: RunningServer, folder: Path, *, timeout_s: float) -> None:
    """Return once a launched server has scored its example; its inference token then lies in its file.

    Raises:
        ServerError: it has ended, no worker answers in time, or management can be reached without tokens.
    """
    _wait(server, (folder / EXAMPLE).read_bytes(), timeout_s)
    if server.key_file is not None:
        share_inference_key(server.key_file)
    elif (why := reachable(server.management_url)) is not None:
        raise OpenManagementError(why)


def _with_attendant(server: RunningServer, folder: Path) -> RunningServer:
    command = [sys.executable, "-m", "serving.servers.torchserve.attendant", str(folder)]
    with (folder / "logs" / "console.log").open("ab") as console:
        attendant = subprocess.Popen(
            command,
            env=importable(allowed(os.environ)),
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
        )
    server = replace(server, attendant=attendant.pid)
    _remember(server, folder)
    deadline = time.monotonic() + _ATTENDANT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(server.probes, timeout=1):
            return server
        if attendant.poll() is not None:
            break
        time.sleep(0.05)
    raise ServerError(f"the probes do not answer: {tail_of(folder / 'logs' / 'console.log')}")


def _remember(server: RunningServer, folder: Path) -> None:
    atomic_write_json(folder / _STATE_NAME, {key: _plain(value) for key, value in vars(server).items()})


def state_folder(place: Path) -> Path:
    """The state folder of a server: of a store, or one that was given to `start`."""
    is_state = any((place / name).is_file() for name in (_STATE_NAME, CONFIG_NAME))
    return place if is_state else place / SERVER_FOLDER


def running(place: Path) -> RunningServer | None:
    """The server of a store or a state folder, if it is alive."""
    server = _last_started(state_folder(place))
    return server if server is not None and server.alive else None


def _last_started(folder: Path) -> RunningServer | None:
    path = folder / _STATE_NAME
    if not path.is_file():
        return None
    state = json.loads(path.read_text(encoding="utf-8"))
    return RunningServer(
        pid=state["pid"],
        url=state["url"],
        management_url=state["management_url"],
        metrics_url=state["metrics_url"],
        key_file=Path(state["key_file"]) if state["key_file"] else None,
        logs=Path(state["logs"]),
        scratch=Path(state["scratch"]),
        token_minutes=state["token_minutes"],
        probes=(state["probes"][0], state["probes"][1]),
        attendant=state["attendant"],
        large_url=state["large_url"],
    )


def stop(place: Path, *, drain_s: float = 0.0) -> bool:
    """Stop the server of a store or a state folder and wait until it is gone. False if none ran.

    Its tokens and scratch are removed.

    Args:
        drain_s: how long to wait for requests that are under way, while new ones get 503.
    """
    folder = state_folder(place)
    server = _last_started(folder)
    process = server.process() if server else None
    if process is not None and server is not None:
        if drain_s:
            drain(folder, lambda: worker_pids(server), timeout_s=drain_s)
        family = [process, *process.children(recursive=True)]
        process.terminate()
        _, left = psutil.wait_procs(family, timeout=_STOP_S)
        for one in left:
            one.kill()
    if server is not None:
        _end_attendant(server)
        shutil.rmtree(server.scratch, ignore_errors=True)
    for name in (KEY_FILE, INFERENCE_KEY_FILE):
        (folder / name).unlink(missing_ok=True)
    for name in (_STATE_NAME, DRAINING):
        (folder / name).unlink(missing_ok=True)
    return process is not None


def _end_attendant(server: RunningServer) -> None:
    """It ends by itself, a moment later; the port is to be free now."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(server.attendant or 0)
        if "serving.servers.torchserve.attendant" in process.cmdline():
            process.terminate()
            process.wait(_STOP_S)


def _command_of(process: psutil.Process) -> list[str]:
    """What it was called with. Linux shows nothing at the moment when it becomes another program."""
    deadline = time.monotonic() + _BECOMING_S
    while not (command := process.cmdline()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return command


def worker_pids(server: RunningServer) -> list[int]:
    """Process ids of the workers that live now."""
    process = server.process()
    found = []
    with contextlib.suppress(psutil.Error):  # the server has just ended
        for child in process.children(recursive=True) if process else []:
            with contextlib.suppress(psutil.Error):  # a worker has
                if "model_service_worker" in " ".join(child.cmdline()):
                    found.append(child.pid)
    return found


def _wait(server: RunningServer, example: bytes, timeout_s: float) -> None:
    request = decode_request(example)
    deadline = time.monotonic() + timeout_s
    with server.client(timeout_s=timeout_s) as client:
        while True:
            try:
                client.score(request)
                return
            except (ClientError, OSError) as error:
                last = error
            if not server.alive:
                raise ServerError(f"TorchServe ended: {tail_of(server.logs / 'console.log')}")
            ends = worker_ends(server.logs / WORKERS_OUTPUT)
            if NO_MODEL in str(last):  # a worker goes on trying; whoever starts it wants the reason
                ends = "The workers' log ends:\n" + tail_of(server.logs / "workers.jsonl")
            if ends or time.monotonic() > deadline:
                raise ServerError(f"no worker answers ({last}). {ends}")
            time.sleep(0.1)


def _check_free(folder: Path, settings: ServerSettings) -> None:
    server = running(folder)
    if server is not None:
        already = f"a server runs in {folder} already (process {server.pid})"
        raise ServerError(f"{already}; `dashclip stop {shlex.quote(str(folder))}` ends it")
    if (why := taken(settings)) is not None:
        raise ServerError(why)


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
