"""What ranks of several trainings left behind; all are forked by one process, which imports once."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from embeddings.training.checkpoint import read_checkpoint
from ranking.checkpoint import WEIGHTS
from tests.ranking.sharded.ranks_child import JOBS
from tests.ranking.small_runs import small_data


@dataclass(frozen=True)
class Outcomes:
    """The folders of all jobs of `ranks_child`."""

    data: Path
    folder: Path
    stderr: str

    def of(self, job: str) -> list[dict[str, Any]]:
        """What each rank left, rank 0 first; {} of one that left nothing."""
        ranks = range(JOBS[job][1])
        paths = [self.folder / job / f"rank-{rank}.json" for rank in ranks]
        return [json.loads(path.read_text(encoding="utf-8")) if path.exists() else {} for path in paths]

    def run(self, job: str) -> Path:
        return self.folder / job / "run"

    def best(self, job: str) -> dict[str, Tensor]:
        return read_checkpoint(self.run(job) / "best").parts[WEIGHTS]

    def whole(self, job: str) -> dict[str, Tensor]:
        """Weights and optimizer states that the ranks read of a checkpoint."""
        return load_file(self.folder / job / "whole.safetensors")


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    root = tmp_path_factory.mktemp("ranks")
    small_data(root / "data")
    command = [sys.executable, "-W", "ignore", "-m", "tests.ranking.sharded.ranks_child"]
    child = subprocess.run(
        [*command, str(root / "data"), str(root / "out"), *JOBS],
        capture_output=True,
        text=True,
        timeout=1200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    return Outcomes(root / "data", root / "out", child.stderr)
