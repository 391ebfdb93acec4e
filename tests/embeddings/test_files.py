"""A folder or file is exchanged whole, or the old one stands where it stood."""

import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from embeddings.files import atomic_folder, replaced_file


def test_an_exchange_that_fails_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "table"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("old")
    rename = Path.rename

    def fail_for_the_new_folder(path: Path, to: Path) -> Path:
        if path.suffix == ".tmp":
            raise OSError("no space left on device")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_folder)
    with pytest.raises(OSError, match="no space"), atomic_folder(target) as folder:
        (folder / "a").write_text("new")
    assert (target / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["table"]


def _half_write(path: Path) -> None:
    path.write_text("ne")
    raise OSError("no space left on device")


def test_what_a_library_makes_private_is_readable_like_its_siblings(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as folder:
        save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    assert stat.S_IMODE((tmp_path / "out" / "model.safetensors").stat().st_mode) == 0o644


def test_a_file_is_replaced_only_when_its_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "notes.txt"
    with replaced_file(target) as temporary:
        temporary.write_text("old")
    with pytest.raises(OSError, match="no space"), replaced_file(target) as temporary:
        _half_write(temporary)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
