"""The files of a feature log: LOG/<model version>/<time>-<process>-<random>.parquet, whole or absent.

One row for each candidate that got a score. What a file needs to be read by itself (which columns are
features, how large the logged share was) stands in its schema's metadata.

Shapes: N candidates.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from features.artifacts import replaced_file
from features.online.request import ScoreRequest
from features.online.snapshot import SnapshotManifest
from serving.feature_log.user_keys import hidden_user
from serving.wire.reply import ScoreReply

DENSE, SPARSE = "dense:", "sparse:"
_METADATA = b"dashclip"
_UTC_US = pa.timestamp("us", tz="UTC")
#: A file that has been written for so long was left by a process that was killed.
_ABANDONED_S = 600.0
#: What tells a user from all others under any name: these features stay out of the log.
_OF_USER = "user_id"


@dataclass(frozen=True)
class LoggedFile:
    """What a file says of itself.

    Attributes:
        share: of the requests that were logged.
        left_out: features that would tell who the user is.
    """

    path: Path
    model_version: str
    share: float
    left_out: tuple[str, ...]

    def table(self) -> pa.Table | None:
        """Its rows; None if a worker has removed it meanwhile to make room."""
        try:
            return pq.read_table(self.path)
        except FileNotFoundError:
            return None


def rows_of(
    request: ScoreRequest, reply: ScoreReply, *, request_id: str, key: bytes, share: float
) -> pa.Table:
    """The rows of one answer [N]."""
    rows = reply.rows
    assert rows is not None
    count = len(rows)
    manifest = rows.manifest
    left_out = columns_of_user(manifest)
    user = None if request.user_id is None else hidden_user(request.user_id, key)
    rank_N = reply.order_N.argsort()
    columns: dict[str, pa.Array] = {
        "request_id": _same(request_id, count, pa.string()),
        "timestamp": _same(rows.time_us, count, pa.int64()).cast(_UTC_US),
        "user": _same(user, count, pa.string()),
        "query": _same(request.query, count, pa.string()),
        "product_id": request.candidates,
        "candidate": pa.array(range(count), pa.int32()),
        "rank": pa.array(rank_N, pa.int32()),
        "score": pa.array(reply.scores_N, pa.float32()),
        "variant": _same(reply.variant, count, pa.string()),
        "instead_of": _same(reply.instead_of, count, pa.string()),
        "salt": _same(reply.salt, count, pa.string()),
        "is_shadow": _same(reply.is_shadow, count, pa.bool_()),
        "model_version": _same(reply.model_version, count, pa.string()),
        "generation": _same(reply.generation, count, pa.string()),
        "history_length": _same(reply.history_length, count, pa.int32()),
        "history_given": _same(request.history is not None, count, pa.bool_()),
        "given": pa.array(_given(request), pa.string()),
    }
    for at, name in enumerate(manifest.dense_columns):
        if name not in left_out:
            columns[DENSE + name] = pa.array(rows.dense_NF[:, at], pa.float32())
    for at, column in enumerate(manifest.sparse_columns):
        if column.name not in left_out:
            columns[SPARSE + column.name] = pa.array(rows.sparse_NS[:, at], pa.int32())
    told = {"model_version": reply.model_version, "share": share, "left_out": list(left_out)}
    return pa.table(columns, metadata={_METADATA: json.dumps(told).encode()})


def columns_of_user(manifest: SnapshotManifest) -> tuple[str, ...]:
    """Columns that are the user's id, or the row of it."""
    names = [f.name for f in manifest.config.features if f.source == "impressions" and f.column == _OF_USER]
    return tuple(name for own in names for name in (own, f"{own}_missing"))


def write_rows(log: Path, table: pa.Table, *, limit_bytes: int) -> Path:
    """Add a file, and remove the oldest ones so that all together stay below the limit.

    Raises:
        OSError: no space, no permission; then there is no new file.
    """
    told = _told(table.schema)
    version = "".join(c if c.isalnum() or c in "._-" else "-" for c in str(told["model_version"]))
    name = f"{time.time_ns() // 1000:016d}-{os.getpid()}-{uuid4().hex[:8]}.parquet"
    path = log / version / name
    with replaced_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
        make_room(log, limit_bytes - temporary.stat().st_size, besides=temporary)
    return path


def make_room(log: Path, limit_bytes: int, *, besides: Path | None = None) -> None:
    """Remove the oldest files until those left have at most so many bytes.

    Several workers may do it at once. What a killed one left half-written goes when it is old.
    """
    kept: list[tuple[str, Path, int]] = []
    for path in log.glob("*/*"):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        if path == besides:
            continue
        if path.name.startswith("."):
            if time.time() - stat.st_mtime > _ABANDONED_S:
                path.unlink(missing_ok=True)
            continue
        kept.append((path.name, path, stat.st_size))
    total = sum(size for *_, size in kept)
    for _, path, size in sorted(kept):
        if total <= limit_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size


def logged_files(log: Path) -> Iterator[LoggedFile]:
    """All files, oldest first within each model version; one that goes meanwhile, to make room, is none.

    Raises:
        ValueError: a file is not of a feature log.
    """
    for path in sorted(log.glob("*/*.parquet")):
        if not path.name.startswith("."):
            try:
                told = _told(pq.read_schema(path), path)
            except FileNotFoundError:
                continue
            yield LoggedFile(path, told["model_version"], told["share"], tuple(told["left_out"]))


def _told(schema: pa.Schema, path: Path | None = None) -> dict[str, Any]:
    content = (schema.metadata or {}).get(_METADATA)
    if content is None:
        raise ValueError(f"{path} is not a file of a feature log")
    told: dict[str, Any] = json.loads(content)
    return told


def _same(value: object, count: int, kind: pa.DataType) -> pa.Array:
    return pa.nulls(count, kind) if value is None else pa.repeat(pa.scalar(value, kind), count)


def _given(request: ScoreRequest) -> list[str]:
    """The live values of each candidate as JSON: what features were made of, and what only a log knows."""
    columns = {
        name: values.tolist() if not isinstance(values, list) else values
        for name, values in request.candidate_columns.items()
    }
    shared = dict(request.context)
    return [
        orjson.dumps(shared | {name: values[at] for name, values in columns.items()}).decode()
        for at in range(len(request.candidates))
    ]
