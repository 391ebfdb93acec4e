"""A folder is loaded only as it was written."""

import json
from pathlib import Path

import pytest

from serving.package.sealed_folder import (
    FileRecord,
    PackageError,
    check_files,
    read_manifest,
    record_files,
    write_manifest,
)

ADVICE = "make it again"
PARTS = ["model", "query_encoder"]


def written(folder: Path) -> dict[str, FileRecord]:
    (folder / "model" / "tables").mkdir(parents=True)
    (folder / "model" / "graph").write_bytes(b"graph")
    (folder / "model" / "tables" / "user.npy").write_bytes(b"rows of users")
    (folder / "notes.txt").write_text("not part of it")
    return record_files(folder, PARTS)


def test_all_files_of_the_parts_that_exist_are_recorded(tmp_path: Path) -> None:
    records = written(tmp_path)
    assert sorted(records) == ["model/graph", "model/tables/user.npy"]
    assert records["model/graph"].size == 5


def test_an_untouched_folder_passes_and_progress_ends_at_its_bytes(tmp_path: Path) -> None:
    records = written(tmp_path)
    seen: list[tuple[str, int, int]] = []
    check_files(
        tmp_path, records, verify=True, advice=ADVICE, parts=PARTS, progress=lambda *stage: seen.append(stage)
    )
    assert seen[-1] == ("verifying files", 18, 18)


@pytest.mark.parametrize("name", ["model/graph", "model/tables/user.npy"])
def test_a_changed_byte_is_refused_naming_the_file(tmp_path: Path, name: str) -> None:
    records = written(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[0] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PackageError, match=f"{name} has changed .* {ADVICE}"):
        check_files(tmp_path, records, verify=True, advice=ADVICE, parts=PARTS)
    check_files(tmp_path, records, verify=False, advice=ADVICE, parts=PARTS)  # only contents need verify


@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_file_is_refused_even_without_reading_it(tmp_path: Path, verify: bool) -> None:
    records = written(tmp_path)
    (tmp_path / "model" / "graph").write_bytes(b"gra")
    with pytest.raises(PackageError, match="model/graph has 3 bytes, but 5 were written"):
        check_files(tmp_path, records, verify=verify, advice=ADVICE, parts=PARTS)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    records = written(tmp_path)
    (tmp_path / "model" / "graph").unlink()
    with pytest.raises(PackageError, match="model/graph is missing"):
        check_files(tmp_path, records, verify=False, advice=ADVICE, parts=PARTS)


@pytest.mark.parametrize("name", ["model/graph.so", "model/tables/.hidden", "model/new/file", "extra"])
def test_a_file_that_nobody_listed_is_refused_naming_it(tmp_path: Path, name: str) -> None:
    records = written(tmp_path)
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "model" / "empty").mkdir()
    check_files(tmp_path, records, verify=True, advice=ADVICE)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(PackageError, match=f"{name} was added: the manifest does not list it; {ADVICE}"):
        check_files(tmp_path, records, verify=False, advice=ADVICE)


@pytest.mark.parametrize("name", ["model/graph", "model/tables", "model"])
def test_a_link_is_refused_even_to_the_same_content(tmp_path: Path, name: str) -> None:
    records = written(tmp_path / "package")
    (tmp_path / "package" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "package" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        PackageError, match=f"{name} is a link, and a package holds its files itself; {ADVICE}"
    ):
        check_files(tmp_path / "package", records, verify=True, advice=ADVICE, parts=PARTS)


def test_only_the_sealed_parts_may_hold_nothing_else(tmp_path: Path) -> None:
    records = written(tmp_path)
    check_files(tmp_path, records, verify=True, advice=ADVICE, parts=PARTS)
    (tmp_path / "query_encoder").mkdir()
    (tmp_path / "query_encoder" / "weights").write_bytes(b"planted")
    with pytest.raises(PackageError, match="query_encoder/weights was added"):
        check_files(tmp_path, records, verify=True, advice=ADVICE, parts=PARTS)


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    content = {"format": 1, "share": 0.1 + 0.2, "name": "modèle", "nested": {"b": [1, None], "a": True}}
    write_manifest(tmp_path, content)
    assert read_manifest(tmp_path, what="a package", advice=ADVICE) == content


def test_a_manifest_with_another_value_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, {"format": 1, "dim": 128})
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace("128", "256"))
    with pytest.raises(PackageError, match=r"manifest\.json has changed since it was written"):
        read_manifest(tmp_path, what="a package", advice=ADVICE)


def test_a_manifest_cut_off_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, {"format": 1})
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(PackageError, match="cut off or changed"):
        read_manifest(tmp_path, what="a package", advice=ADVICE)


def test_another_folder_is_said_not_to_be_a_package(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=f"is not a package: it has no manifest.json; {ADVICE}"):
        read_manifest(tmp_path, what="a package", advice=ADVICE)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(PackageError, match="is not the manifest of a package"):
        read_manifest(tmp_path, what="a package", advice=ADVICE)
