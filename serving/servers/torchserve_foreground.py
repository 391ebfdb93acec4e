"""TorchServe in the foreground, for containers and systemd: this process stands for it.

Signals are passed on, the exit code is TorchServe's own (143 after SIGTERM, 137 after SIGKILL), and standard
output has JSON lines alone. Probes and renewal of tokens are part of this process.
"""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TextIO

from serving.feature_log.feature_log import FeatureLogSettings
from serving.servers.archive import Archive
from serving.servers.attendant import Attendant
from serving.servers.log_stream import LogStream
from serving.servers.torchserve import RunningServer, launch, prepare, stop, wait_for_scores
from serving.servers.torchserve_files import ServerSettings

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def serve_in_foreground(
    archive: Archive,
    settings: ServerSettings,
    *,
    state: Path | None = None,
    trusted_key: Path | None = None,
    log: FeatureLogSettings | None = None,
    timeout_s: float = 120.0,
    output: TextIO | None = None,
    started: Callable[[RunningServer], None] = lambda _: None,
) -> int:
    """Serve until TorchServe ends; returns its exit code, 128 and the signal's number if a signal ended it.

    Args:
        timeout_s: for the first scores; without them TorchServe is ended.
        started: told once they are there.

    Raises:
        ServerError: as `serving.servers.torchserve.start`.
    """
    output = output or sys.stdout
    folder = prepare(archive, settings, state=state, trusted_key=trusted_key, log=log, console=True)
    asked: list[int] = []
    with _passing_on(asked) as targets:
        server, process = launch(folder, archive, settings, output=subprocess.PIPE)
        targets.append(process)
        for number in asked:  # before there was anybody to tell
            process.send_signal(number)
        assert process.stdout is not None
        lines = LogStream(process.stdout, partial(_print, output))
        lines.start()
        attendant = Attendant(server, folder)
        attendant.start()
        try:
            if not asked:
                _wait(server, process, folder, timeout_s, asked)
            if not asked and process.poll() is None:
                started(server)
            code = process.wait()
        finally:
            stop(folder)
            attendant.stop()
        lines.join(10)
    return code if code >= 0 else 128 - code


def _wait(
    server: RunningServer,
    process: "subprocess.Popen[bytes]",
    folder: Path,
    timeout_s: float,
    asked: list[int],
) -> None:
    try:
        wait_for_scores(server, folder, timeout_s=timeout_s)
    except Exception:
        if asked:  # it ended because it was told to
            return
        process.terminate()
        raise


@contextmanager
def _passing_on(asked: list[int]) -> "Iterator[list[subprocess.Popen[bytes]]]":
    """Signals go to the processes of the list that the block fills; the old handlers come back after it."""
    targets: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        asked.append(number)
        for process in targets:
            process.send_signal(signal.SIGTERM if number == signal.SIGQUIT else number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        yield targets
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print(output: TextIO, line: str) -> None:
    output.write(line)
    output.flush()
