"""Packages to measure serving with: 200,000 products and 100,000 queries of 256, random vectors and weights.

Everything on the way is the real thing: a generated log, its features, a ranker after one epoch, a package.
Latency and memory depend on sizes, not on what the numbers say.

Shapes: N candidates.
"""

import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from embeddings.embedding_table import EmbeddingTable
from experiments.benchmarks.features.feature_logs import START_US, TIME, write_table
from experiments.config import load_config
from features.artifacts import atomic_write_json
from features.columns.clock import DAY_US
from features.offline.build import build
from features.online.request import ScoreRequest
from features.progress import Progress
from features.schema import FeatureConfig
from ranking.model import RankerConfig, SemanticConfig
from ranking.run import RunConfig, execute_run
from ranking.train import TrainingConfig
from serving.packaging.build_package import PackageOptions, build_package

TWO_TOWERS, INT8, PROJECTED, DCN = "two_towers", "two_towers_int8", "two_towers_projected", "dcn"
#: Each package: the run that it is made of, and how.
PACKAGES = {
    TWO_TOWERS: (TWO_TOWERS, PackageOptions()),
    INT8: (TWO_TOWERS, PackageOptions(tables="int8")),
    PROJECTED: (TWO_TOWERS, PackageOptions(projected=True)),
    DCN: (DCN, PackageOptions()),
}
#: The package TWO_TOWERS with tables of a few rows: a worker of it is a worker without tables.
SMALL = "small"
#: Processes that compile at the same time.
_COMPILERS = 2
_DAYS = 40
_FINISHED = "sizes.json"
_FEATURES = "marketplace_features.toml"


@dataclass(frozen=True)
class PackageSizes:
    """How large the packages are; users have about 30 purchases each."""

    products: int = 200_000
    queries: int = 100_000
    dim: int = 256
    users: int = 20_000
    impressions: int = 120_000
    purchases: int = 600_000

    @property
    def as_of_us(self) -> int:
        """The moment of the snapshot: the end of the log."""
        return START_US + _DAYS * DAY_US


SIZES = PackageSizes()
QUICK_SIZES = PackageSizes(
    products=2_000, queries=1_000, dim=32, users=500, impressions=6_000, purchases=15_000
)


def make_packages(folder: Path, sizes: PackageSizes, *, progress: Progress) -> dict[str, Path]:
    """The packages in `folder`, made unless they are there in these sizes already."""
    packages = {**{name: folder / name for name in PACKAGES}, SMALL: folder / SMALL / TWO_TOWERS}
    described = {**vars(sizes), "features": _FEATURES}
    if (folder / _FINISHED).is_file():
        if json.loads((folder / _FINISHED).read_text(encoding="utf-8")) == described:
            return packages
        raise ValueError(f"{folder} holds packages of other sizes; delete it, or name another folder")
    steps, done = 7 + len(PACKAGES), 0

    def report(stage: str) -> None:
        nonlocal done
        progress(stage, done, steps)
        done += 1

    _make_runs(folder, sizes, (TWO_TOWERS, DCN), report)
    few = replace(QUICK_SIZES, products=500, queries=200, users=100, dim=sizes.dim)
    _make_runs(folder / SMALL, few, (TWO_TOWERS,), lambda _: None)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(_COMPILERS, mp_context=spawn) as compilers:
        report("compiling packages")
        made = [compilers.submit(_package, folder, name, sizes) for name in PACKAGES]
        made.append(compilers.submit(_package, folder / SMALL, TWO_TOWERS, few))
        for one in as_completed(made):
            one.result()
            report("compiling packages")
    atomic_write_json(folder / _FINISHED, described)
    return packages


def _make_runs(
    folder: Path, sizes: PackageSizes, names: Sequence[str], report: Callable[[str], None]
) -> None:
    """Log, features, vectors and trained rankers in `folder`."""
    report("writing a log")
    write_log(folder / "data", sizes)
    report("building features")
    config = load_config(Path(__file__).parents[2] / "configs" / _FEATURES, FeatureConfig)
    seldom = [feature.model_copy(update={"min_count": 1}) for feature in config.sparse]
    config = config.model_copy(update={"sparse": tuple(seldom)})
    build(folder / "data", folder / "features", config, threads=1, memory_limit="1GB")
    report("writing vectors")
    tables = _write_vectors(folder, sizes)
    for name in names:
        report(f"training {name}")
        _train(folder, name, two_towers=name == TWO_TOWERS, tables=tables)


def write_log(folder: Path, sizes: PackageSizes) -> None:
    """Write products, impressions and purchases."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    products = np.arange(sizes.products)
    write_table(
        folder / "products.parquet",
        {
            "product_id": products,
            "title": [f"product {one}" for one in products],
            "aisle": [f"aisle {one % 30}" for one in products],
            "brand": [f"brand {one % min(5_000, sizes.products // 4)}" for one in products],
            "price": rng.lognormal(1.5, 0.7, sizes.products),
        },
    )
    count = sizes.impressions
    time_us = START_US + np.sort(rng.integers(0, _DAYS * DAY_US, -(-count // 4)))
    slate = np.arange(count) // 4
    clicked = rng.random(count) < 0.1
    write_table(
        folder / "impressions.parquet",
        {
            "impression_id": np.arange(count),
            "timestamp": pa.array(time_us[slate], TIME),
            "user_id": rng.integers(0, sizes.users, len(time_us))[slate],
            "query": [f"query {one}" for one in rng.integers(0, sizes.queries, len(time_us))[slate]],
            "product_id": rng.integers(0, sizes.products, count),
            "clicked": clicked.astype(np.int8),
            "click_timestamp": pa.array(time_us[slate] + 30_000_000, TIME, mask=~clicked),
            "position": (np.arange(count) % 4 + 1).astype(np.int8),
            "store_id": rng.integers(0, 500, len(time_us)).astype(np.int32)[slate],
            "device": np.array(["web", "ios", "android"])[rng.integers(0, 3, len(time_us))][slate],
            "price": rng.lognormal(1.5, 0.7, count),
        },
    )
    bought = np.sort(rng.integers(START_US, START_US + _DAYS * DAY_US, sizes.purchases))
    write_table(
        folder / "purchases.parquet",
        {
            "timestamp": pa.array(bought, TIME),
            "user_id": rng.integers(0, sizes.users, sizes.purchases),
            "product_id": rng.integers(0, sizes.products, sizes.purchases),
            "purchase_id": np.arange(sizes.purchases),
        },
    )


def requests_of(sizes: PackageSizes, candidates: int, *, count: int) -> list[ScoreRequest]:
    """Requests of known users and queries; products from the whole table."""
    rng = np.random.default_rng((0, candidates))
    return [
        ScoreRequest(
            user_id=int(rng.integers(sizes.users)),
            query=f"query {rng.integers(sizes.queries)}",
            candidates=pa.array(rng.integers(0, sizes.products, candidates)),
            timestamp_us=sizes.as_of_us,
            context={"store_id": int(rng.integers(500)), "device": "ios"},
            candidate_columns={"price": rng.lognormal(1.5, 0.7, candidates).round(2)},
        )
        for _ in range(count)
    ]


def _write_vectors(folder: Path, sizes: PackageSizes) -> dict[str, Path]:
    rng = np.random.default_rng(2)
    ids = {
        "product": pa.array(np.arange(sizes.products)),
        "query": pa.array([f"query {one}" for one in range(sizes.queries)]),
    }
    for kind, values in ids.items():
        vectors_ND = rng.standard_normal((len(values), sizes.dim), dtype=np.float32) / sizes.dim**0.5
        EmbeddingTable.write(
            folder / "vectors" / kind,
            ids=values,
            vectors_ND=vectors_ND,
            encoder_id="random",
            kind=kind,  # type: ignore[arg-type]
            normalised=False,
        )
    return {kind: folder / "vectors" / kind for kind in ids}


def _package(folder: Path, name: str, sizes: PackageSizes) -> None:
    """In a process of its own."""
    torch.set_num_threads(1)
    run, options = PACKAGES[name]
    build_package(
        folder / "runs" / run, folder / name, log=folder / "data", as_of_us=sizes.as_of_us, options=options
    )


def _train(folder: Path, name: str, *, two_towers: bool, tables: dict[str, Path]) -> None:
    execute_run(
        RunConfig(
            variant=name,
            seed=1,
            features=folder / "features",
            product_table=tables["product"] if two_towers else None,
            query_table=tables["query"] if two_towers else None,
            ranker=RankerConfig(semantic=SemanticConfig() if two_towers else None),
            training=TrainingConfig(
                batch_size=4096, max_epochs=1, evaluations_per_epoch=1, precision="float32"
            ),
        ),
        folder / "runs" / name,
        environment={},
        resume=True,  # of a folder that was left half made
    )
