"""Checkpoints are whole and verified, or refused with the file's name."""

from pathlib import Path

import pytest
import torch

from embeddings.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    add_checkpoint,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "step-0000000001"
    write_checkpoint(
        folder,
        Checkpoint({"model": {"w": torch.arange(6.0)}, "optimizer": {"m": torch.ones(2)}}, {"step": 1}),
    )
    return folder


def test_what_was_written_is_read(saved: Path) -> None:
    checkpoint = read_checkpoint(saved)
    assert torch.equal(checkpoint.parts["model"]["w"], torch.arange(6.0))
    assert torch.equal(checkpoint.parts["optimizer"]["m"], torch.ones(2))
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


def test_the_newest_checkpoint_is_found(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none") is None
    for step in (9, 100, 20):
        write_checkpoint(tmp_path / f"step-{step:010d}", Checkpoint({}, {}))
    (tmp_path / ".step-0000000500.abc.writing").mkdir()
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "step-0000000100"


@pytest.mark.parametrize("ending", ["writing", "tmp"])
def test_a_checkpoint_removes_what_a_killed_process_left_half_written(tmp_path: Path, ending: str) -> None:
    leftover = tmp_path / f".step-00000004.abc.{ending}"
    leftover.mkdir()
    state = Checkpoint({"module": {"w": torch.ones(2)}}, progress={})
    assert newest_checkpoint(tmp_path) is None
    add_checkpoint(tmp_path, "step-00000004", state, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]
    assert read_checkpoint(tmp_path / "step-00000004").parts["module"]["w"].equal(torch.ones(2))
