"""Log records as JSON lines: time, level, logger, message, and the ids of the requests they are about."""

import json
import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType
from typing import Any

#: Before a line of a TorchServe worker, whose frontend adds the time and the opening brace.
WORKER_MARK = "DASHCLIP-JSON "
#: Of a log file, beyond which it is rotated, and how many old ones stay.
ROTATED_MB, ROTATED_KEPT = 20, 5


def about(request_ids: Sequence[str | None]) -> dict[str, Any]:
    """The argument `extra` of a log call about requests; what has no id is left out."""
    return {"request_ids": [one for one in request_ids if one is not None]}


#: Of the requests at work, for lines that do not name theirs.
_at_work: ContextVar[Sequence[str | None]] = ContextVar("requests_at_work", default=())


@contextmanager
def at_work(request_ids: Sequence[str | None]) -> Iterator[None]:
    """Name these requests in each line that is logged within, by whomever."""
    token = _at_work.set(request_ids)
    try:
        yield
    finally:
        _at_work.reset(token)


class JsonLines(logging.Formatter):
    """One line for each record, a traceback within it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        moment = datetime.fromtimestamp(record.created, UTC)
        return json.dumps({"time": moment.isoformat(timespec="milliseconds"), **self.fields(record)})

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """All but the time."""
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        fields: dict[str, Any] = {"level": record.levelname, "logger": record.name, "message": message}
        request_ids = getattr(record, "request_ids", None) or about(_at_work.get())["request_ids"]
        return fields | ({"request_ids": request_ids} if request_ids else {})


def log_as_json(path: Path | None = None) -> None:
    """Have this process write its warnings and errors as JSON lines, and nothing else.

    To standard error, or to a file that is rotated. What Python itself says (its warnings, an error that ends
    a thread or the process) comes as such a line, too.
    """
    handler: logging.Handler = logging.StreamHandler()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = RotatingFileHandler(path, maxBytes=ROTATED_MB * 10**6, backupCount=ROTATED_KEPT)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    log = logging.getLogger("python")

    def ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            log.critical("the process ends", exc_info=(kind, error, trace))

    def thread_ended(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            trace = (args.exc_type, args.exc_value, args.exc_traceback)
            log.critical("a thread ended", exc_info=trace)

    sys.excepthook = ended
    threading.excepthook = thread_ended


class WorkerLines(JsonLines):
    """For the output of a TorchServe worker: its own lines as they are, because the frontend reads some."""

    def format(self, record: logging.LogRecord) -> str:
        """The line that TorchServe's log configuration turns into JSON."""
        if record.name.split(".", 1)[0] in ("ts", "root"):
            return record.getMessage()
        return WORKER_MARK + json.dumps(self.fields(record)).removeprefix("{")
