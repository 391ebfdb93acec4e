"""TorchServe as a background process: given a package, started, waited for, stopped.

    STATE/            STORE/server, or where one says: then nothing is written into the store
                      config.properties, log4j2.xml, metrics.yaml; key_file.json (the tokens, mode 0600),
                      inference_key.json (the one that cannot manage);
                      logs/*.jsonl; drift/ (live counts); server.json (what is running)

`start` does what `torchserve --start` does from there, and waits for a real prediction: TorchServe's
own /ping says 200 while no worker lives.
"""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from features.artifacts import atomic_write_json
from features.online.request import ScoreRequest
from serving.client import INFERENCE_KEY_FILE, ClientError, ScoreClient, share_inference_key
from serving.feature_log.feature_log import FeatureLogSettings, hand_over
from serving.package.manifest import PackageManifest
from serving.package.parity import read_requests
from serving.scoring.routed_scorer import check_name, start_routing
from serving.servers.archive import Archive, build_archive
from serving.servers.drift import DRIFT_FOLDER
from serving.servers.torchserve_files import CONFIG_NAME, LOGGING_NAME, ServerSettings, write_server_files
from serving.wire.json_codec import decode_request, encode_request

SERVER_FOLDER = "server"
KEY_FILE = "key_file.json"
#: Of the logs, what workers print that is not a line of our own.
WORKERS_OUTPUT = "workers_output.jsonl"
_STATE_NAME = "server.json"
_JAVA_CLASS = "org.pytorch.serve.ModelServer"
_STOP_S = 30.0
_WORKER_END = "Backend worker process died"
_SHOWN_LINES = 12
_EXAMPLE_CANDIDATES = 5


class ServerError(ValueError):
    """A server that does not start, or is not there."""


@dataclass(frozen=True)
class RunningServer:
    """What runs for a store.

    Attributes:
        url: where predictions are asked for, up to the model's name.
        key_file: tokens of this run, None without token authorization.
        scratch: the folder of its sockets and unpacked archives, removed by `stop`.
    """

    pid: int
    url: str
    management_url: str
    metrics_url: str
    key_file: Path | None
    logs: Path
    scratch: Path

    @property
    def alive(self) -> bool:
        """Whether its process is there, and is this TorchServe."""
        return self.process() is not None

    def process(self) -> psutil.Process | None:
        """Its process; None if that has ended, even if another one has its number now."""
        try:
            process = psutil.Process(self.pid)
            ours = _JAVA_CLASS in process.cmdline() and Path(process.cwd()) == self.logs.parent
            return process if ours and process.status() != psutil.STATUS_ZOMBIE else None
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
        )


def archive_package(
    package: Path, store: Path, *, name: str, embed: bool, challengers: Mapping[str, Path] | None = None
) -> Archive:
    """Add a package to a store, with an example request from its parity record.

    Args:
        challengers: packages that may get a share of the users, by name.

    Raises:
        PackageError: not a package.
        ValueError: a challenger's name cannot be one, or challengers are to be embedded.
        ArchiveError: the archive does not answer.
    """
    manifest = PackageManifest.read(package)
    for challenger, path in (challengers or {}).items():
        check_name(challenger)
        PackageManifest.read(path)
    if embed and challengers:
        raise ValueError("a .mar holds one package; archive challengers without --embed")
    settings = {"challengers": {name: str(path.resolve()) for name, path in (challengers or {}).items()}}
    return build_archive(
        package,
        store,
        version=torchserve_version(manifest.model_version),
        example=encode_request(example_request(package)),
        name=name,
        embed=embed,
        # Where it was made from is nothing that travels with it: `refresh` does not reach into a .mar.
        embedded_manifest=manifest.model_copy(update={"sources": {}}),
        settings=settings if challengers else None,
    )


def example_request(package: Path) -> ScoreRequest:
    """A short request that the package knows: one of its recorded ones, without the live features."""
    recorded = read_requests(package)[0]
    return ScoreRequest(
        user_id=recorded.user_id,
        query=recorded.query,
        candidates=recorded.candidates.slice(0, _EXAMPLE_CANDIDATES),
    )


def torchserve_version(model_version: str) -> str:
    """A version that can stand in a URL: other characters than letters, digits, dot, - and _ become -."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in model_version)


def start(
    archive: Archive,
    settings: ServerSettings,
    *,
    state: Path | None = None,
    log: FeatureLogSettings | None = None,
    timeout_s: float = 120.0,
    progress: Callable[[str], None] | None = None,
) -> RunningServer:
    """Start TorchServe for one archive and wait until it answers its example with scores.

    Args:
        state: folder of its files, keys, logs and counts; STORE/server by default. Everybody who is later
            asked about the server (`running`, `stop`) takes this folder, too.
        log: what goes to the feature log.

    Raises:
        ServerError: java is missing, a port is taken, a server already runs here, or no worker answers in
            time; then the end of the workers' log is in the error, and nothing is left running.
    """
    report = progress or (lambda _: None)
    folder = (state or archive.path.parent / SERVER_FOLDER).absolute()
    _check_free(folder, settings)
    stop(folder)  # what a server that died has left
    for name in ("logs", DRIFT_FOLDER):  # of the run before
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / KEY_FILE).unlink(missing_ok=True)
    for name in ("logs", DRIFT_FOLDER):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_server_files(folder, archive, settings)
    start_routing(folder, archive.challengers())
    hand_over(log, folder)
    # A short path: the workers' sockets lie there, and the kernel takes 108 bytes.
    scratch = Path(tempfile.mkdtemp(prefix="dashclip-"))
    report("starting TorchServe")
    try:
        launched = _launch(folder, archive.path.parent.resolve(), scratch)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    server = RunningServer(
        pid=launched,
        url=f"{settings.url('inference')}/predictions/{archive.name}",
        management_url=settings.url("management"),
        metrics_url=f"{settings.url('metrics')}/metrics",
        key_file=(folder / KEY_FILE).resolve() if settings.token_authorization else None,
        logs=(folder / "logs").resolve(),
        scratch=scratch,
    )
    atomic_write_json(folder / _STATE_NAME, {key: _plain(value) for key, value in vars(server).items()})
    report("waiting for the first prediction")
    try:
        _wait(server, archive.example(), timeout_s)
        if server.key_file is not None:
            share_inference_key(server.key_file)
    except BaseException:
        stop(folder)
        raise
    return server


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
    )


def stop(place: Path) -> bool:
    """Stop the server of a store or a state folder and wait until it is gone. False if none ran.

    Its tokens and scratch are removed.
    """
    folder = state_folder(place)
    server = _last_started(folder)
    process = server.process() if server else None
    if process is not None:
        family = [process, *process.children(recursive=True)]
        process.terminate()
        _, left = psutil.wait_procs(family, timeout=_STOP_S)
        for one in left:
            one.kill()
    if server is not None:
        shutil.rmtree(server.scratch, ignore_errors=True)
    for name in (KEY_FILE, INFERENCE_KEY_FILE):
        (folder / name).unlink(missing_ok=True)
    (folder / _STATE_NAME).unlink(missing_ok=True)
    return process is not None


def worker_pids(server: RunningServer) -> list[int]:
    """Process ids of the workers that live now."""
    process = server.process()
    children = process.children(recursive=True) if process else []
    return [child.pid for child in children if "model_service_worker" in " ".join(child.cmdline())]


def _launch(folder: Path, store: Path, scratch: Path) -> int:
    if shutil.which("java") is None:
        raise ServerError("TorchServe needs java 11 or later (Debian: apt-get install default-jre-headless)")
    command = [sys.executable, "-m", "ts.model_server", "--start", "--ncs", "--model-store", str(store)]
    command += ["--ts-config", CONFIG_NAME, "--log-config", LOGGING_NAME]
    logs = str((folder / "logs").resolve())
    environment = {
        **os.environ,
        "TMPDIR": str(scratch),
        "TEMP": str(scratch),
        "LOG_LOCATION": logs,
        "METRICS_LOCATION": logs,
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "logs" / "console.log").open("wb") as console:
        subprocess.run(
            command, cwd=folder, env=environment, stdout=console, stderr=subprocess.STDOUT, check=False
        )
    pid_file = scratch / ".model_server.pid"
    if not pid_file.is_file():
        raise ServerError(f"TorchServe did not start: {_tail(folder / 'logs' / 'console.log')}")
    return int(pid_file.read_text())


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
                raise ServerError(f"TorchServe ended: {_tail(server.logs / 'console.log')}")
            ends = _worker_ends(server.logs / WORKERS_OUTPUT)
            if ends or time.monotonic() > deadline:
                raise ServerError(f"no worker answers ({last}). {ends}")
            time.sleep(0.1)


def _worker_ends(log: Path) -> str:
    """What the workers' log says of a worker that ended; empty if none did."""
    if not log.is_file():
        return ""
    messages = [json.loads(line)["message"] for line in log.read_text(encoding="utf-8").splitlines()]
    if not any(_WORKER_END in message for message in messages):
        return ""
    return "The worker's log ends:\n" + "\n".join(messages[-_SHOWN_LINES:])


def _check_free(folder: Path, settings: ServerSettings) -> None:
    server = running(folder)
    if server is not None:
        already = f"a server runs in {folder} already (process {server.pid})"
        raise ServerError(f"{already}; `dashclip stop {shlex.quote(str(folder))}` ends it")
    for use, port in settings.ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.address_of(use), port))
            except OSError:
                raise ServerError(f"port {port} ({use}) is taken; choose others with --port") from None


def _tail(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines() if path.is_file() else []
    return "\n".join(lines[-_SHOWN_LINES:]) or "it said nothing"


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
