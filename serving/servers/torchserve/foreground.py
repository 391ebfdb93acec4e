"""TorchServe in the foreground, for containers and systemd: this process stands for it.

Signals are passed on, SIGTERM once the requests under way are answered; the exit code is TorchServe's own
(143 after SIGTERM, 137 after SIGKILL), and standard output has JSON lines alone. Probes and renewal of
tokens are part of this process.
"""

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TextIO

from serving.scoring.backoff import Backoff
from serving.servers.json_lines import log_as_json
from serving.servers.log_stream import LogStream
from serving.servers.torchserve.archive import Archive
from serving.servers.torchserve.attendant import Attendant
from serving.servers.torchserve.drain import drain
from serving.servers.torchserve.files import ServerSettings
from serving.servers.torchserve.server import (
    OpenManagementError,
    RunningServer,
    ServerError,
    launch,
    prepare,
    running,
    stop,
    wait_for_scores,
    worker_pids,
)

_log = logging.getLogger(__name__)

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def serve_in_foreground(
    archive: Archive,
    settings: ServerSettings,
    *,
    state: Path | None = None,
    trusted_key: Path | None = None,
    output: TextIO | None = None,
) -> int:
    """Serve until TorchServe ends; returns its exit code, 128 and the signal's number if a signal ended it.

    It does not end for want of scores: probes say that there are none, workers go on trying.

    Raises:
        ServerError: java is missing, a port is taken, a server already runs here, or management could be
            reached without tokens.
    """
    output = output or sys.stdout
    log_as_json()
    folder = prepare(archive, settings, state=state, trusted_key=trusted_key, console=True)
    asked: list[int] = []
    with _passing_on(asked, folder) as targets:
        server, process = launch(folder, archive, settings, output=subprocess.PIPE)
        targets.append(process)
        for number in asked:  # before there was anybody to tell
            process.send_signal(number)
        assert process.stdout is not None
        lines = LogStream(process.stdout, partial(_print, output))
        lines.start()
        attendant = Attendant(server, folder)
        attendant.start()
        failures: list[ServerError] = []
        settling = threading.Thread(target=_settle, args=(server, process, folder, failures), daemon=True)
        settling.start()
        try:
            code = process.wait()
        finally:
            stop(folder)
            attendant.stop()
        lines.join(10)
    if failures:
        raise failures[0]
    return code if code >= 0 else 128 - code


def _settle(
    server: RunningServer, process: "subprocess.Popen[bytes]", folder: Path, failures: list[ServerError]
) -> None:
    """See that it scores, for as long as that takes; end it if strangers could manage it."""
    again = Backoff(first_s=1.0, longest_s=60.0)
    while process.poll() is None:
        try:
            wait_for_scores(server, folder, timeout_s=60.0)
            return
        except OpenManagementError as error:
            failures.append(error)
            process.terminate()
            return
        except ServerError as error:
            _log.error("not ready: %s", error)
            time.sleep(again.failed())


@contextmanager
def _passing_on(asked: list[int], state: Path) -> "Iterator[list[subprocess.Popen[bytes]]]":
    """Signals go to the processes of the list that the block fills; the old handlers come back after it.

    The first SIGTERM waits for requests under way; a second signal does not.
    """
    targets: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        asked.append(number)
        if number == signal.SIGTERM and asked.count(number) == 1:
            threading.Thread(target=empty_then_send, daemon=True).start()
        else:
            send(signal.SIGTERM if number == signal.SIGQUIT else number)

    def empty_then_send() -> None:
        server = running(state)
        if server is not None:
            drain(state, lambda: worker_pids(server))
        send(signal.SIGTERM)

    def send(number: int) -> None:
        for process in targets:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        yield targets
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print(output: TextIO, line: str) -> None:
    output.write(line)
    output.flush()
