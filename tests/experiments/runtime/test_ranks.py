"""The same command, started by `torchrun`, trains on several ranks, and the first one speaks for all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from embeddings.training.ranks import Ranks
from experiments.runtime.ranks import device_of_rank, one_of_ranks
from features.offline.build import build
from tests.features.small_logs import random_tables, write_tables
from tests.ranking.small_runs import SMALL_CONFIG

CPU = torch.device("cpu")


def test_one_process_alone_raises_what_it_did_wrong() -> None:
    with one_of_ranks(CPU) as ranks:
        assert ranks == Ranks()
    with pytest.raises(ValueError, match="wrong"), one_of_ranks(CPU):
        raise ValueError("wrong")
    assert device_of_rank(CPU, Ranks()) == CPU


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, "-m", "experiments", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_torchrun_trains_with_the_command_and_the_config_of_one_process(tmp_path: Path) -> None:
    data = write_tables(tmp_path / "data", random_tables(5, impressions=1200))
    build(data, tmp_path / "features", SMALL_CONFIG, buckets=2, threads=1, memory_limit="200MB")
    config, out = tmp_path / "run.toml", tmp_path / "run"
    config.write_text(
        f'variant = "dcn"\nseed = 1\nfeatures = "{tmp_path}/features"\n'
        "[ranker]\nembedding_dim = 4\ncross_layers = 1\ndeep_widths = [8]\ntop_widths = [8]\n"
        "[training]\nbatch_size = 80\nmax_epochs = 1\n"
    )
    done = torchrun("train", str(config), str(out))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test: AUC") == 1
    assert "sparse_tables.user" in done.stdout, "the plan is shown"
    assert json.loads((out / "run.json").read_text())["ranks"] == 2
    again = torchrun("train", str(config), str(out))
    assert again.returncode != 0
    assert again.stderr.count("error: ") == 1
    assert "already holds a run; pass --resume" in again.stderr
