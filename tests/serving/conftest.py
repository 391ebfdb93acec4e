"""One small run and its package, made once."""

import shutil
from pathlib import Path

import pytest
import torch

from ranking.model import SemanticConfig
from tests.serving.small_packages import package_other, package_small, train_small


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with data, features, products, queries, run and package of the full model."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("small")
    train_small(folder, semantic=SemanticConfig(widths=(8,)))
    package_small(folder)
    return folder


@pytest.fixture(scope="session")
def other_package(small_run: Path) -> Path:
    """Of the same log, with other weights and columns; not to be changed."""
    return package_other(small_run)


@pytest.fixture
def package(small_run: Path, tmp_path: Path) -> Path:
    """A package of one's own to change."""
    return Path(shutil.copytree(small_run / "package", tmp_path / "package"))
