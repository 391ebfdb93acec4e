"""Off-the-shelf rows: each model's own contrastive vectors, in the right rows, and honest about what lacks.

The models are tiny and random, saved in the published layout with tokenizers of their own kind.
"""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForImageTextRetrieval,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    FlavaConfig,
    FlavaModel,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.flava.image_processing_pil_flava import FlavaImageProcessorPil

from embeddings.catalog.images import load_image, to_pixels
from embeddings.embedding_table import EmbeddingTable
from embeddings.encoders.pretrained import PretrainedError
from embeddings.tables.off_the_shelf import MAX_TOKENS, OffTheShelfEncoder, embed_off_the_shelf
from tests.tolerances import float32_drift

SIDE, PATCH, WIDTH, DIM = 32, 16, 16, 8
KINDS = ["clip", "blip", "flava"]
TITLES = ["Orange juice", "Whole milk 1 gal", None, "Zebra!", " "]
QUERIES = ["milk", "orange juice"]
SHAPE = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION_SHAPE = SHAPE | {"image_size": SIDE, "patch_size": PATCH}
#: A layer's sums over 16 values, at most 512 tokens, 16, 16 and 32; two layers, then the projection of 16.
ROUNDING = float32_drift(2 * (16 + 512 + 16 + 16 + 32) + 16)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    return {"clip": save_clip(folder), "blip": save_blip(folder), "flava": save_flava(folder)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five products: two with images, one with a broken file, one whose file is absent, one with none."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "images").mkdir()
    Image.new("RGB", (40, 20), (250, 130, 10)).save(folder / "images" / "orange.png")
    grey = np.random.default_rng(0).integers(0, 255, (20, 50), dtype=np.uint8)
    Image.fromarray(grey).save(folder / "images" / "milk.png")
    (folder / "images" / "broken.png").write_bytes(b"no image")
    images = ["orange.png", "milk.png", "broken.png", "absent.png", None]
    products = {
        "product_id": [50, 40, 30, 20, 10],
        "title": TITLES,
        "aisle": ["drinks"] * 5,
        "image": [None if name is None else f"images/{name}" for name in images],
    }
    pq.write_table(pa.table(products), folder / "products.parquet")
    grades = {"query": [*reversed(QUERIES), "milk"], "product_id": [50, 40, 10], "grade": [2, 2, 0]}
    pq.write_table(pa.table(grades), folder / "relevance.parquet")
    return folder


def save_clip(folder: Path) -> Path:
    pieces = sorted(ByteLevel.alphabet())
    tokens = [*pieces, *(f"{piece}</w>" for piece in pieces), "<|startoftext|>", "<|endoftext|>"]
    ids = {token: position for position, token in enumerate(tokens)}
    config = CLIPConfig(
        text_config=SHAPE | {
            "vocab_size": len(tokens),
            "max_position_embeddings": 77,
            "bos_token_id": ids["<|startoftext|>"],
            "eos_token_id": ids["<|endoftext|>"],
            "initializer_range": 0.3,
            "initializer_factor": 10.0,
        },
        vision_config=VISION_SHAPE | {"initializer_factor": 10.0},
        projection_dim=DIM,
        initializer_factor=10.0,
    )  # fmt: skip
    return save(
        folder / "clip",
        CLIPModel(config),
        CLIPTokenizer(vocab=ids, merges=[], model_max_length=77),
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
    )


def save_blip(folder: Path) -> Path:
    vision = VISION_SHAPE | {"initializer_range": 0.3}
    text = SHAPE | {"vocab_size": 92, "encoder_hidden_size": WIDTH, "initializer_range": 0.3}
    config = BlipConfig(vision_config=vision, text_config=text, image_text_hidden_size=DIM)
    processor = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return save(folder / "blip", BlipForImageTextRetrieval(config), bert_tokenizer(), processor)


def save_flava(folder: Path) -> Path:
    config = FlavaConfig(
        image_config=VISION_SHAPE | {"initializer_range": 0.3},
        text_config=SHAPE | {"vocab_size": 90, "initializer_range": 0.3},
        multimodal_config=SHAPE,
        hidden_size=WIDTH,
        projection_dim=DIM,
        initializer_range=0.3,
    )
    processor = FlavaImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    return save(folder / "flava", FlavaModel(config), bert_tokenizer(), processor)


def bert_tokenizer() -> BertTokenizer:
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "orange", "juice", "milk", "1", "!"]
    tokens += [*letters, *(f"##{letter}" for letter in letters)]
    tokens += [f"[unused{number}]" for number in range(90 - len(tokens))]
    return BertTokenizer(vocab={token: position for position, token in enumerate(tokens)})


def save(folder: Path, *parts) -> Path:
    for part in parts:
        part.save_pretrained(folder)
    return folder


def copy_without(folder: Path, left_out: str, copy: Path) -> Path:
    copy.mkdir()
    for path in folder.iterdir():
        if not path.name.startswith(left_out):
            (copy / path.name).write_bytes(path.read_bytes())
    return copy


def images_of(data: Path) -> list[np.ndarray]:
    return [load_image(data / "images" / name, size=SIDE) for name in ("orange.png", "milk.png")]


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_unit_and_differ_between_images_and_between_texts(kind, models, data) -> None:
    encoder = OffTheShelfEncoder.load(kind, models[kind])
    assert (encoder.dim, encoder.image_size) == (DIM, SIDE)
    for vectors_BD in (encoder.image_vectors(images_of(data)), encoder.text_vectors(["juice", "milk"])):
        assert vectors_BD.shape == (2, DIM)
        np.testing.assert_allclose(np.linalg.norm(vectors_BD, axis=1), 1, atol=1e-6)
        assert vectors_BD[0] @ vectors_BD[1] < 0.999


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_texts_equals_its_rows_one_by_one(kind, models) -> None:
    encoder = OffTheShelfEncoder.load(kind, models[kind])
    texts = ["milk", "orange juice abc", "a b c d e f g, milk!"]
    alone = np.concatenate([encoder.text_vectors([text]) for text in texts])
    np.testing.assert_allclose(encoder.text_vectors(texts), alone, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_images_equals_its_rows_one_by_one(kind, models, data) -> None:
    encoder = OffTheShelfEncoder.load(kind, models[kind])
    alone = np.concatenate([encoder.image_vectors([image]) for image in images_of(data)])
    np.testing.assert_allclose(encoder.image_vectors(images_of(data)), alone, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_are_cut_where_clip_ends(kind, models) -> None:
    encoder = OffTheShelfEncoder.load(kind, models[kind])
    vectors_BD = encoder.text_vectors(["milk " * 2000, "milk " * MAX_TOKENS, "milk"])
    np.testing.assert_allclose(vectors_BD[0], vectors_BD[1], rtol=0, atol=ROUNDING)
    assert np.abs(vectors_BD[0] - vectors_BD[2]).max() > 1e-3


@torch.no_grad()
def test_clip_cosines_are_the_logits_of_its_own_forward(models, data) -> None:
    model = CLIPModel.from_pretrained(models["clip"]).eval()
    tokens = CLIPTokenizer.from_pretrained(models["clip"])(QUERIES, padding=True, return_tensors="pt")
    logits = model(pixel_values=to_pixels(np.stack(images_of(data))), **tokens).logits_per_image
    encoder = OffTheShelfEncoder.load("clip", models["clip"])
    cosine = encoder.image_vectors(images_of(data)) @ encoder.text_vectors(QUERIES).T
    np.testing.assert_allclose(cosine * model.logit_scale.exp().item(), logits.numpy(), atol=1e-4)


@torch.no_grad()
def test_blip_cosines_are_the_scores_of_its_own_forward(models, data) -> None:
    model = BlipForImageTextRetrieval.from_pretrained(models["blip"]).eval()
    tokens = BertTokenizer.from_pretrained(models["blip"])(QUERIES, padding=True, return_tensors="pt")
    score = model(
        input_ids=tokens["input_ids"],
        attention_mask=tokens["attention_mask"],
        pixel_values=to_pixels(np.stack(images_of(data))),
        use_itm_head=False,
    ).itm_score
    encoder = OffTheShelfEncoder.load("blip", models["blip"])
    cosine = encoder.image_vectors(images_of(data)) @ encoder.text_vectors(QUERIES).T
    np.testing.assert_allclose(cosine, score.numpy(), atol=1e-5)


@torch.no_grad()
def test_flava_vectors_are_its_projected_class_tokens(models, data) -> None:
    model = FlavaModel.from_pretrained(models["flava"]).eval()
    tokens = BertTokenizer.from_pretrained(models["flava"])(QUERIES, padding=True, return_tensors="pt")
    text_BTH = model.text_model(**tokens).last_hidden_state
    image_BIH = model.image_model(to_pixels(np.stack(images_of(data)))).last_hidden_state
    encoder = OffTheShelfEncoder.load("flava", models["flava"])
    for ours, state_BH, head in (
        (encoder.text_vectors(QUERIES), text_BTH[:, 0], model.text_projection),
        (encoder.image_vectors(images_of(data)), image_BIH[:, 0], model.image_projection),
    ):
        theirs = torch.nn.functional.normalize(head(state_BH), dim=-1)
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_tables_by_title_hold_each_vector_under_its_id(kind, models, data, tmp_path) -> None:
    tables = embed_off_the_shelf(kind, models[kind], data, tmp_path / "out", modality="text", batch_size=2)
    encoder = OffTheShelfEncoder.load(kind, models[kind])
    assert tables.products.ids.to_pylist() == [50, 40, 30, 20, 10]
    for row in (0, 1, 3):
        np.testing.assert_allclose(
            tables.products.vectors_ND[1 + row], encoder.text_vectors([TITLES[row]])[0], rtol=0, atol=ROUNDING
        )
    assert not tables.products.vectors_ND[[3, 5]].any(), "no title and a blank one have nothing to say"
    assert tables.products_without_input == 2 == tables.products.manifest.zero_vectors
    assert tables.queries is not None
    assert tables.queries.ids.to_pylist() == sorted(QUERIES)
    np.testing.assert_allclose(
        tables.queries.vectors_ND[1:], encoder.text_vectors(sorted(QUERIES)), rtol=0, atol=ROUNDING
    )


@pytest.mark.parametrize("kind", KINDS)
def test_tables_by_image_count_what_cannot_be_read(kind, models, data, tmp_path) -> None:
    seen: list[tuple[str, int, int]] = []
    tables = embed_off_the_shelf(
        kind,
        models[kind],
        data,
        tmp_path / "out",
        modality="image",
        batch_size=1,
        progress=lambda *call: seen.append(call),
    )
    encoder = OffTheShelfEncoder.load(kind, models[kind])
    expected = encoder.image_vectors(images_of(data))
    np.testing.assert_allclose(tables.products.vectors_ND[1:3], expected, rtol=0, atol=ROUNDING)
    assert not tables.products.vectors_ND[3:].any()
    assert tables.products_without_input == 3
    assert [error.path.name for error in tables.unreadable] == ["broken.png", "absent.png"]
    assert [call[1] for call in seen if call[0] == "products"] == [1, 2]


def test_the_batch_size_and_the_length_of_others_do_not_matter(models, data, tmp_path) -> None:
    one, many = (
        embed_off_the_shelf(
            "clip", models["clip"], data, tmp_path / str(size), modality="text", batch_size=size
        )
        for size in (1, 64)
    )
    np.testing.assert_allclose(one.products.vectors_ND, many.products.vectors_ND, rtol=0, atol=ROUNDING)


def test_the_encoder_id_names_kind_weights_and_modality_but_no_path(models, data, tmp_path) -> None:
    copy = Path(shutil.copytree(models["clip"], tmp_path / "elsewhere"))
    first, again = (OffTheShelfEncoder.load("clip", folder).encoder_id for folder in (models["clip"], copy))
    assert first == again
    assert first.startswith("clip-")
    tables = embed_off_the_shelf("clip", copy, data, tmp_path / "out", modality="image")
    assert tables.products.manifest.encoder_id == f"{first}-image"
    assert tables.products.manifest.normalised


def test_a_data_set_without_queries_gives_no_query_table(models, data, tmp_path) -> None:
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "products.parquet").write_bytes((data / "products.parquet").read_bytes())
    tables = embed_off_the_shelf("blip", models["blip"], shop, tmp_path / "out", modality="text")
    assert tables.queries is None
    assert not (tmp_path / "out" / "queries").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_with_a_lost_weight_is_refused(kind, models, tmp_path) -> None:
    classes = {"clip": CLIPModel, "blip": BlipForImageTextRetrieval, "flava": FlavaModel}
    model = classes[kind].from_pretrained(models[kind])
    weights = model.state_dict()
    lost = "text_proj.weight" if kind == "blip" else "text_projection.weight"
    del weights[lost]
    model.save_pretrained(tmp_path / "lost", state_dict=weights)
    with pytest.raises(PretrainedError, match=rf"leaves 1 weights of \w+ random, first '{lost}'"):
        OffTheShelfEncoder.load(kind, tmp_path / "lost")


def test_a_model_of_another_kind_and_an_unknown_kind_are_refused(models, tmp_path) -> None:
    with pytest.raises(PretrainedError, match="must be a flava model, its config says 'clip'"):
        OffTheShelfEncoder.load("flava", models["clip"])
    with pytest.raises(PretrainedError, match="must be a blip model, its config says 'flava'"):
        OffTheShelfEncoder.load("blip", models["flava"])
    with pytest.raises(PretrainedError, match="must be one of clip, blip, flava, got 'siglip'"):
        OffTheShelfEncoder.load("siglip", models["clip"])
    with pytest.raises(PretrainedError, match="must be a folder with a transformers config"):
        OffTheShelfEncoder.load("clip", tmp_path / "absent")


@pytest.mark.parametrize("kind", ["clip", "blip"])
def test_a_folder_without_a_tokenizer_is_refused(kind, models, tmp_path) -> None:
    """transformers makes up a tokenizer of a handful of special tokens, for which all texts are alike."""
    without = copy_without(models[kind], "tokenizer", tmp_path / kind)
    with pytest.raises(PretrainedError, match=r"has a tokenizer of \d tokens for a model of"):
        OffTheShelfEncoder.load(kind, without)


def test_a_folder_without_an_image_processor_is_refused(models, tmp_path) -> None:
    without = copy_without(models["clip"], "preprocessor_config", tmp_path / "clip")
    with pytest.raises(PretrainedError, match="must hold the tokenizer and preprocessor_config"):
        OffTheShelfEncoder.load("clip", without)


def test_a_foreign_folder_and_the_input_itself_stay_untouched(models, data, tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match="left as it is"):
        embed_off_the_shelf("clip", models["clip"], data, tmp_path, modality="text")
    with pytest.raises(ValueError, match="would replace the input"):
        embed_off_the_shelf("clip", models["clip"], data, data, modality="text")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_tables_written_before_are_replaced(models, data, tmp_path) -> None:
    embed_off_the_shelf("clip", models["clip"], data, tmp_path / "out", modality="text")
    embed_off_the_shelf("blip", models["blip"], data, tmp_path / "out", modality="text")
    assert EmbeddingTable.load(tmp_path / "out" / "products").manifest.encoder_id.startswith("blip-")
