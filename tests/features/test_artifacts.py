"""Files and folders appear whole or not at all."""

import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from features.artifacts import (
    BusyError,
    atomic_folder,
    atomic_write_bytes,
    atomic_write_json,
    checksums_of,
    file_lock,
    folder_lock,
    json_file_has,
    refuse_to_replace_input,
    remove_folder,
    replaced_file,
    sha256_of,
    verify_checksums,
)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_written_file_holds_the_bytes_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "new" / "file.bin"
    atomic_write_bytes(path, b"one")
    atomic_write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert names_in(path.parent) == ["file.bin"]


def test_a_failed_rename_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    atomic_write_bytes(path, b"old")

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["file.bin"]


def test_json_comes_back_and_a_nan_is_refused(tmp_path):
    path = tmp_path / "a.json"
    atomic_write_json(path, {"name": "thé", "count": 3})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "thé", "count": 3}
    with pytest.raises(ValueError, match="JSON"):
        atomic_write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8"))["count"] == 3


def test_a_folder_appears_only_when_its_block_succeeds(tmp_path):
    target = tmp_path / "features"
    with atomic_folder(target) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a").write_text("1")
        assert not target.exists()
        assert folder.parent == tmp_path
    assert (target / "inner" / "a").read_text() == "1"
    assert names_in(tmp_path) == ["features"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_private_file_gets_the_readers_of_its_folder(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "within").mkdir()
            (folder / "within" / "weights").touch(mode=0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out" / "within" / "weights").stat().st_mode) == mode


def test_a_failed_block_leaves_the_old_folder_and_nothing_else(tmp_path):
    target = tmp_path / "features"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("old")

    def fail_midway():
        with atomic_folder(target) as folder:
            (folder / "a").write_text("new")
            raise RuntimeError("mid-way")

    with pytest.raises(RuntimeError, match="mid-way"):
        fail_midway()
    assert (target / "a").read_text() == "old"
    assert names_in(tmp_path) == ["features"]


def test_a_second_folder_replaces_the_first_whole(tmp_path):
    target = tmp_path / "features"
    for name in ("first", "second"):
        with atomic_folder(target) as folder:
            (folder / name).write_text(name)
    assert names_in(target) == ["second"]
    assert names_in(tmp_path) == ["features"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "features").write_text("a file")
    with pytest.raises(FileExistsError, match="is a file"), atomic_folder(tmp_path / "features"):
        pass


def test_sha256_is_that_of_the_standard_library(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * (3 << 20))
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_only_a_folder_of_its_own_kind_or_an_empty_one_is_replaced(tmp_path):
    def write(word):
        with atomic_folder(target, ours=lambda found: json_file_has(found / "mark.json", "ours")) as folder:
            atomic_write_json(folder / "mark.json", {"ours": word})

    target = tmp_path / "out"
    target.mkdir()
    for word in ("into an empty folder", "over its own"):
        write(word)
        assert json.loads((target / "mark.json").read_text()) == {"ours": word}
    for foreign in ({"theirs": 1}, ["ours"]):
        atomic_write_json(target / "mark.json", foreign)
        with pytest.raises(FileExistsError, match=r"another kind \(mark.json\).*choose another folder"):
            write("over another's")
        assert json.loads((target / "mark.json").read_text()) == foreign
    assert names_in(tmp_path) == ["out"]


@pytest.mark.parametrize("out", ["data", "data/../data", "."])
def test_an_output_around_the_input_is_refused_and_one_beside_it_is_not(tmp_path, out):
    (tmp_path / "data").mkdir()
    refuse_to_replace_input(tmp_path / "features", tmp_path / "data")
    with pytest.raises(ValueError, match="would replace the input"):
        refuse_to_replace_input(tmp_path / out, tmp_path / "data")


def test_an_exchange_that_fails_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "table"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("old")
    rename = Path.rename

    def fail_for_the_new_folder(path: Path, to: Path) -> Path:
        if to == target and (path / "a").read_text() == "new":
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


def test_checksums_name_the_file_that_is_missing_or_has_changed(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "b").write_bytes(b"")
    (tmp_path / "a").write_bytes(b"one")
    written = checksums_of(tmp_path)
    assert list(written) == ["a", "part/b"]
    assert written["part/b"].startswith("e3b0c44298fc1c14")
    assert checksums_of(tmp_path, ["a"]) == {"a": written["a"]}
    verify_checksums(tmp_path, written, error=KeyError, advice="write it again")
    (tmp_path / "a").write_bytes(b"two")
    with pytest.raises(KeyError, match=r"a has changed since it was written .*; write it again"):
        verify_checksums(tmp_path, written, error=KeyError, advice="write it again")
    verify_checksums(tmp_path, written, error=KeyError, advice="write it again", contents=False)
    (tmp_path / "part" / "b").unlink()
    with pytest.raises(KeyError, match="part/b is missing; write it again"):
        verify_checksums(tmp_path, written, error=KeyError, advice="write it again", contents=False)


def test_a_file_without_a_recorded_checksum_counts_as_changed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(ValueError, match="a has changed"):
        verify_checksums(tmp_path, {"a": None}, error=ValueError, advice="write it again")


def test_a_lock_keeps_a_second_process_out_until_its_holder_ends(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from features.artifacts import file_lock\n"
        "with file_lock(Path(sys.argv[1]), busy=ValueError('busy')): print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="busy"), file_lock(tmp_path / ".lock", busy=ValueError("busy")):
            pass
        holder.kill()
    with file_lock(tmp_path / ".lock", busy=ValueError("busy")):
        pass


def test_a_folder_is_held_by_one_and_its_lock_lies_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    with folder_lock(folder):
        with pytest.raises(BusyError, match=f"at work in {folder}"), folder_lock(folder):
            pass
        with folder_lock(tmp_path / "runs" / "two"):
            pass
    with folder_lock(folder):
        assert not folder.exists()


def test_a_removed_folder_leaves_its_name_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-1" / "weights").write_bytes(b"w")
    remove_folder(tmp_path / "step-1")
    assert names_in(tmp_path) == []
    (tmp_path / "step-2").mkdir()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_folder(tmp_path / "step-2")
    assert not (tmp_path / "step-2").exists()
