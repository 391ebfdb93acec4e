"""A folder or file is exchanged whole, or the old one stands where it stood."""

from pathlib import Path

import pytest

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


def test_a_file_is_replaced_only_when_its_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "notes.txt"
    with replaced_file(target) as temporary:
        temporary.write_text("old")
    with pytest.raises(OSError, match="no space"), replaced_file(target) as temporary:
        _half_write(temporary)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
