"""One small world and one trained grader for all tests of this folder."""

from pathlib import Path

import pytest

from embeddings.grading.graders import FeatureGrader, GraderConfig, train_grader
from tests.embeddings.grading.small_world import HOLDOUT, read_small_world, write_small_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_world(tmp_path_factory.mktemp("grading") / "data")


@pytest.fixture(scope="session")
def stack(world: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureGrader:
    catalogue, graded = read_small_world(world)
    config = GraderConfig(holdout=HOLDOUT, stuffed_per_query=8)
    return train_grader(graded, catalogue, tmp_path_factory.mktemp("graders") / "stack", config=config)
