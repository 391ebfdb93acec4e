"""What training starts with: which warm-ups run from scratch, and the recipe for published weights."""

import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from embeddings.encoders.config import EncoderConfig
from embeddings.encoders.dashclip import DashClipEncoder
from experiments.config import load_config, parse_config
from experiments.encoders.pipeline import EncodersConfig, first_encoder, run_align, run_pretrain
from tests.embeddings.small_catalog import small_tokenizer, write_small_catalog
from tests.embeddings.training.training_child import INPUTS, TUPLES

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


def test_the_shipped_recipe_for_published_weights_trains_the_last_4_of_12_layers_alone(
    tmp_path: Path,
) -> None:
    """On a narrow encoder with as many layers as BLIP-base."""
    data = write_small_catalog(tmp_path / "data", products=48)
    settings = load_config(Path("encoders_base"), EncodersConfig)
    assert settings.pretrain is not None
    assert settings.align is not None
    settings = settings.model_copy(
        update={
            "pretrain": settings.pretrain.model_copy(update={"epochs": 1}),
            "align": settings.align.model_copy(update={"epochs": 1, "whitening": False}),
            "holdout": INPUTS.holdout,
            "tuples": TUPLES,
        }
    )
    tokenizer = small_tokenizer()
    narrow = dict.fromkeys(("vision_hidden_dim", "text_hidden_dim"), 24) | {
        "image_size": 32,
        "embedding_dim": 8,
    }
    published = DashClipEncoder.new(
        EncoderConfig.preset("base", vocab_size=tokenizer.vocab_size, **narrow), tokenizer, seed=0
    )
    first = run_pretrain(data, tmp_path / "pretrain", settings, start=published).encoder
    second = run_align(data, tmp_path / "align", settings, start=first).encoder
    assert second.query is not None
    moved_in = {
        "stage 1": moved(published.product, first.product),
        "stage 2, products": moved(first.product, second.product),
        "stage 2, queries": moved(first.product.text, second.query.text),
    }
    assert moved_in == {
        "stage 1": {"vision": {8, 9, 10, 11}, "text": {8, 9, 10, 11}},
        "stage 2, products": {"text": set(range(12))},
        "stage 2, queries": {"": {8, 9, 10, 11}},
    }


def moved(before: nn.Module, after: nn.Module) -> dict[str, set[int]]:
    """The numbers of the layers that differ, by the part that they are of."""
    weights = dict(before.named_parameters())
    found: dict[str, set[int]] = {}
    for name, value in after.named_parameters():
        layer = re.match(r"(?:(vision|text)\.)?encoder\.layers?\.(\d+)\.", name)
        if layer and not weights[name].equal(value):
            found.setdefault(layer[1] or "", set()).add(int(layer[2]))
    return found
