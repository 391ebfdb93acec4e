"""Which columns of a request are watched, and the record of how they were distributed on the test days.

Watched are the score, the dense features, and for each sparse feature whether its id is unknown; also whether
the user has no purchases, and what has no vector. Left out is what differs by design: parts of the clock, and
features that serving fills with a `serving_value` (the position).

Shapes: R requests, N candidates, C columns.
"""

from collections.abc import Sequence

import numpy as np

from features.columns.vocabulary import is_shared_row
from features.online.request_features import FeatureRows
from features.online.snapshot import SnapshotManifest
from serving.drift.tally import Tally, Values, group_of, in_order
from serving.package.training_record import TrainingRecord, WatchedColumn, edges_of
from serving.wire.reply import ScoreReply


def watched_columns(
    snapshot: SnapshotManifest, request_columns: Sequence[str], entities: Sequence[str]
) -> tuple[WatchedColumn, ...]:
    """The columns of a model, their distributions still unknown."""
    by_design = set()
    for feature in snapshot.config.features:
        if feature.source == "timestamp" or getattr(feature, "serving_value", None) is not None:
            by_design |= {feature.name, f"{feature.name}_missing"}

    def column(name: str, kind: str, by: str, **more: object) -> WatchedColumn:
        nothing = {"edges": (), "shares": (1.0,), "errors": (0.0,), "mean": 0.0}
        return WatchedColumn.model_validate({"name": name, "kind": kind, "by": by, **nothing, **more})

    found = [column("score", "score", "candidate")]
    for name in snapshot.dense_columns:
        if name not in by_design:
            by = "request" if name in request_columns else "candidate"
            found.append(column(name, "dense", by, column=name))
    for sparse in snapshot.sparse_columns:
        if sparse.name not in by_design:
            by = "request" if sparse.name in request_columns else "candidate"
            of_id = {"column": sparse.name, "oov_rows": sparse.oov_rows}
            found.append(column(f"{sparse.name} unknown", "unknown id", by, **of_id))
    if snapshot.config.history is not None:
        found.append(column("no purchases", "no purchases", "request"))
    if "product" in entities:
        found.append(column("product without vector", "no product vector", "candidate"))
    if "query" in entities:
        found.append(column("query without vector", "no query vector", "request"))
    return in_order(found)


class Reader:
    """Reads the watched columns of replies."""

    def __init__(
        self,
        columns: Sequence[WatchedColumn],
        *,
        dense_columns: Sequence[str],
        sparse_columns: Sequence[str],
    ) -> None:
        """
        Raises:
            ValueError: a column that the model does not read.
        """
        self._columns = in_order(columns)
        self._place = {name: at for at, name in enumerate(dense_columns)}
        self._place_of_id = {name: at for at, name in enumerate(sparse_columns)}
        for column in self._columns:
            places = {"dense": self._place, "unknown id": self._place_of_id}.get(column.kind)
            if places is not None and column.column not in places:
                raise ValueError(
                    f"the training record has a column {column.column}, which the model does not read; "
                    "make the package again"
                )

    def values(self, reply: ScoreReply, *, group: int) -> Values:
        """What one reply says; it must have its features (`rows`)."""
        rows = reply.rows
        assert rows is not None
        by_request = [column for column in self._columns if column.by == "request"]
        by_candidate = self._columns[len(by_request) :]
        request_C = [self._of_request(column, reply, rows) for column in by_request]
        candidate_NC = np.empty((len(reply.scores_N), len(by_candidate)), np.float32)
        for at, column in enumerate(by_candidate):
            candidate_NC[:, at] = self._of_candidates(column, reply, rows)
        return Values(
            np.array([group]),
            np.array([request_C], np.float32).reshape(1, len(by_request)),
            candidate_NC,
            np.zeros(len(reply.scores_N), np.int64),
        )

    def _of_request(self, column: WatchedColumn, reply: ScoreReply, rows: FeatureRows) -> float:
        if column.kind == "no purchases":
            return float(reply.history_length == 0)
        if column.kind == "no query vector":
            return float(reply.unknown.get("query_vectors", 0) > 0)
        return float(self._of_candidates(column, reply, rows)[0])  # all are the same

    def _of_candidates(self, column: WatchedColumn, reply: ScoreReply, rows: FeatureRows) -> np.ndarray:
        if column.kind == "score":
            return reply.scores_N
        if column.kind == "dense":
            return rows.dense_NF[:, self._place[column.column]]
        if column.kind == "unknown id":
            return is_shared_row(rows.sparse_NS[:, self._place_of_id[column.column]], column.oov_rows)
        without_N = np.zeros(len(reply.scores_N))  # how many, not which: their order is not looked at
        without_N[: reply.unknown.get("product_vectors", 0)] = 1
        return without_N


def record_of(
    columns: Sequence[WatchedColumn],
    served: Sequence[tuple[int | str | None, ScoreReply]],
    *,
    dense_columns: Sequence[str],
    sparse_columns: Sequence[str],
) -> TrainingRecord:
    """The record of users and what was answered to their requests; nobody's are dealt to all groups.

    Raises:
        ValueError: nothing was served.
    """
    if not served:
        raise ValueError("a training record needs at least one request that was served")
    reader = Reader(columns, dense_columns=dense_columns, sparse_columns=sparse_columns)
    values = Values.joined(
        [
            reader.values(reply, group=group_of(at if user_id is None else user_id))
            for at, (user_id, reply) in enumerate(served)
        ]
    )
    return record_of_values(columns, values)


def record_of_values(columns: Sequence[WatchedColumn], values: Values) -> TrainingRecord:
    """The record of what requests said."""
    value_UC = [*values.request_RC.T, *values.candidate_NC.T]
    binned = []
    for column, value_U in zip(in_order(columns), value_UC, strict=True):
        edges = (0.5,) if column.is_share else tuple(edges_of(value_U).tolist())
        nothing = (0.0,) * (len(edges) + 1)
        binned.append(column.model_copy(update={"edges": edges, "shares": nothing, "errors": nothing}))
    tally = Tally(binned)
    tally.add(values)
    found = []
    for at, column in enumerate(tally.columns):
        share_E, error_E = (tuple(one.tolist()) for one in tally.shares(at))
        certain = error_E if np.isfinite(error_E).all() else (0.0,) * len(error_E)
        found.append(column.model_copy(update={"shares": share_E, "errors": certain, "mean": tally.mean(at)}))
    return TrainingRecord(
        requests=tally.requests,
        candidates=tally.candidates,
        groups=int(np.count_nonzero(tally.requests_G)),
        columns=tuple(found),
    )
