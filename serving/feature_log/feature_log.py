"""Writes the feature log while a worker serves: a share of the requests, never at a request's expense."""

import logging
import time
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import pyarrow as pa
from pydantic import Field

from features.artifacts import StrictModel, atomic_write_json
from features.online.request import ScoreRequest
from serving.feature_log.log_files import make_room, rows_of, write_rows
from serving.feature_log.user_keys import make_key, read_key
from serving.observers.waiting_line import WaitingLine
from serving.scoring.routing import position
from serving.servers.measures import Measures
from serving.wire.reply import ScoreReply

_log = logging.getLogger(__name__)

SETTINGS_NAME, KEY_NAME = "feature_log.json", "feature_log.key"
_SALT = "feature log"
#: Candidates that may wait to be written; beyond, requests are not logged, and counted.
_ROOM = 50_000
#: A file is written when so much is gathered, or when its first row is so old: what a killed worker loses.
_FILE_BYTES = 8 << 20
_FILE_S = 30.0
#: Of the limit, at most one such part is in one file.
_PARTS = 8


class FeatureLogSettings(StrictModel):
    """What is logged.

    Attributes:
        folder: of the log; several workers may write there.
        share: of the requests, drawn by their ids.
        limit_mb: of all files together, in 10^6 bytes; the oldest go.
        key_file: hides the users' ids; outside `folder`.
    """

    folder: Path
    share: Annotated[float, Field(gt=0, le=1)]
    limit_mb: Annotated[int, Field(ge=1)]
    key_file: Path

    def prepare(self) -> None:
        """Make folder and key, before workers are started.

        Raises:
            ValueError: the key would lie in the log, or is none.
            OSError: the folder cannot be written to.
        """
        if self.key_file.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(
                f"the key {self.key_file} would lie in the log {self.folder}, and go wherever that goes; "
                "name another place by --log-key"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        make_key(self.key_file)
        read_key(self.key_file)

    def write(self, state: Path) -> None:
        """Leave it where workers look for it."""
        atomic_write_json(state / SETTINGS_NAME, self.model_dump(mode="json"))

    @classmethod
    def of_server(cls, state: Path) -> "FeatureLogSettings | None":
        """What `write` has left in the state folder of a server; None if nothing is to be logged."""
        path = state / SETTINGS_NAME
        return cls.model_validate_json(path.read_bytes()) if path.is_file() else None


def hand_over(log: FeatureLogSettings | None, state: Path) -> None:
    """Leave what is to be logged where the workers of a server look for it; nothing if that is None.

    Raises:
        ValueError: the key of the log would lie within it, or is none.
    """
    (state / SETTINGS_NAME).unlink(missing_ok=True)
    if log is not None:
        log.prepare()
        log.write(state)


class FeatureLog:
    """Logs a share of the answers. What it has no room or no disk for is counted and forgotten."""

    def __init__(self, settings: FeatureLogSettings, measures: Measures) -> None:
        """
        Raises:
            ValueError: there is no key.
        """
        self._settings = settings
        self._measures = measures
        self._key = read_key(settings.key_file)
        self._limit_bytes = settings.limit_mb * 10**6
        self._file_bytes = min(_FILE_BYTES, self._limit_bytes // _PARTS)
        self._gathered: dict[str, _Gathered] = {}
        make_room(settings.folder, self._limit_bytes)
        self._line: WaitingLine[tuple[ScoreRequest, ScoreReply, str]] = WaitingLine(
            self._add, name="feature-log", room=_ROOM, idle=self._write_old
        )

    def saw(self, request: ScoreRequest, reply: ScoreReply, request_id: str | None) -> None:
        """Line up one answer if it is drawn; a shadow's is exactly when that of its request is."""
        request_id = request_id or uuid4().hex
        if position(request_id, _SALT) >= self._settings.share or reply.rows is None:
            return
        if not self._line.offer((request, reply, request_id), size=len(reply.scores_N)):
            self._measures.log_lost(1)

    def close(self) -> None:
        """Write what was gathered."""
        self._line.close()
        for version in [*self._gathered]:
            self._write(version)

    def _add(self, work: tuple[ScoreRequest, ScoreReply, str]) -> None:
        request, reply, request_id = work
        try:
            table = rows_of(request, reply, request_id=request_id, key=self._key, share=self._settings.share)
        except Exception:
            self._measures.log_lost(1)
            raise
        gathered = self._gathered.setdefault(reply.model_version, _Gathered())
        gathered.tables.append(table)
        gathered.bytes += table.nbytes
        if gathered.bytes >= self._file_bytes:
            self._write(reply.model_version)

    def _write_old(self) -> None:
        for version in [*self._gathered]:
            if time.monotonic() - self._gathered[version].since >= _FILE_S:
                self._write(version)

    def _write(self, version: str) -> None:
        tables = self._gathered.pop(version).tables
        try:
            write_rows(self._settings.folder, pa.concat_tables(tables), limit_bytes=self._limit_bytes)
        except (OSError, pa.ArrowException) as error:
            self._measures.log_lost(len(tables))
            _log.error("%d requests could not be written to the feature log: %s", len(tables), error)
        else:
            self._measures.logged(len(tables))


class _Gathered:
    """Rows of one model version that are not in a file yet."""

    def __init__(self) -> None:
        self.tables: list[pa.Table] = []
        self.bytes = 0
        self.since = time.monotonic()
