"""What training starts with: which warm-ups run, and the recipes for published weights."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from embeddings.catalog.products import ProductCatalog
from embeddings.encoders.bert_checkpoint import lacks_images
from embeddings.encoders.config import EncoderConfig
from embeddings.encoders.dashclip import DashClipEncoder
from experiments.cli import app
from experiments.config import load_config, parse_config
from experiments.encoders.config import EncodersConfig
from experiments.encoders.first_encoder import bert_encoder, first_encoder
from experiments.encoders.pipeline import run_align, run_pretrain
from tests.embeddings.encoders.small_bert import save_bert, write_modules
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


def test_published_text_warms_up_its_images_alone(tmp_path: Path) -> None:
    data = write_small_catalog(tmp_path / "data", products=24)
    published = bert_encoder(write_modules(save_bert(tmp_path / "bert")), config())
    warm = first_encoder(data, tmp_path / "warmup", config(), published=published)
    assert {path.parent.name for path in (tmp_path / "warmup").glob("*/training.json")} == {"image"}
    assert (lacks_images(published), lacks_images(warm)) == (True, False)
    assert warm.embed_queries(["red circle"]).equal(published.embed_queries(["red circle"]))
    before, after = (encoder.product.vision_proj.weight for encoder in (published, warm))
    assert not before.equal(after)
    # A picture alone says nothing to the one, and is a vector beside titles to the other.
    catalog = ProductCatalog.open(data, modalities=("image",))
    pictures = [
        encoder.embed_products(encoder.load_batch(catalog, np.arange(4))) for encoder in (published, warm)
    ]
    assert not pictures[0].any()
    torch.testing.assert_close(pictures[1].norm(dim=1), torch.ones(4))


def test_images_alone_warm_up_only_beside_published_text(tmp_path: Path) -> None:
    data = write_small_catalog(tmp_path / "data", products=24)
    without = config(warmup=None)
    with pytest.raises(ValueError, match=r"add a \[warmup\] section to the config, or start from published"):
        first_encoder(data, tmp_path / "scratch", without)
    published = bert_encoder(write_modules(save_bert(tmp_path / "bert")), without)
    assert not lacks_images(first_encoder(data, tmp_path / "warmup", without, published=published))


def test_published_text_takes_of_the_architecture_what_the_weights_leave_open(tmp_path: Path) -> None:
    architecture = {"fusion": "grounded", "vision_layers": 1, "text_layers": 5, "title_prefix": "passage: "}
    folder = write_modules(save_bert(tmp_path / "bert", layers=2))
    shape = bert_encoder(folder, config(architecture=architecture)).config
    assert (shape.fusion, shape.vision_layers, shape.title_prefix) == ("grounded", 1, "passage: ")
    assert (shape.text_layers, shape.embedding_dim, shape.max_title_tokens) == (2, 32, 48)
    assert bert_encoder(folder, config(architecture=architecture), title_prefix="").config.title_prefix == ""


ALIGN_TOML = """size = "tiny"
modalities = ["text"]
[holdout]
test_query_share = 0.1
validation_query_share = 0.2
test_product_share = 0.05
validation_product_share = 0.2
[tuples]
max_positives = 4
negatives = 3
[align]
epochs = 1
batch_size = 16
learning_rate = 0.001
"""


def test_the_commands_make_an_encoder_of_a_bert_and_start_from_one(tmp_path: Path) -> None:
    data = write_small_catalog(tmp_path / "data", products=24)
    folder = write_modules(save_bert(tmp_path / "bert"))
    settings = tmp_path / "tiny.toml"
    settings.write_text(ALIGN_TOML, encoding="utf-8")

    def called(*arguments: object) -> str:
        words = ["encode", *map(str, arguments), "--config", str(settings)]
        result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.exception
        return result.output

    output = called("from-bert", folder, tmp_path / "encoder", "--query-prefix", "query: ")
    assert "2 layers of 32, mean pooling" in output
    assert "before each query: 'query: '" in output
    assert "random until trained, as no text model has them: vision, vision_proj" in output
    assert DashClipEncoder.load(tmp_path / "encoder").config.query_prefix == "query: "

    output = called("align", data, tmp_path / "align", "--start", folder)
    assert "random until trained" in output
    aligned = DashClipEncoder.load(tmp_path / "align" / "encoder")
    assert (aligned.stage, aligned.config.text_hidden_dim, aligned.config.query_prefix) == ("aligned", 32, "")
    assert aligned.trained_on is not None
    assert aligned.trained_on["previous"]["source"] == "bert"


def test_published_words_are_aligned_with_images_as_words_from_scratch_are(tmp_path: Path) -> None:
    """Width 32 of the words beside another width of the images; one of the two layers is frozen."""
    data = write_small_catalog(tmp_path / "data", products=48, without_title={0}, without_image={5})
    align = {**STAGE, "batch_size": 16, "frozen_layers": 1, "kept_dims": 16}
    settings = config(warmup=None, align=align, architecture={"vision_hidden_dim": 64}).model_copy(
        update={"holdout": INPUTS.holdout, "tuples": TUPLES}
    )
    published = bert_encoder(write_modules(save_bert(tmp_path / "bert", layers=2)), settings)
    run = run_align(data, tmp_path / "align", settings, start=published)
    encoder = run.encoder
    assert encoder.product.completion is not None
    assert (encoder.config.embedding_dim, encoder.config.vector_dim) == (32, 16)
    rows = np.array([0, 5, 6])
    of = {
        sides: encoder.embed_products(encoder.load_batch(ProductCatalog.open(data, modalities=sides), rows))
        for sides in (("image",), ("text",), ("image", "text"))
    }
    exists = {sides: vectors_BD.any(dim=1).tolist() for sides, vectors_BD in of.items()}
    assert exists == {
        ("image",): [True, False, True],
        ("text",): [False, True, True],
        ("image", "text"): [True, True, True],
    }
    # Alone each side gives what it gives without the other.
    torch.testing.assert_close(of[("image", "text")][0], of[("image",)][0])
    torch.testing.assert_close(of[("image", "text")][1], of[("text",)][1])
    assert run.counts["completion_products"] > 20


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
