"""Published BLIP weights: the same numbers as the original code and as transformers, and nothing left random.

The original forward pass is written here from the BLIP paper and the names of its weights, head by head, so
that it shares nothing with transformers' modules. Small random weights: wide enough to tell heads apart.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, linear, normalize
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval

from embeddings import blip_checkpoint
from embeddings.blip_checkpoint import (
    convert_blip_pth,
    encoder_from_checkpoint,
    load_blip_folder,
    load_blip_retrieval,
    original_key,
    resized_positions,
)
from embeddings.catalog import ProductBatch
from embeddings.dashclip import DashClipEncoder
from embeddings.files import sha256_of
from embeddings.pretrained import CheckpointError

VISION, TEXT, DIM, LAYERS, PATCH, SIDE = 24, 16, 8, 2, 16, 2
VISION_HEADS, TEXT_HEADS = 3, 2
BERT_TOKENS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefgh",
    "##a",
    "##b",
    "juice",
    "orange",
    "milk",
]
VOCAB = len(BERT_TOKENS) + 2
IDS_BT = torch.tensor([[2, 15, 16, 3, 0, 0], [2, 17, 5, 6, 7, 3]])
MASK_BT = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])


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


def random_original() -> dict[str, Tensor]:
    """A state dict as salesforce/BLIP's pre-training saves it, everything that we leave out included."""
    shapes: dict[str, tuple[int, ...]] = {
        "visual_encoder.cls_token": (1, 1, VISION),
        "visual_encoder.pos_embed": (1, 1 + SIDE**2, VISION),
        "visual_encoder.patch_embed.proj.weight": (VISION, 3, PATCH, PATCH),
        "visual_encoder.patch_embed.proj.bias": (VISION,),
        **layer_norm_shapes("visual_encoder.norm", VISION),
        "text_encoder.embeddings.word_embeddings.weight": (VOCAB, TEXT),
        "text_encoder.embeddings.position_embeddings.weight": (512, TEXT),
        **layer_norm_shapes("text_encoder.embeddings.LayerNorm", TEXT),
        **linear_shapes("vision_proj", VISION, DIM),
        **linear_shapes("text_proj", TEXT, DIM),
        **linear_shapes("itm_head", TEXT, 2),
    }
    for number in range(LAYERS):
        block = f"visual_encoder.blocks.{number}"
        shapes |= layer_norm_shapes(f"{block}.norm1", VISION) | layer_norm_shapes(f"{block}.norm2", VISION)
        shapes |= linear_shapes(f"{block}.attn.qkv", VISION, 3 * VISION)
        shapes |= linear_shapes(f"{block}.attn.proj", VISION, VISION)
        shapes |= linear_shapes(f"{block}.mlp.fc1", VISION, 4 * VISION)
        shapes |= linear_shapes(f"{block}.mlp.fc2", 4 * VISION, VISION)
        layer = f"text_encoder.encoder.layer.{number}"
        for attention, source in (("attention", TEXT), ("crossattention", VISION)):
            shapes |= linear_shapes(f"{layer}.{attention}.self.query", TEXT, TEXT)
            shapes |= linear_shapes(f"{layer}.{attention}.self.key", source, TEXT)
            shapes |= linear_shapes(f"{layer}.{attention}.self.value", source, TEXT)
            shapes |= linear_shapes(f"{layer}.{attention}.output.dense", TEXT, TEXT)
            shapes |= layer_norm_shapes(f"{layer}.{attention}.output.LayerNorm", TEXT)
        shapes |= linear_shapes(f"{layer}.intermediate.dense", TEXT, 4 * TEXT)
        shapes |= linear_shapes(f"{layer}.output.dense", 4 * TEXT, TEXT)
        shapes |= layer_norm_shapes(f"{layer}.output.LayerNorm", TEXT)
    generator = torch.Generator().manual_seed(0)
    weights = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in weights:
        if "norm" in name.lower() and name.endswith(".weight"):
            weights[name] += 1  # near zero they would silence whatever attention does
    teacher = {}
    for name, value in weights.items():
        module, _, rest = name.partition(".")
        if module != "itm_head":
            teacher[f"{module}_m.{rest}"] = value + 1
    return weights | teacher | {
        "text_encoder.embeddings.position_ids": torch.arange(512).unsqueeze(0),
        "text_encoder_m.embeddings.position_ids": torch.arange(512).unsqueeze(0),
        "text_decoder.bert.embeddings.word_embeddings.weight": torch.zeros(VOCAB, TEXT),
        "text_decoder.cls.predictions.bias": torch.zeros(VOCAB),
        "image_queue": torch.zeros(DIM, 12),
        "text_queue": torch.zeros(DIM, 12),
        "queue_ptr": torch.zeros(1, dtype=torch.long),
        "temp": torch.tensor(0.07),
    }  # fmt: skip


def linear_shapes(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def layer_norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def save_pth(path: Path, weights: dict[str, Tensor]) -> Path:
    torch.save({"model": weights, "config": {"vit": "base", "image_size": 224}, "epoch": 19}, path)
    return path


def save_transformers_folder(folder: Path, *, text_heads: int = TEXT_HEADS) -> Path:
    torch.manual_seed(1)
    shared = {"num_hidden_layers": LAYERS, "initializer_range": 0.3}
    config = BlipConfig(
        vision_config={
            "hidden_size": VISION,
            "intermediate_size": 4 * VISION,
            "num_attention_heads": VISION_HEADS,
            "image_size": PATCH * SIDE,
            "patch_size": PATCH,
            **shared,
        },
        text_config={
            "vocab_size": VOCAB,
            "hidden_size": TEXT,
            "encoder_hidden_size": VISION,
            "intermediate_size": 4 * TEXT,
            "num_attention_heads": text_heads,
            **shared,
        },
        image_text_hidden_size=DIM,
    )
    BlipForImageTextRetrieval(config).save_pretrained(folder)
    vocabulary = {token: position for position, token in enumerate(BERT_TOKENS)}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    return folder


def pixels() -> Tensor:
    return torch.randn((2, 3, PATCH * SIDE, PATCH * SIDE), generator=torch.Generator().manual_seed(5))


def dense(weights: dict[str, Tensor], name: str, states: Tensor) -> Tensor:
    return linear(states, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(weights: dict[str, Tensor], name: str, states: Tensor, eps: float) -> Tensor:
    return layer_norm(states, states.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask_BT: Tensor | None = None) -> Tensor:
    """One head after the other, each on its own slice of the width."""
    width = query.shape[-1] // heads
    results = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / width**0.5
        if mask_BT is not None:
            scores = scores.masked_fill(mask_BT[:, None, :] == 0, float("-inf"))
        results.append(scores.softmax(-1) @ value[..., part])
    return torch.cat(results, dim=-1)


def original_image_tokens(weights: dict[str, Tensor], pixels_BCHW: Tensor) -> Tensor:
    """timm's ViT: pre-norm blocks, a last norm over all tokens."""
    root = "visual_encoder"
    patches = conv2d(
        pixels_BCHW,
        weights[f"{root}.patch_embed.proj.weight"],
        weights[f"{root}.patch_embed.proj.bias"],
        stride=PATCH,
    )
    cls = weights[f"{root}.cls_token"].expand(len(patches), -1, -1)
    states = torch.cat([cls, patches.flatten(2).transpose(1, 2)], 1) + weights[f"{root}.pos_embed"]
    for number in range(LAYERS):
        block = f"{root}.blocks.{number}"
        qkv = dense(weights, f"{block}.attn.qkv", norm(weights, f"{block}.norm1", states, 1e-6))
        attended = attend(*qkv.chunk(3, dim=-1), VISION_HEADS)
        states = states + dense(weights, f"{block}.attn.proj", attended)
        hidden = dense(weights, f"{block}.mlp.fc1", norm(weights, f"{block}.norm2", states, 1e-6))
        states = states + dense(weights, f"{block}.mlp.fc2", gelu(hidden))
    return norm(weights, f"{root}.norm", states, 1e-6)


def original_text_tokens(
    weights: dict[str, Tensor], ids_BT: Tensor, mask_BT: Tensor, image_BIH: Tensor | None = None
) -> Tensor:
    """BERT: post-norm layers; with an image, cross-attention between self-attention and feed-forward."""
    root = "text_encoder"
    states = weights[f"{root}.embeddings.word_embeddings.weight"][ids_BT]
    states = states + weights[f"{root}.embeddings.position_embeddings.weight"][: ids_BT.shape[1]]
    states = norm(weights, f"{root}.embeddings.LayerNorm", states, 1e-12)
    for number in range(LAYERS):
        layer = f"{root}.encoder.layer.{number}"
        sources = [("attention", states, mask_BT)]
        if image_BIH is not None:
            sources.append(("crossattention", image_BIH, None))
        for name, source, mask in sources:
            source = states if name == "attention" else source
            attended = attend(
                dense(weights, f"{layer}.{name}.self.query", states),
                dense(weights, f"{layer}.{name}.self.key", source),
                dense(weights, f"{layer}.{name}.self.value", source),
                TEXT_HEADS,
                mask,
            )
            attended = dense(weights, f"{layer}.{name}.output.dense", attended)
            states = norm(weights, f"{layer}.{name}.output.LayerNorm", attended + states, 1e-12)
        hidden = gelu(dense(weights, f"{layer}.intermediate.dense", states))
        hidden = dense(weights, f"{layer}.output.dense", hidden)
        states = norm(weights, f"{layer}.output.LayerNorm", hidden + states, 1e-12)
    return states


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
    with pytest.raises(CheckpointError, match=original_key(lost).replace(".", r"\.")):
        converted(save_pth(tmp_path / "lost.pth", weights), vocabulary)


@pytest.mark.parametrize("name", ["visual_encoder.head.weight", "text_encoder.pooler.dense.weight", "extra"])
def test_a_weight_without_a_place_is_refused_by_its_name(name, tmp_path, vocabulary, original) -> None:
    path = save_pth(tmp_path / "more.pth", original | {name: torch.zeros(2)})
    with pytest.raises(CheckpointError, match=name):
        converted(path, vocabulary)


def test_heads_of_an_unusual_width_must_be_given(pth, vocabulary) -> None:
    with pytest.raises(CheckpointError, match="give vision_heads"):
        convert_blip_pth(pth, vocabulary=vocabulary)


def test_a_pth_that_would_run_code_is_refused_and_does_not_run(tmp_path, vocabulary) -> None:
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model": Harmful()}, tmp_path / "harmful.pth")
    with pytest.raises(CheckpointError, match="nothing but tensors"):
        converted(tmp_path / "harmful.pth", vocabulary)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_checkpoint_is_refused(content, tmp_path, vocabulary) -> None:
    (tmp_path / "broken.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken\.pth must be a PyTorch checkpoint"):
        converted(tmp_path / "broken.pth", vocabulary)
    with pytest.raises(CheckpointError, match="absent"):
        converted(tmp_path / "absent.pth", vocabulary)
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="dictionary of tensors"):
        converted(tmp_path / "list.pth", vocabulary)


def test_a_vocabulary_of_another_length_is_refused(pth, tmp_path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(BERT_TOKENS[:-1]) + "\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"{VOCAB} word embeddings"):
        converted(pth, tmp_path / "vocab.txt")
    with pytest.raises(CheckpointError, match=r"absent\.txt must be"):
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
    with pytest.raises(CheckpointError, match="give the vocabulary that it was trained with"):
        load_blip_folder(tmp_path)
    assert load_blip_folder(tmp_path, vocabulary=vocabulary).tokenizer.vocab_size == VOCAB


def test_a_folder_that_leaves_weights_random_is_refused(tmp_path, folder) -> None:
    captioner = BlipForConditionalGeneration(BlipConfig.from_pretrained(folder))
    captioner.save_pretrained(tmp_path / "captioner")
    with pytest.raises(CheckpointError, match=r"leaves .* weights of BlipForImageTextRetrieval random"):
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
    with pytest.raises(CheckpointError, match="8 heads, transformers' default; BLIP was trained with 12"):
        load_blip_folder(tmp_path)


def test_a_folder_of_another_model_or_none_is_refused(tmp_path, folder) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="must be a blip model, its config says 'bert'"):
        load_blip_folder(tmp_path)
    with pytest.raises(CheckpointError, match="must be a folder with a transformers config"):
        load_blip_folder(tmp_path / "absent")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["vision_config"]["hidden_act"] = "relu"
    copy = tmp_path / "relu"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match="vision encoder must have GELU"):
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
    with pytest.raises(CheckpointError, match="comes without a vocabulary"):
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
