"""A tiny marketplace, and what the first example makes of it: the others start from there."""

from pathlib import Path

import pytest
import torch

from experiments.api import MarketplaceConfig, generate_marketplace
from experiments.examples import rank_your_log


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The input tables of a simulated marketplace of size tiny, without images."""
    folder = tmp_path_factory.mktemp("examples") / "data"
    generate_marketplace(MarketplaceConfig.preset("tiny", images=False), folder)
    return folder


@pytest.fixture(scope="session")
def ranked(log: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The folder that `rank_your_log` fills, and the AUC that it prints."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("ranked")
    return out, rank_your_log.rank(log, out)
