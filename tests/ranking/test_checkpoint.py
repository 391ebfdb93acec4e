"""Checkpoints are whole, verified, and of the right model, or refused with the file's name."""

from pathlib import Path

import pytest
import torch

from ranking.checkpoint import (
    Checkpoint,
    CheckpointError,
    latest_checkpoint,
    load_ranker_weights,
    ranker_weights,
    read_checkpoint,
    write_checkpoint,
)
from ranking.model import build_ranker
from tests.ranking.random_batches import RANKERS, inputs


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "step-0000000001"
    write_checkpoint(folder, Checkpoint({"w": torch.arange(6.0)}, {"m": torch.ones(2)}, {"step": 1}))
    return folder


def test_what_was_written_is_read(saved: Path) -> None:
    checkpoint = read_checkpoint(saved)
    assert torch.equal(checkpoint.weights["w"], torch.arange(6.0))
    assert torch.equal(checkpoint.optimizer["m"], torch.ones(2))
    assert checkpoint.progress == {"step": 1}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "progress.json"])
def test_a_changed_byte_is_refused_with_the_name_of_the_file(saved: Path, name: str) -> None:
    content = bytearray((saved / name).read_bytes())
    content[-1] ^= 1
    (saved / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} has changed since it was written"):
        read_checkpoint(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "progress.json", "checksums.json"])
def test_a_missing_file_is_refused_with_its_name(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        read_checkpoint(saved)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    weights = ranker_weights(build_ranker(RANKERS["dcn"], inputs(), seed=1))
    other = build_ranker(RANKERS["product + query"], inputs(), seed=1)
    with pytest.raises(CheckpointError, match="is of another model: it lacks"):
        load_ranker_weights(other, weights, source=tmp_path)


def test_a_table_of_another_size_is_refused(tmp_path: Path) -> None:
    ranker = build_ranker(RANKERS["dcn"], inputs(), seed=1)
    weights = ranker_weights(ranker)
    name = next(name for name in weights if "user" in name)
    weights[name] = weights[name][:-1]
    with pytest.raises(CheckpointError, match=r"is \(29, 4\), the model wants \(30, 4\)"):
        load_ranker_weights(ranker, weights, source=tmp_path)


def test_frozen_tables_stay_out_of_checkpoints() -> None:
    names = ranker_weights(build_ranker(RANKERS["product + query"], inputs(), seed=1))
    assert not [name for name in names if "semantic_tables" in name]
    names = ranker_weights(build_ranker(RANKERS["random tables"], inputs(), seed=1))
    assert len([name for name in names if "semantic_tables" in name]) == 2


def test_the_newest_checkpoint_is_found(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    for step in (9, 100, 20):
        write_checkpoint(tmp_path / f"step-{step:010d}", Checkpoint({}, {}, {}))
    (tmp_path / ".step-0000000500.abc.writing").mkdir()
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "step-0000000100"
