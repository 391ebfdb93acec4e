"""What training from scratch starts with: which warm-ups run."""

from pathlib import Path
from typing import Any

import pytest

from experiments.config import parse_config
from experiments.encoders import EncodersConfig, first_encoder
from tests.embeddings.small_catalog import write_small_catalog

STAGE = {"epochs": 1, "batch_size": 8, "learning_rate": 0.002}


def config(**changes: Any) -> EncodersConfig:
    settings = {"size": "tiny", "warmup": STAGE, "image_warmup": STAGE} | changes
    return parse_config(settings, EncodersConfig, where="here")


@pytest.mark.parametrize(
    "changes, runs",
    [
        ({}, {"text", "image"}),
        ({"modalities": ["text"]}, {"text"}),
        ({"image_warmup": None}, {"text"}),
    ],
)
def test_images_warm_up_where_products_are_embedded_from_them(
    tmp_path: Path, changes: dict[str, Any], runs: set[str]
) -> None:
    data = write_small_catalog(tmp_path / "data", products=24)
    first_encoder(data, tmp_path / "warmup", config(**changes))
    assert {path.parent.name for path in (tmp_path / "warmup").glob("*/training.json")} == runs


def test_a_catalogue_without_images_is_told_what_to_leave_out(tmp_path: Path) -> None:
    data = write_small_catalog(tmp_path / "data", products=24, without_image=set(range(24)))
    with pytest.raises(ValueError, match=r"got 0; without images leave \[image_warmup\] out of the config"):
        first_encoder(data, tmp_path / "warmup", config())
