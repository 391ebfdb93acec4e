"""How long the model takes for one request, in process and on one thread: backends, tables, the two towers.

Random weights and tables of 200,000 products of 256: latency depends on neither. Ways are measured in turns,
a round each, so that a busy moment of the machine does not fall on one of them alone.

    python -m experiments.benchmarks.serving_model

Shapes: N candidates, D width of the vectors.
"""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ranking.model import RankerConfig, RankerInputs, SemanticConfig, build_ranker
from serving.package.tables import ServingTable, TableDtype, open_table, write_table
from serving.packaging.from_ranker import product_projections, tables_of
from serving.scoring.compile import BackendName, compile_ranker, load_compiled
from serving.scoring.ranker_scorer import RankerScorer, ScoringBatch, array_inputs, table_inputs
from serving.scoring.request_ranker import RankerShape, RequestRanker

CANDIDATES = (1, 20, 100, 300)
PRODUCTS, QUERIES, DIM, PURCHASES = 200_000, 100_000, 256, 30
#: Users, products, queries; aisle, brand, store, device, position, hour, day: as in the demo, larger.
SPARSE_ROWS = dict(
    zip(
        ("user_id", "product_id", "query", "aisle", "brand", "store_id", "device", "position", "hour", "day"),
        (200_000, PRODUCTS, QUERIES, 30, 5_000, 500, 5, 50, 26, 9),
        strict=True,
    )
)
#: Price and 36 counters, of which those of query and user are the request's.
DENSE = tuple(f"dense_{i}" for i in range(37))
REQUEST_COLUMNS = ("user_id", "query", "store_id", "device", "hour", "day", *DENSE[1:19])


@dataclass(frozen=True)
class Way:
    """One way to serve the model."""

    towers: str
    backend: BackendName
    vectors: TableDtype
    projected: bool = False

    @property
    def title(self) -> str:
        tables = f", {self.vectors} vectors" if self.towers == "two towers" else ""
        return f"{self.towers}, {self.backend}{tables}{', projected' if self.projected else ''}"


WAYS = (
    Way("two towers", "eager", "float16"),
    Way("two towers", "torchscript", "float16"),
    Way("two towers", "aotinductor", "float16"),
    Way("two towers", "aotinductor", "int8"),
    Way("two towers", "aotinductor", "float16", projected=True),
    Way("DCN alone", "aotinductor", "float16"),
)


def measure_model(
    *,
    ways: Sequence[Way] = WAYS,
    candidates: Sequence[int] = CANDIDATES,
    products: int = PRODUCTS,
    rounds: int = 10,
    requests: int = 60,
) -> list[dict[str, Any]]:
    """One row a way and number of candidates: p50 and p99 over all requests in ms, the p50 of the quietest
    round, and processor time a request.

    Threads must be one already (`torch.set_num_threads`).
    """
    with TemporaryDirectory(prefix="serving-model-") as folder:
        scorers = _scorers(ways, products, Path(folder))
        rows = []
        for count in candidates:
            batches = {way: _requests(scorers[way].shape, count, products) for way in ways}
            wall_ms: dict[Way, list[NDArray[np.float64]]] = {way: [] for way in ways}
            cpu_ms: dict[Way, float] = dict.fromkeys(ways, 0.0)
            for turn in range(rounds + 1):
                for way in ways:
                    wall, cpu = _round(scorers[way], batches[way], requests)
                    if turn:  # the first warms up
                        wall_ms[way].append(wall)
                        cpu_ms[way] += cpu / rounds
            rows += [_row(way, count, wall_ms[way], cpu_ms[way]) for way in ways]
    return rows


def _row(way: Way, count: int, rounds_ms: list[NDArray[np.float64]], cpu_ms: float) -> dict[str, Any]:
    every = np.concatenate(rounds_ms)
    return {
        "way": way.title,
        "candidates": count,
        "p50_ms": float(np.quantile(every, 0.5)),
        "p99_ms": float(np.quantile(every, 0.99)),
        "quiet_p50_ms": min(float(np.quantile(one, 0.5)) for one in rounds_ms),
        "cpu_ms": cpu_ms,
    }


def _round(
    scorer: RankerScorer, batches: list[ScoringBatch], requests: int
) -> tuple[NDArray[np.float64], float]:
    wall = np.empty(requests)
    cpu_started = time.process_time()
    for i in range(requests):
        started = time.perf_counter()
        scorer.score(batches[i % len(batches)])
        wall[i] = time.perf_counter() - started
    return 1e3 * wall, 1e3 * (time.process_time() - cpu_started) / requests


def _scorers(ways: Sequence[Way], products: int, folder: Path) -> dict[Way, RankerScorer]:
    scorers = {}
    generator = np.random.default_rng(0)
    vectors_MD = generator.standard_normal((products, DIM), dtype=np.float32) / DIM**0.5
    vectors_MD[0] = 0
    vectors: dict[TableDtype, ServingTable] = {}
    for dtype in sorted({way.vectors for way in ways}):
        write_table(folder / f"vectors-{dtype}.npy", vectors_MD, dtype=dtype)
        vectors[dtype] = open_table(folder / f"vectors-{dtype}.npy")
    for way in ways:
        two_towers = way.towers == "two towers"
        config = RankerConfig(semantic=SemanticConfig() if two_towers else None)
        small = {"product": vectors_MD[:2], "query": vectors_MD[:2]}
        sparse_rows = {name: min(rows, products) for name, rows in SPARSE_ROWS.items()}
        ranker = build_ranker(config, RankerInputs(len(DENSE), sparse_rows, small), seed=1)
        module = RequestRanker.from_ranker(
            ranker,
            dense_columns=DENSE,
            sparse_columns=tuple(SPARSE_ROWS),
            request_columns=REQUEST_COLUMNS,
            quantised=two_towers and way.vectors == "int8",
            projected=way.projected,
        )
        tables = {}
        for name, table in tables_of(ranker).items():
            write_table(folder / "tables" / f"{name}.npy", table, dtype="float16")
            tables[name] = open_table(folder / "tables" / f"{name}.npy")
        projections = None
        if way.projected:
            write_table(folder / "projections.npy", product_projections(module, vectors_MD), dtype="float16")
            projections = open_table(folder / "projections.npy")
        bound: dict[str, Any] = {
            "tables": tables,
            "vectors": vectors[way.vectors] if two_towers else None,
            "projections": projections,
        }
        out = folder / way.title.replace(" ", "-")
        compile_ranker(module, table_inputs(module.shape, **bound), out, backend=way.backend)
        compiled = load_compiled(out)
        scorers[way] = RankerScorer(compiled.program, compiled.shape, **bound)
    return scorers


def _requests(shape: RankerShape, count: int, products: int) -> list[ScoringBatch]:
    """20 requests of one user each; products are drawn from the whole table, so that caches do not help."""
    generator = np.random.default_rng(count)
    rows = {name: min(rows, products) for name, rows in SPARSE_ROWS.items()}
    columns = {"request_sparse": shape.request_sparse, "candidate_sparse": shape.candidate_sparse}
    counts = {"R": 1, "N": count, "H": PURCHASES}
    batches = []
    for _ in range(20):
        arrays: dict[str, Any] = {}
        for name, spec in array_inputs(shape).items():
            size = [counts[axis] if isinstance(axis, str) else axis for axis in spec.axes]
            if spec.dtype is np.float32:
                drawn: Any = generator.standard_normal(size)
            elif name in columns:
                drawn = generator.integers(0, [rows[column] for column in columns[name]], size=size)
            else:
                drawn = generator.integers(0, 1 if name == "request_of" else products, size=size)
            arrays[spec.attribute] = drawn.astype(spec.dtype)
        batches.append(ScoringBatch(**arrays))
    return batches


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Ways down, candidates across: p50 / p99, and the p50 of the quietest round in brackets."""
    counts = sorted({row["candidates"] for row in rows})
    lines = [
        "| ms, p50 / p99 (quietest round) | " + " | ".join(f"N = {count}" for count in counts) + " |",
        "| --- |" + " ---: |" * len(counts),
    ]
    for way in dict.fromkeys(row["way"] for row in rows):
        cells = [
            f"{row['p50_ms']:.2f} / {row['p99_ms']:.2f} ({row['quiet_p50_ms']:.2f})"
            for count in counts
            for row in rows
            if (row["way"], row["candidates"]) == (way, count)
        ]
        lines.append("| " + " | ".join([way, *cells]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    ways = [way for way in WAYS if way.backend != "aotinductor" or shutil.which("g++")]
    measured = measure_model(ways=ways)
    print(to_markdown(measured))
    print(json.dumps(measured))
