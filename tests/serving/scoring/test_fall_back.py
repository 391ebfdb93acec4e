"""A server starts from the last good generation where the current one cannot be opened, and says so."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from features.online.request import ScoreRequest
from serving.package.generations import activate
from serving.package.sealed_folder import PackageError
from serving.scoring.backoff import Backoff
from serving.scoring.predictor import Predictor
from tests.serving.small_packages import copy_generation

REQUEST = ScoreRequest(user_id=1, query="query 1", candidates=[0, 4])


def cut_off(package: Path) -> None:
    (package / "generations/000002/vectors/product/rows.npy").write_bytes(b"")


def change(package: Path) -> None:
    path = package / "generations/000002/vectors/product/vectors.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def lose_manifest(package: Path) -> None:
    (package / "generations/000002/manifest.json").unlink()


def lose_folder(package: Path) -> None:
    shutil.rmtree(package / "generations/000002")


def blur_current(package: Path) -> None:
    (package / "CURRENT").write_bytes(b"\xff")
    lose_manifest(package)


@pytest.mark.parametrize("damage", [cut_off, change, lose_manifest, lose_folder, blur_current])
def test_the_last_good_generation_is_served_where_the_current_one_is_not_whole(
    package: Path, damage: Callable[[Path], None]
) -> None:
    expected = Predictor.load(package).score(REQUEST)
    copy_generation(package)
    assert Predictor.load(package, fall_back=True).facts()["refused_generation"] is None
    damage(package)
    with pytest.raises(PackageError):
        Predictor.load(package)
    predictor = Predictor.load(package, fall_back=True)
    reply = predictor.score(REQUEST)
    assert reply.generation == "000001"
    np.testing.assert_array_equal(reply.scores_N, expected.scores_N)
    assert predictor.facts()["refused_generation"]


def test_a_generation_that_was_rolled_back_is_no_way_out(package: Path) -> None:
    copy_generation(package)
    activate(package, "000001")
    shutil.rmtree(package / "generations/000001/vectors")
    with pytest.raises(PackageError, match="000001"):
        Predictor.load(package, fall_back=True)


def test_a_refused_generation_is_tried_again_after_growing_pauses_until_it_is_whole(
    package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = copy_generation(package)
    path = package / "generations" / name / "vectors/product/rows.npy"
    whole = path.read_bytes()
    path.write_bytes(b"")
    predictor = Predictor.load(package, fall_back=True)
    now = 0.0
    predictor._again = Backoff(first_s=5, longest_s=300, clock=lambda: now)
    predictor._again.failed()
    tried = []
    for second in range(40):
        now = second
        if second == 30:
            path.write_bytes(whole)
        if predictor.reload_if_changed(wait=True):
            tried.append(second)
    assert tried == [5, 15, 35]
    assert predictor.facts()["refused_generation"] is None
    assert predictor.score(REQUEST).generation == name


@pytest.mark.parametrize("error", [RuntimeError("can't allocate memory"), MemoryError()])
def test_whatever_keeps_a_generation_from_being_opened_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    about = SimpleNamespace(model_version="m")
    served = SimpleNamespace(manifest=SimpleNamespace(name="000001"))
    monkeypatch.setattr("serving.scoring.predictor.fingerprint_of", lambda _: "p")
    predictor = Predictor(tmp_path, about, None, served, seen=None)  # type: ignore[arg-type]
    opened = [error, SimpleNamespace(manifest=SimpleNamespace(name="000002"))]

    def open_generation(*_: object, **__: object) -> object:
        one = opened.pop(0)
        if isinstance(one, Exception):
            raise one
        return one

    monkeypatch.setattr("serving.scoring.predictor.PackageManifest.read", lambda _: about)
    monkeypatch.setattr("serving.scoring.predictor._open_generation", open_generation)
    predictor._again = Backoff(first_s=0, longest_s=0)
    (tmp_path / "generations" / "000002").mkdir(parents=True)
    (tmp_path / "CURRENT").write_text("000002\n")
    assert predictor.reload_if_changed(wait=True)
    assert (predictor.live.manifest.name, predictor._refused) == ("000001", str(error) or "MemoryError")
    assert predictor.reload_if_changed(wait=True)
    assert (predictor.live.manifest.name, predictor._refused) == ("000002", None)
