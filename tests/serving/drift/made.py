"""Requests, records and counts made by hand."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from serving.drift.live_counts import LiveCounts
from serving.drift.tally import GROUPS, Tally, Values
from serving.drift.watched import Reader, record_of_values
from serving.package.training_record import TrainingRecord, WatchedColumn
from serving.wire.reply import ScoreReply

#: Monday, 30 November 2026, 07:00 UTC.
NOON_S = 1_796_022_000.0


def columns() -> tuple[WatchedColumn, ...]:
    """The score and a price by candidate, an age and missing purchases by request, unknown products."""
    described: list[dict[str, Any]] = [
        {"name": "age", "by": "request", "kind": "dense", "column": "age"},
        {"name": "no purchases", "by": "request", "kind": "no purchases"},
        {"name": "score", "by": "candidate", "kind": "score"},
        {"name": "price", "by": "candidate", "kind": "dense", "column": "price"},
        {
            "name": "product unknown",
            "by": "candidate",
            "kind": "unknown id",
            "column": "product",
            "oov_rows": 2,
        },
    ]
    nothing = {"edges": (), "shares": (1.0,), "errors": (0.0,), "mean": 0.0, "oov_rows": 2}
    return tuple(WatchedColumn.model_validate({**one, **nothing}) for one in described)


def reader(record: TrainingRecord) -> Reader:
    return Reader(record.columns, dense_columns=["price", "age"], sparse_columns=["product"])


def reply(
    scores: Sequence[float] = (0.1, 0.2),
    *,
    price: Sequence[float] = (1.0, 2.0),
    age: float = 30.0,
    product_rows: Sequence[int] = (5, 6),
    history_length: int = 3,
) -> ScoreReply:
    """An answer with features: the product's rows 1 and 2 are those of unknown ids."""
    dense_NF = np.stack([np.array(price, np.float32), np.full(len(price), age, np.float32)], axis=1)
    rows: Any = SimpleNamespace(dense_NF=dense_NF, sparse_NS=np.array(product_rows, np.int32)[:, None])
    scores_N = np.array(scores, np.float32)
    return ScoreReply(
        scores_N, np.arange(len(scores)), "model", "000001", "2026-01-01", {}, history_length, rows=rows
    )


def some_values(requests: int, *, seed: int = 0, candidates: int = 10) -> Values:
    """Requests of 200 users; the candidates of one resemble one another."""
    rng = np.random.default_rng(seed)
    user_R = rng.integers(0, 200, requests)
    ages = np.random.default_rng(99).normal(size=200)
    request_RC = np.stack([ages[user_R], user_R % 10 == 0], axis=1).astype(np.float32)
    of_N = np.repeat(np.arange(requests), candidates)
    price_N = rng.normal(size=requests)[of_N] + 0.5 * rng.normal(size=len(of_N))
    candidate_NC = np.stack(
        [1 / (1 + np.exp(2 - price_N)), price_N, rng.random(len(of_N)) < 0.1], axis=1
    ).astype(np.float32)
    return Values(user_R % GROUPS, request_RC, candidate_NC, of_N)


def some_record(requests: int = 4_000, *, seed: int = 1) -> TrainingRecord:
    return record_of_values(columns(), some_values(requests, seed=seed))


def tally_of(record: TrainingRecord, values: Values) -> Tally:
    tally = Tally(record.columns)
    tally.add(values)
    return tally


class Clock:
    """A clock that is set by hand."""

    def __init__(self, now_s: float = NOON_S) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def live_counts(record: TrainingRecord, clock: Clock, *, model_version: str = "model") -> LiveCounts:
    return LiveCounts(record, reader(record), model_version=model_version, most_a_second=1e9, clock=clock)


def serve(live: LiveCounts, clock: Clock, folder: Path, *, requests: int, user: int = 0) -> None:
    """Count some requests of different users, one a millisecond, and write them."""
    for at in range(requests):
        clock.now_s += 0.001
        live.count(reply(), user + at)
    live.write(folder)
