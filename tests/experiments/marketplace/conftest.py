"""One tiny marketplace for all tests that read files, and its world for all tests that do not."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.marketplace.config import Candidates, MarketplaceConfig
from experiments.marketplace.generate import generate
from experiments.marketplace.world.catalog import Catalog, make_catalog
from experiments.marketplace.world.queries import Queries, make_queries
from experiments.marketplace.world.shoppers import Shoppers, make_shoppers


@dataclass(frozen=True)
class Written:
    """A generated folder."""

    folder: Path
    config: MarketplaceConfig
    summary: dict[str, Any]

    def table(self, name: str) -> pa.Table:
        return pq.read_table(self.folder / f"{name}.parquet")

    def column(self, table: str, name: str) -> np.ndarray:
        return self.table(table)[name].to_numpy()


@dataclass(frozen=True)
class World:
    """Products, queries and users without a log."""

    config: MarketplaceConfig
    catalog: Catalog
    queries: Queries
    shoppers: Shoppers


def _generate(folder: Path, candidates: Candidates) -> Written:
    config = MarketplaceConfig.preset("tiny", candidates, seed=7, image_pixels=48)
    return Written(folder=folder, config=config, summary=generate(config, folder))


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The preset mixed, which is the default."""
    return _generate(tmp_path_factory.mktemp("marketplace") / "tiny", "mixed")


@pytest.fixture(scope="session")
def written_retrieval(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The preset retrieval with the same seed."""
    return _generate(tmp_path_factory.mktemp("marketplace") / "tiny_retrieval", "retrieval")


@pytest.fixture(scope="session")
def world() -> World:
    config = MarketplaceConfig.preset("tiny", seed=7)
    catalog = make_catalog(config, np.random.SeedSequence(1))
    return World(
        config=config,
        catalog=catalog,
        queries=make_queries(config, catalog, np.random.SeedSequence(2)),
        shoppers=make_shoppers(config, catalog, np.random.SeedSequence(3)),
    )
