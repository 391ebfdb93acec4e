"""Generations are switched by one rename, kept for a rollback, and never served half-written."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from serving.package.generations import (
    CURRENT,
    PINNED,
    GenerationManifest,
    activate,
    current_generation,
    generation_folder,
    generation_names,
    locked,
    new_generation,
    next_name,
    pin,
    pinned,
    refuse_pinned,
    remove_old,
    rollback,
    seal_generation,
    unpin,
    use,
)
from serving.package.sealed_folder import PackageError
from serving.scoring.predictor import Predictor
from serving.servers.endpoint import readiness
from tests.serving.small_packages import copy_generation


def about(name: str, based_on: str | None) -> GenerationManifest:
    return GenerationManifest(
        format=1,
        name=name,
        based_on=based_on,
        created=datetime(2024, 8, 5, tzinfo=UTC),
        as_of="2024-08-05T00:00:00+00:00",
        schema_fingerprint="abc",
        counts={"products": 2},
        vectors={},
        files={},
    )


def write_generation(package: Path) -> str:
    """A new live generation with one file."""
    name = next_name(package)
    based_on = current_generation(package) if (package / CURRENT).exists() else None
    with new_generation(package, name) as folder:
        (folder / "rows.npy").write_bytes(name.encode())
        seal_generation(folder, about(name, based_on))
    activate(package, name)
    return name


def test_a_new_generation_becomes_current_and_the_old_one_stays(tmp_path: Path) -> None:
    first, second = write_generation(tmp_path), write_generation(tmp_path)
    assert (first, second) == ("000001", "000002")
    assert current_generation(tmp_path) == second
    assert generation_names(tmp_path) == [first, second]
    assert GenerationManifest.read(generation_folder(tmp_path, second)).based_on == first


def test_every_file_of_a_generation_is_recorded(tmp_path: Path) -> None:
    manifest = GenerationManifest.read(generation_folder(tmp_path, write_generation(tmp_path)))
    assert list(manifest.files) == ["rows.npy"]


def test_an_error_while_writing_leaves_no_generation(tmp_path: Path) -> None:
    write_generation(tmp_path)

    def fail_halfway() -> None:
        with new_generation(tmp_path, next_name(tmp_path)) as folder:
            (folder / "rows.npy").write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert generation_names(tmp_path) == ["000001"]
    assert current_generation(tmp_path) == "000001"
    assert [path.name for path in (tmp_path / "generations").iterdir()] == ["000001"]


def test_a_rollback_goes_to_what_was_live_before_and_the_next_number_is_new(tmp_path: Path) -> None:
    for _ in range(3):
        write_generation(tmp_path)
    assert rollback(tmp_path) == ("000003", "000002")
    assert write_generation(tmp_path) == "000004"  # based on 2: 3 was withdrawn
    assert rollback(tmp_path) == ("000004", "000002")
    assert rollback(tmp_path) == ("000002", "000001")


def test_the_first_generation_has_nothing_to_go_back_to(tmp_path: Path) -> None:
    write_generation(tmp_path)
    with pytest.raises(PackageError, match="is its first"):
        rollback(tmp_path)


def test_the_last_three_are_kept_and_a_withdrawn_one_is_not_counted(tmp_path: Path) -> None:
    for _ in range(3):
        write_generation(tmp_path)
    rollback(tmp_path)
    write_generation(tmp_path)
    assert remove_old(tmp_path) == ["000003"]
    write_generation(tmp_path)
    assert remove_old(tmp_path) == ["000001"]
    assert generation_names(tmp_path) == ["000002", "000004", "000005"]


def test_what_a_killed_refresh_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    write_generation(tmp_path)
    half = tmp_path / "generations" / ".000002.0123456789ab.writing"
    half.mkdir()
    (half / "rows.npy").write_bytes(b"half")
    assert remove_old(tmp_path) == []
    assert [path.name for path in (tmp_path / "generations").iterdir()] == ["000001"]


def test_hidden_things_of_others_beside_the_generations_stay(tmp_path: Path) -> None:
    write_generation(tmp_path)
    (tmp_path / "generations" / ".DS_Store").write_bytes(b"")
    (tmp_path / "generations" / ".snapshot").mkdir()
    assert remove_old(tmp_path) == []
    left = sorted(path.name for path in (tmp_path / "generations").iterdir())
    assert left == [".DS_Store", ".snapshot", "000001"]


def test_a_rollback_to_a_deleted_generation_is_refused(tmp_path: Path) -> None:
    for _ in range(2):
        write_generation(tmp_path)
    remove_old(tmp_path, kept=1)
    with pytest.raises(PackageError, match="000001, which was live before 000002, is no longer"):
        rollback(tmp_path)
    assert current_generation(tmp_path) == "000002"


@pytest.mark.parametrize("content", [b"000009\n", b"../000001", b"", b"\xff\xfe"])
def test_a_damaged_current_is_refused_with_the_names_there_are(tmp_path: Path, content: bytes) -> None:
    write_generation(tmp_path)
    (tmp_path / CURRENT).write_bytes(content)
    with pytest.raises(PackageError, match=r"CURRENT names generation .* but there are 000001"):
        current_generation(tmp_path)


def test_a_folder_without_current_is_not_a_package(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="is not a package"):
        current_generation(tmp_path)


def test_activating_a_generation_that_is_not_there_changes_nothing(tmp_path: Path) -> None:
    write_generation(tmp_path)
    with pytest.raises(PackageError, match="no generation 000007; there are 000001"):
        activate(tmp_path, "000007")
    assert current_generation(tmp_path) == "000001"


def test_two_refreshes_at_once_are_refused(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(PackageError, match="another process"), locked(tmp_path):
        pass
    with locked(tmp_path):  # the lock went with its holder
        pass


def test_a_pinned_generation_stays_until_it_is_unpinned_and_a_switch_by_name_takes_the_pin_along(
    package: Path,
) -> None:
    copy_generation(package)
    assert pin(package) == "000002"
    with pytest.raises(PackageError, match=r"generation 000002 of .* is pinned; .*--unpin.*--force"):
        refuse_pinned(package)
    assert use(package, "000001") == ("000002", "000001")
    assert current_generation(package) == "000001"
    assert (package / PINNED).read_text() == "000001\n"
    unpin(package)
    refuse_pinned(package)
    assert not pinned(package)


def test_a_generation_by_a_name_that_is_not_there_changes_nothing(package: Path) -> None:
    copy_generation(package)
    with pytest.raises(PackageError, match="has no generation 000007; there are 000001, 000002"):
        use(package, "000007")
    assert current_generation(package) == "000002"


def test_a_generation_that_was_shipped_from_another_host_is_used_by_its_name(
    package: Path, tmp_path: Path
) -> None:
    there = Path(shutil.copytree(package, tmp_path / "there"))
    name = copy_generation(there)
    shutil.copytree(generation_folder(there, name), generation_folder(package, name))
    assert use(package, name) == ("000001", name)
    said = [readiness(Predictor.load(one).facts()) for one in (package, there)]
    assert said[0] == said[1]
    assert said[0]["generation"] == name
    assert said[0]["package"]
    assert said[0]["generation_files"]
