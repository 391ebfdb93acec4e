"""Published BLIP weights: numbers of the original code and of transformers, and nothing left random."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval

from embeddings.catalog.products import ProductBatch
from embeddings.encoders import blip_checkpoint
from embeddings.encoders.blip_checkpoint import (
    convert_blip_pth,
    encoder_from_checkpoint,
    load_blip_folder,
    load_blip_retrieval,
    original_key,
    resized_positions,
)
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.encoders.pretrained import PretrainedError
from features.artifacts import sha256_of
from tests.embeddings.encoders.original_blip import (
    BERT_TOKENS,
    DIM,
    IDS_BT,
    LAYERS,
    MASK_BT,
    PATCH,
    SIDE,
    TEXT,
    TEXT_HEADS,
    VISION,
    VISION_HEADS,
    VOCAB,
    dense,
    original_image_tokens,
    original_text_tokens,
    pixels,
    random_original,
    save_pth,
    save_transformers_folder,
)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join(BERT_TOKENS) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def original() -> dict[str, Tensor]:
    return random_original()


@pytest.fixture(scope="module")
def pth(tmp_path_factory: pytest.TempPathFactory, original: dict[str, Tensor]) -> Path:
    return save_pth(tmp_path_factory.mktemp("original") / "model.pth", original)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_transformers_folder(tmp_path_factory.mktemp("published") / "blip-itm")


def converted(pth: Path, vocabulary: Path, **options: int):
    options = {"vision_heads": VISION_HEADS, "text_heads": TEXT_HEADS, **options}
    return convert_blip_pth(pth, vocabulary=vocabulary, **options)


@torch.no_grad()
def test_a_converted_pth_gives_the_states_of_the_original_code(pth, vocabulary, original) -> None:
    product = converted(pth, vocabulary).product
    image_BIH = original_image_tokens(original, pixels())
    torch.testing.assert_close(product.image_tokens(pixels()), image_BIH, atol=2e-5, rtol=1e-5)
    ours = product.text_tokens(IDS_BT, MASK_BT)
    theirs = original_text_tokens(original, IDS_BT, MASK_BT)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)
    with_enc_BT = IDS_BT.clone()
    with_enc_BT[:, 0] = VOCAB - 1
    ours = product.grounded_tokens(IDS_BT, MASK_BT, image_BIH)
    theirs = original_text_tokens(original, with_enc_BT, MASK_BT, image_BIH)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_its_features_and_match_logits_are_those_of_the_original_code(pth, vocabulary, original) -> None:
    product = converted(pth, vocabulary).product
    image_BIH = original_image_tokens(original, pixels())
    text_BTH = original_text_tokens(original, IDS_BT, MASK_BT)
    torch.testing.assert_close(
        product.image_features(product.image_tokens(pixels())),
        normalize(dense(original, "vision_proj", image_BIH[:, 0]), dim=-1),
        atol=1e-5,
        rtol=1e-5,
    )
    torch.testing.assert_close(
        product.text_features(product.text_tokens(IDS_BT, MASK_BT), MASK_BT),
        normalize(dense(original, "text_proj", text_BTH[:, 0]), dim=-1),
        atol=1e-5,
        rtol=1e-5,
    )
    with_enc_BT = IDS_BT.clone()
    with_enc_BT[:, 0] = VOCAB - 1
    grounded_BTH = original_text_tokens(original, with_enc_BT, MASK_BT, image_BIH)
    torch.testing.assert_close(
        product.match_logits(IDS_BT, MASK_BT, product.image_tokens(pixels())),
        dense(original, "itm_head", grounded_BTH[:, 0]),
        atol=2e-5,
        rtol=1e-5,
    )


@torch.no_grad()
def test_other_heads_load_as_well_but_give_other_vectors(pth, vocabulary) -> None:
    right = converted(pth, vocabulary).product
    wrong = converted(pth, vocabulary, text_heads=4, vision_heads=2).product
    assert (right.text_tokens(IDS_BT, MASK_BT) - wrong.text_tokens(IDS_BT, MASK_BT)).abs().max() > 0.05
    assert (right.image_tokens(pixels()) - wrong.image_tokens(pixels())).abs().max() > 0.05


def test_the_geometry_is_read_from_the_shapes(pth, vocabulary) -> None:
    config = converted(pth, vocabulary).config
    assert (config.vision_hidden_dim, config.vision_layers, config.vision_heads) == (VISION, LAYERS, 3)
    assert (config.text_hidden_dim, config.text_layers, config.text_heads) == (TEXT, LAYERS, 2)
    assert (config.image_size, config.patch_size, config.embedding_dim) == (PATCH * SIDE, PATCH, DIM)
    assert (config.vision_layer_norm_eps, config.text_layer_norm_eps) == (1e-6, 1e-12)


@pytest.mark.parametrize(
    ("original_name", "ours"),
    [
        ("visual_encoder.cls_token", "vision.embeddings.class_embedding"),
        ("visual_encoder.blocks.11.attn.proj.bias", "vision.encoder.layers.11.self_attn.projection.bias"),
        ("visual_encoder.blocks.3.norm1.weight", "vision.encoder.layers.3.layer_norm1.weight"),
        ("visual_encoder.norm.bias", "vision.post_layernorm.bias"),
        ("text_encoder.encoder.layer.7.crossattention.self.key.weight",) * 2,
        ("itm_head.weight", "itm_head.weight"),
    ],
)
def test_each_original_name_has_one_name_of_ours(original_name: str, ours: str) -> None:
    assert original_key(original_name) == ours.replace("text_encoder.", "text.")


def test_the_product_projection_starts_as_a_copy_of_the_text_projection(pth, vocabulary) -> None:
    product = converted(pth, vocabulary).product
    assert torch.equal(product.product_proj.weight, product.text_proj.weight)
    assert torch.equal(product.product_proj.bias, product.text_proj.bias)
    assert product.product_proj.weight.data_ptr() != product.text_proj.weight.data_ptr()


def test_reading_leaves_the_random_state_of_the_caller_alone(pth, vocabulary) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    converted(pth, vocabulary)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(
    "lost",
    [
        "vision_proj.weight",
        "itm_head.bias",
        "visual_encoder.blocks.1.attn.qkv.bias",
        "text_encoder.encoder.layer.0.crossattention.self.key.weight",
        "text_encoder.embeddings.LayerNorm.weight",
    ],
)
def test_a_pth_without_one_weight_is_refused_by_its_name(lost, tmp_path, vocabulary, original) -> None:
    weights = {name: value for name, value in original.items() if name != lost}
    with pytest.raises(PretrainedError, match=original_key(lost).replace(".", r"\.")):
        converted(save_pth(tmp_path / "lost.pth", weights), vocabulary)


@pytest.mark.parametrize("name", ["visual_encoder.head.weight", "text_encoder.pooler.dense.weight", "extra"])
def test_a_weight_without_a_place_is_refused_by_its_name(name, tmp_path, vocabulary, original) -> None:
    path = save_pth(tmp_path / "more.pth", original | {name: torch.zeros(2)})
    with pytest.raises(PretrainedError, match=name):
        converted(path, vocabulary)


def test_heads_of_an_unusual_width_must_be_given(pth, vocabulary) -> None:
    with pytest.raises(PretrainedError, match="give vision_heads"):
        convert_blip_pth(pth, vocabulary=vocabulary)


def test_a_pth_that_would_run_code_is_refused_and_does_not_run(tmp_path, vocabulary) -> None:
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model": Harmful()}, tmp_path / "harmful.pth")
    with pytest.raises(PretrainedError, match="nothing but tensors"):
        converted(tmp_path / "harmful.pth", vocabulary)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_checkpoint_is_refused(content, tmp_path, vocabulary) -> None:
    (tmp_path / "broken.pth").write_bytes(content)
    with pytest.raises(PretrainedError, match=r"broken\.pth must be a PyTorch checkpoint"):
        converted(tmp_path / "broken.pth", vocabulary)
    with pytest.raises(PretrainedError, match="absent"):
        converted(tmp_path / "absent.pth", vocabulary)
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(PretrainedError, match="dictionary of tensors"):
        converted(tmp_path / "list.pth", vocabulary)


def test_a_vocabulary_of_another_length_is_refused(pth, tmp_path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(BERT_TOKENS[:-1]) + "\n", encoding="utf-8")
    with pytest.raises(PretrainedError, match=f"{VOCAB} word embeddings"):
        converted(pth, tmp_path / "vocab.txt")
    with pytest.raises(PretrainedError, match=r"absent\.txt must be"):
        converted(pth, tmp_path / "absent.txt")


@pytest.mark.parametrize("side", [1, 2, 3, 24])
def test_resized_positions_are_those_of_transformers_and_keep_the_class_token(side, folder) -> None:
    embeddings = load_blip_retrieval(folder).vision_model.embeddings
    position_1IH = embeddings.position_embedding.detach()
    ours = resized_positions(position_1IH, side=side)
    stand_in = torch.zeros(1, 1 + side**2, VISION)
    theirs = embeddings.interpolate_pos_encoding(stand_in, side * PATCH, side * PATCH).detach()
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(ours[:, 0], position_1IH[:, 0])


def test_positions_that_are_all_alike_stay_so_at_any_size() -> None:
    position_1IH = torch.tensor([5.0, 2, 2, 2, 2]).reshape(1, 5, 1).expand(1, 5, 4)
    torch.testing.assert_close(
        resized_positions(position_1IH, side=3)[0, :, 0], torch.tensor([5.0] + [2.0] * 9)
    )


@torch.no_grad()
def test_another_image_size_is_served_by_resized_positions(pth, vocabulary) -> None:
    checkpoint = converted(pth, vocabulary, image_size=3 * PATCH)
    assert checkpoint.config.image_size == 3 * PATCH
    assert checkpoint.product.image_tokens(torch.zeros(1, 3, 48, 48)).shape == (1, 10, VISION)


@torch.no_grad()
def test_a_folder_gives_the_features_of_transformers_own_class(folder) -> None:
    theirs = BlipForImageTextRetrieval.from_pretrained(folder).eval()
    ours = load_blip_folder(folder).product
    cosine = theirs(IDS_BT, pixels(), use_itm_head=False, attention_mask=MASK_BT).itm_score
    image_BD = ours.image_features(ours.image_tokens(pixels()))
    text_BD = ours.text_features(ours.text_tokens(IDS_BT, MASK_BT), MASK_BT)
    torch.testing.assert_close(image_BD @ text_BD.T, cosine)
    assert cosine.std() > 0.01, "equal features would agree with anything"


@torch.no_grad()
def test_a_folder_gives_the_match_logits_of_transformers_own_class_for_enc(folder) -> None:
    theirs = BlipForImageTextRetrieval.from_pretrained(folder).eval()
    ours = load_blip_folder(folder).product
    with_enc_BT = IDS_BT.clone()
    with_enc_BT[:, 0] = VOCAB - 1
    logits = theirs(with_enc_BT, pixels(), use_itm_head=True, attention_mask=MASK_BT).itm_score
    torch.testing.assert_close(ours.match_logits(IDS_BT, MASK_BT, ours.image_tokens(pixels())), logits)


def test_a_folder_brings_its_epsilons_and_its_tokenizer(folder) -> None:
    checkpoint = load_blip_folder(folder)
    assert checkpoint.config.vision_layer_norm_eps == 1e-5
    texts = ["Orange juice", "milk, abba ÀB!", "", "unknownword"]
    theirs = BertTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    ours = checkpoint.tokenizer(texts, max_tokens=30)
    assert torch.equal(ours.ids_BT, theirs["input_ids"])
    assert torch.equal(ours.mask_BT, theirs["attention_mask"])
    assert checkpoint.tokenizer.enc_id == VOCAB - 1


def test_a_folder_without_a_tokenizer_needs_a_vocabulary(tmp_path, folder, vocabulary) -> None:
    """transformers makes up a tokenizer of five special tokens where there is none."""
    for path in folder.iterdir():
        if not path.name.startswith("tokenizer"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(PretrainedError, match="give the vocabulary that it was trained with"):
        load_blip_folder(tmp_path)
    assert load_blip_folder(tmp_path, vocabulary=vocabulary).tokenizer.vocab_size == VOCAB


def test_a_folder_that_leaves_weights_random_is_refused(tmp_path, folder) -> None:
    captioner = BlipForConditionalGeneration(BlipConfig.from_pretrained(folder))
    captioner.save_pretrained(tmp_path / "captioner")
    with pytest.raises(PretrainedError, match=r"leaves .* weights of BlipForImageTextRetrieval random"):
        load_blip_folder(tmp_path / "captioner")


@torch.no_grad()
def test_text_heads_mend_a_config_that_states_them_wrongly(tmp_path, folder) -> None:
    wrong = save_transformers_folder(tmp_path / "wrong", text_heads=4)
    mended = load_blip_folder(wrong, text_heads=TEXT_HEADS)
    assert mended.config.text_heads == TEXT_HEADS
    right = load_blip_folder(folder).product
    torch.testing.assert_close(
        mended.product.text_tokens(IDS_BT, MASK_BT), right.text_tokens(IDS_BT, MASK_BT)
    )


def test_the_known_wrong_head_count_of_blip_base_is_refused(tmp_path) -> None:
    BlipConfig().save_pretrained(tmp_path)  # transformers' defaults: a text encoder of 768 with 8 heads
    with pytest.raises(PretrainedError, match="8 heads, transformers' default; BLIP was trained with 12"):
        load_blip_folder(tmp_path)


def test_a_folder_of_another_model_or_none_is_refused(tmp_path, folder) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    with pytest.raises(PretrainedError, match="must be a blip model, its config says 'bert'"):
        load_blip_folder(tmp_path)
    with pytest.raises(PretrainedError, match="must be a folder with a transformers config"):
        load_blip_folder(tmp_path / "absent")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["vision_config"]["hidden_act"] = "relu"
    copy = tmp_path / "relu"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(PretrainedError, match="vision encoder must have GELU"):
        load_blip_folder(copy)


def test_a_checkpoint_becomes_an_encoder_folder_that_embeds_products_and_queries(tmp_path, folder) -> None:
    encoder = encoder_from_checkpoint(folder, tmp_path / "encoder")
    reloaded = DashClipEncoder.load(tmp_path / "encoder")
    assert reloaded.stage == "initial"
    assert reloaded.trained_on == {"source": "blip-itm"}
    batch = ProductBatch(
        pixels_BCHW=pixels(),
        has_image_B=torch.tensor([True, False]),
        ids_BT=IDS_BT,
        mask_BT=MASK_BT,
        has_title_B=torch.tensor([True, True]),
        index_B=torch.arange(2),
    )
    vectors_BD = reloaded.embed_products(batch)
    torch.testing.assert_close(vectors_BD.norm(dim=-1), torch.ones(2))
    assert torch.equal(vectors_BD, encoder.embed_products(batch))
    # Before stage 2 a title typed as a query finds the text feature of that title.
    with torch.no_grad():
        product = load_blip_folder(folder).product
        tokens = reloaded.tokenizer(["orange juice"], max_tokens=30)
        text_BTH = product.text_tokens(tokens.ids_BT, tokens.mask_BT)
        text_BD = product.text_features(text_BTH, tokens.mask_BT)
    torch.testing.assert_close(reloaded.embed_queries(["orange juice"]), text_BD)


@torch.no_grad()
def test_a_pth_becomes_an_encoder_folder_that_names_its_source(
    tmp_path, pth, vocabulary, original, monkeypatch
) -> None:
    with pytest.raises(PretrainedError, match="comes without a vocabulary"):
        encoder_from_checkpoint(pth, tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()
    monkeypatch.setattr(blip_checkpoint, "HEAD_WIDTH", VISION // VISION_HEADS)
    encoder_from_checkpoint(pth, tmp_path / "encoder", vocabulary=vocabulary)
    reloaded = DashClipEncoder.load(tmp_path / "encoder")
    assert reloaded.trained_on == {"source": "model.pth", "sha256": sha256_of(pth)}
    torch.testing.assert_close(
        reloaded.product.text_tokens(IDS_BT, MASK_BT),
        original_text_tokens(original, IDS_BT, MASK_BT),
        atol=2e-5,
        rtol=1e-5,
    )
