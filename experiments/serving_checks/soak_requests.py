"""What a soak sends, and what it must get: a pool of mixed requests with their scores in every generation."""

import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.inputs.table_specs import is_text
from features.inputs.tables import InputTables
from features.online.request import RequestError, ScoreRequest
from serving.scoring.predictor import Predictor
from serving.wire import arrow_codec, json_codec
from serving.wire.reply import ScoreReply

#: Largest difference of a served probability from the expected one: rounding of other batch sizes.
TOLERANCE = 1e-5
#: Products that a refresh adds; requests name them from the beginning.
NEW_PRODUCTS = 50
_COUNTS = (1, 5, 20, 100, 300)


@dataclass(frozen=True, eq=False)
class Asked:
    """One request of the pool, ready to be sent."""

    request: ScoreRequest
    body: bytes
    content_type: str


def make_pool(log: InputTables, *, timestamp_us: int, size: int, seed: int) -> list[Asked]:
    """Known, unknown and absent users and queries; known, unknown, future products; half of them Arrow."""
    rng = np.random.default_rng(seed)
    known = log.table("products").to_table(columns=["product_id"])["product_id"].to_pylist()
    new = new_product_ids(known)
    seen = log.table("impressions").head(
        20_000, columns=["user_id", "query"] if "query" in log.columns("impressions") else ["user_id"]
    )
    users = seen["user_id"].drop_null().unique().to_pylist()
    if not users:  # nobody is known: any id will do
        users = ["nobody"] if is_text(seen["user_id"].type) else [0]
    queries = seen["query"].drop_null().unique().to_pylist() if "query" in seen.column_names else ["tea"]
    pool = []
    for number in range(size):
        count = _COUNTS[number % len(_COUNTS)]
        ids = [known[one] for one in rng.integers(0, len(known), count)]
        for place in np.flatnonzero(rng.random(count) < 0.03):
            ids[place] = new[int(rng.integers(len(new)))]
        for place in np.flatnonzero(rng.random(count) < 0.02):
            ids[place] = f"unknown {place}" if isinstance(ids[0], str) else int(2**62 + place)
        user = users[int(rng.integers(len(users)))]
        query = queries[int(rng.integers(len(queries)))]
        kind = rng.random()
        request = ScoreRequest(
            user_id=user if kind < 0.8 else (None if kind < 0.87 else type(user)(2**61 + number)),
            query=[query, query, query, f"{query} for {number}", None][int(rng.integers(5))],
            candidates=pa.array(ids),
            timestamp_us=timestamp_us,
            history=[known[one] for one in rng.integers(0, len(known), 7)] if rng.random() < 0.2 else None,
        )
        codec: Any = arrow_codec if number % 2 else json_codec
        pool.append(Asked(request, codec.encode_request(request), codec.CONTENT_TYPE))
    return pool


def new_product_ids(known: Sequence[Any]) -> list[Any]:
    """Ids that no product has yet."""
    if isinstance(known[0], str):
        return [f"new product {number}" for number in range(NEW_PRODUCTS)]
    return [max(known) + 1 + number for number in range(NEW_PRODUCTS)]


def extend_log(log: InputTables, folder: Path) -> Path:
    """The same log with NEW_PRODUCTS more products, each like one of it; the other tables are linked."""
    folder.mkdir(parents=True)
    products = log.table("products").to_table()
    new = new_product_ids(products["product_id"].to_pylist())
    clones = products.slice(0, NEW_PRODUCTS)
    clones = clones.set_column(
        clones.schema.get_field_index("product_id"),
        "product_id",
        pa.array(new[: len(clones)], products["product_id"].type),
    )
    pq.write_table(pa.concat_tables([products, clones]), folder / "products.parquet")
    for path in sorted(log.root.iterdir()):
        if path.stem in ("impressions", "purchases", "relevance"):
            try:
                (folder / path.name).symlink_to(path.resolve())
            except OSError:
                shutil.copytree(path, folder / path.name) if path.is_dir() else shutil.copy(path, folder)
    return folder


@dataclass
class Expectations:
    """Scores of the pool by package and generation; replies of one that is not known yet wait for it.

    Attributes:
        by_generation: by "MODEL_VERSION GENERATION".
        wrong: what was wrong, one sentence each.
        waiting: replies whose generation has not been added.
    """

    pool: Sequence[Asked]
    by_generation: dict[str, list[np.ndarray]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    waiting: list[tuple[int, ScoreReply]] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)
    largest_difference: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, predictor: Predictor) -> str:
        """Score the pool by the live generation of a package; check the replies that waited for it.

        Returns:
            What it is called in `by_generation`.

        Raises:
            RequestError: the package refuses a request of the pool.
        """
        facts = predictor.facts()
        generation = f"{facts['model_version']} {facts['generation']}"
        scores: list[np.ndarray] = []
        for asked in self.pool:
            (reply,) = predictor.score_many([asked.request])
            if isinstance(reply, RequestError):
                raise reply
            assert _served_by(reply) == generation
            scores.append(reply.scores_N)
        with self.lock:
            self.by_generation[generation] = scores
            ready = [one for one in self.waiting if _served_by(one[1]) == generation]
            self.waiting = [one for one in self.waiting if _served_by(one[1]) != generation]
            for position, reply in ready:
                self._check(position, reply)
        return generation

    def check(self, position: int, reply: ScoreReply) -> None:
        """Compare a reply to request `position` of the pool with what its generation must give."""
        with self.lock:
            if _served_by(reply) in self.by_generation:
                self._check(position, reply)
            else:
                self.waiting.append((position, reply))

    def _check(self, position: int, reply: ScoreReply) -> None:
        served_by = _served_by(reply)
        expected_N = self.by_generation[served_by][position]
        self.checked[served_by] = self.checked.get(served_by, 0) + 1
        if reply.scores_N.shape != expected_N.shape:
            self.wrong.append(f"request {position}: {len(reply.scores_N)} scores for {len(expected_N)}")
            return
        difference = float(np.abs(reply.scores_N - expected_N).max())
        self.largest_difference = max(self.largest_difference, difference)
        served_N = reply.scores_N[reply.order_N]
        if not difference <= TOLERANCE:
            self.wrong.append(f"request {position}, {served_by}: off by {difference:.2g}")
        elif (np.diff(served_N) > 0).any() or len(np.unique(reply.order_N)) != len(expected_N):
            self.wrong.append(f"request {position}, {served_by}: not ordered by its scores")


def _served_by(reply: ScoreReply) -> str:
    return f"{reply.model_version} {reply.generation}"
