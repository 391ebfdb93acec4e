"""The output of a server's processes, line by line: to a terminal or container, and to a rotated file.

One process writes, whatever the number that speak, so a file can be rotated; and what is no JSON line (a
crash of native code, a library that prints) becomes one.
"""

import contextlib
import json
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

from serving.servers.json_lines import ROTATED_KEPT, ROTATED_MB


class LogStream:
    """Copies lines from `source` until it ends, in a thread."""

    def __init__(self, source: IO[bytes], write: Callable[[str], None], *, path: Path | None = None) -> None:
        self._source = source
        self._write = write
        self._file: RotatingFileHandler | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = RotatingFileHandler(path, maxBytes=ROTATED_MB * 10**6, backupCount=ROTATED_KEPT)
        self._thread = threading.Thread(target=self._run, name="dashclip-log", daemon=True)

    def start(self) -> None:
        """Start to copy."""
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the source."""
        self._thread.join(timeout_s)
        if self._file is not None:
            self._file.close()

    def _run(self) -> None:
        for raw in self._source:
            text = raw.decode(errors="replace").rstrip()
            if not text:
                continue
            line = text if text.startswith('{"time":') else as_json_line(text)
            with contextlib.suppress(OSError, ValueError):  # if nobody reads it, the file still wants it
                self._write(line + "\n")
            if self._file is not None:
                self._file.emit(logging.makeLogRecord({"msg": line}))


def as_json_line(text: str) -> str:
    """A line of somebody who does not speak JSON; it has no level of its own."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, "level": "INFO", "logger": "output", "message": text})
