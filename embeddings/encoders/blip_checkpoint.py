"""Published BLIP weights as a ProductEncoder: from a Hugging Face folder or hub name, or an original `.pth`.

The `.pth` files of github.com/salesforce/BLIP (Li et al. 2022; the 14M model of the paper is only there) name
their weights as timm and BERT do; `original_key` is the whole translation. transformers' own script for it
is no part of its releases, and gives the text encoder 8 heads where BLIP has 12: the shapes agree, the
vectors do not. So a head count that is transformers' default is refused, and no weight may stay random.

BLIP has no projection of the image-grounded state: `product_proj` starts as a copy of `text_proj`, which
reads the same kind of state.

Shapes: I image tokens, H hidden width, S patches along one side.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import BlipForImageTextRetrieval

from embeddings.catalog.tokenizer import TextTokenizer
from embeddings.encoders.config import EncoderConfig
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.encoders.modules import ProductEncoder, seeded
from embeddings.encoders.pretrained import (
    PretrainedError,
    load_pretrained,
    read_model_config,
    read_tensors,
    read_vocabulary,
    tokenizer_of_folder,
)
from features.artifacts import sha256_of

#: All published BLIP and BERT models have attention heads of this width.
HEAD_WIDTH = 64
#: Tokens of a title and of a query, as in BLIP's pre-training.
MAX_TOKENS = 30

POSITIONS = "vision.embeddings.position_embedding"
#: In a `.pth` but no part of the encoders: momentum teacher, queues, captioner, temperature, a constant.
_LEFT_OUT = re.compile(
    r"(visual_encoder|text_encoder|vision_proj|text_proj)_m\.|text_decoder\.|(image|text|idx)_queue$"
    r"|(queue_ptr|ptr_queue|temp|text_encoder\.embeddings\.position_ids)$"
)
_RENAMED = (
    (re.compile(r"^visual_encoder\.cls_token$"), "vision.embeddings.class_embedding"),
    (re.compile(r"^visual_encoder\.pos_embed$"), "vision.embeddings.position_embedding"),
    (re.compile(r"^visual_encoder\.patch_embed\.proj\."), "vision.embeddings.patch_embedding."),
    (re.compile(r"^visual_encoder\.norm\."), "vision.post_layernorm."),
    (re.compile(r"^visual_encoder\.blocks\.(\d+)\.norm([12])\."), r"vision.encoder.layers.\1.layer_norm\2."),
    (
        re.compile(r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\."),
        r"vision.encoder.layers.\1.self_attn.projection.",
    ),
    (re.compile(r"^visual_encoder\.blocks\.(\d+)\.attn\.qkv\."), r"vision.encoder.layers.\1.self_attn.qkv."),
    (re.compile(r"^visual_encoder\.blocks\.(\d+)\.mlp\."), r"vision.encoder.layers.\1.mlp."),
    (re.compile(r"^text_encoder\.(?=(embeddings|encoder\.layer)\.)"), "text."),
    (re.compile(r"^(vision_proj|text_proj|itm_head)\."), r"\1."),
)


@dataclass(frozen=True, eq=False)
class BlipCheckpoint:
    """Published weights in our own model, in evaluation mode."""

    config: EncoderConfig
    product: ProductEncoder
    tokenizer: TextTokenizer


def encoder_from_checkpoint(
    name_or_path: str | Path, out: Path, *, vocabulary: Path | None = None
) -> DashClipEncoder:
    """Write published weights as an encoder folder of stage "initial": what stage 1 starts from.

    A file is read as an original `.pth` and needs `vocabulary`, anything else as a folder or hub name.

    Raises:
        PretrainedError: as `convert_blip_pth` and `load_blip_folder`.
        EmbeddingTableError: `out` holds something else.
    """
    path = Path(name_or_path)
    trained_on = {"source": path.name if path.exists() else str(name_or_path)}
    if path.is_file() or path.suffix == ".pth":
        if vocabulary is None:
            raise PretrainedError(
                f"{path} comes without a vocabulary; give the vocab.txt of bert-base-uncased"
            )
        checkpoint = convert_blip_pth(path, vocabulary=vocabulary)
        trained_on["sha256"] = sha256_of(path)
    else:
        checkpoint = load_blip_folder(name_or_path, vocabulary=vocabulary)
    encoder = DashClipEncoder(
        config=checkpoint.config,
        tokenizer=checkpoint.tokenizer,
        product=checkpoint.product,
        query=None,
        stage="initial",
    )
    return encoder.save(out, stage="initial", trained_on=trained_on)


def load_blip_folder(
    name_or_folder: str | Path,
    *,
    vocabulary: Path | None = None,
    image_size: int | None = None,
    text_heads: int | None = None,
    max_title_tokens: int = MAX_TOKENS,
    max_query_tokens: int = MAX_TOKENS,
) -> BlipCheckpoint:
    """A checkpoint of transformers' BlipForImageTextRetrieval, e.g. "Salesforce/blip-itm-base-coco".

    Widths, heads and epsilons are those of its config.json. `image_size` other than the checkpoint's
    interpolates the position embeddings; `text_heads` mends a config that states them wrongly; `vocabulary`
    replaces the tokenizer of the folder. Image and text features equal those of transformers' own class.

    Raises:
        PretrainedError: the checkpoint is not there, is no BLIP, leaves a weight unset, or has a geometry
            that ProductEncoder lacks.
    """
    model = load_blip_retrieval(name_or_folder, text_heads=text_heads)
    settings: Any = model.config
    vision, text = settings.vision_config, settings.text_config
    for part, encoder in (("vision", vision), ("text", text)):
        if encoder.hidden_act != "gelu" or encoder.intermediate_size != 4 * encoder.hidden_size:
            raise PretrainedError(
                f"{name_or_folder}: the {part} encoder must have GELU layers four times as wide as its "
                f"{encoder.hidden_size}, got {encoder.hidden_act!r} and {encoder.intermediate_size}"
            )
    config = EncoderConfig(
        vocab_size=text.vocab_size,
        image_size=image_size or vision.image_size,
        patch_size=vision.patch_size,
        vision_hidden_dim=vision.hidden_size,
        vision_layers=vision.num_hidden_layers,
        vision_heads=vision.num_attention_heads,
        text_hidden_dim=text.hidden_size,
        text_layers=text.num_hidden_layers,
        text_heads=text.num_attention_heads,
        embedding_dim=settings.image_text_hidden_size,
        max_title_tokens=max_title_tokens,
        max_query_tokens=max_query_tokens,
        vision_layer_norm_eps=vision.layer_norm_eps,
        text_layer_norm_eps=text.layer_norm_eps,
    )
    tokenizer = tokenizer_of_folder(name_or_folder) if vocabulary is None else read_vocabulary(vocabulary)
    weights = {
        re.sub(r"^vision_model\.", "vision.", re.sub(r"^text_encoder\.", "text.", key)): value
        for key, value in model.state_dict().items()
    }
    return _assemble(config, weights, tokenizer, source=str(name_or_folder))


def convert_blip_pth(
    path: Path,
    *,
    vocabulary: Path,
    image_size: int | None = None,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    max_title_tokens: int = MAX_TOKENS,
    max_query_tokens: int = MAX_TOKENS,
) -> BlipCheckpoint:
    """An original BLIP checkpoint, pre-trained or fine-tuned for retrieval, e.g. `model_base_14M.pth`.

    The file says nothing of heads: they are 64 wide, as in every published BLIP, unless given. `vocabulary`
    is BERT's (bert-base-uncased) vocab.txt. Read with `weights_only=True`: nothing in the file is executed.

    Raises:
        PretrainedError: the file is not readable that way, lacks a weight or holds one that has no place.
    """
    original = read_tensors(path)
    weights = {
        original_key(key, source=str(path)): value
        for key, value in original.items()
        if not _LEFT_OUT.match(key)
    }
    patch = _weight(weights, "vision.embeddings.patch_embedding.weight", path)
    words = _weight(weights, "text.embeddings.word_embeddings.weight", path)
    positions = _weight(weights, POSITIONS, path)
    projection = _weight(weights, "vision_proj.weight", path)
    vision_width, patch_size = patch.shape[0], patch.shape[-1]
    text_width = words.shape[1]
    for part, width, heads in (("vision", vision_width, vision_heads), ("text", text_width, text_heads)):
        if heads is None and width % HEAD_WIDTH:
            raise PretrainedError(
                f"{path}: the {part} encoder is {width} wide, no multiple of BLIP's heads of {HEAD_WIDTH}; "
                f"give {part}_heads"
            )
    config = EncoderConfig(
        vocab_size=len(words),
        image_size=image_size or patch_size * _grid_side(positions),
        patch_size=patch_size,
        vision_hidden_dim=vision_width,
        vision_layers=_count_layers(weights, "vision.encoder.layers"),
        vision_heads=vision_heads or vision_width // HEAD_WIDTH,
        text_hidden_dim=text_width,
        text_layers=_count_layers(weights, "text.encoder.layer"),
        text_heads=text_heads or text_width // HEAD_WIDTH,
        embedding_dim=len(projection),
        max_title_tokens=max_title_tokens,
        max_query_tokens=max_query_tokens,
    )
    return _assemble(config, weights, read_vocabulary(vocabulary), source=str(path))


def original_key(key: str, *, source: str = "the checkpoint") -> str:
    """Our name of a weight of the original layout.

    "visual_encoder.blocks.3.norm1.weight" is "vision.encoder.layers.3.layer_norm1.weight".

    Raises:
        PretrainedError: the name has no place in ProductEncoder.
    """
    for pattern, replacement in _RENAMED:
        renamed, count = pattern.subn(replacement, key)
        if count:
            return renamed
    raise PretrainedError(
        f"{source} holds a weight {key!r} that BLIP's encoders do not have; give a pre-trained or retrieval "
        "checkpoint of salesforce/BLIP"
    )


def load_blip_retrieval(
    name_or_folder: str | Path, *, text_heads: int | None = None
) -> BlipForImageTextRetrieval:
    """transformers' own model with its heads checked, float32, in evaluation mode.

    Raises:
        PretrainedError: as `load_pretrained`, or the config has transformers' default of 8 heads for BLIP's
            text encoder of width 768.
    """
    config = read_model_config(name_or_folder, model_type="blip")
    if text_heads is not None:
        config.text_config.num_attention_heads = text_heads
    elif (config.text_config.hidden_size, config.text_config.num_attention_heads) == (768, 8):
        raise PretrainedError(
            f"{name_or_folder}: its config gives the text encoder 8 heads, transformers' default; BLIP was "
            "trained with 12, and 8 load without an error but give other vectors; set "
            "text_config.num_attention_heads to 12 in its config.json, or give text_heads"
        )
    return load_pretrained(BlipForImageTextRetrieval, name_or_folder, config=config)


def resized_positions(position_1IH: Tensor, *, side: int) -> Tensor:
    """Position embeddings for a grid of `side` x `side` patches, by bicubic interpolation as BLIP does.

    The class token keeps its own. The same side gives the same bits.
    """
    old_side = _grid_side(position_1IH)
    if old_side == side:
        return position_1IH
    width = position_1IH.shape[-1]
    grid_1HSS = position_1IH[:, 1:].reshape(1, old_side, old_side, width).permute(0, 3, 1, 2)
    resized_1HSS = interpolate(grid_1HSS, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([position_1IH[:, :1], resized_1HSS.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _assemble(
    config: EncoderConfig, weights: dict[str, Tensor], tokenizer: TextTokenizer, *, source: str
) -> BlipCheckpoint:
    if tokenizer.vocab_size != config.vocab_size:
        raise PretrainedError(
            f"{source} has {config.vocab_size:,} word embeddings, but its vocabulary with [DEC] and [ENC] "
            f"has {tokenizer.vocab_size:,} tokens; give the vocabulary that it was trained with"
        )
    weights = {key: value.to(torch.float32) for key, value in weights.items()}
    weights |= {
        key.replace("text_proj", "product_proj"): value
        for key, value in weights.items()
        if key.startswith("text_proj.")
    }
    if POSITIONS in weights:
        side = config.image_size // config.patch_size
        weights[POSITIONS] = resized_positions(weights[POSITIONS], side=side)
    # Every weight is replaced below or it is an error, so the seed is of no consequence.
    product = seeded(lambda: ProductEncoder(config, enc_id=tokenizer.enc_id), 0)
    try:
        product.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        detail = " ".join(str(error).split("\n\t")[1:3]) or str(error)
        raise PretrainedError(
            f"{source} does not fill a BLIP of {config.vision_layers} + {config.text_layers} layers: {detail}"
        ) from None
    return BlipCheckpoint(config=config, product=product.eval(), tokenizer=tokenizer)


def _weight(weights: Mapping[str, Tensor], key: str, path: Path) -> Tensor:
    if key not in weights:
        raise PretrainedError(
            f"{path} lacks {key!r} (our name of it); captioning and VQA checkpoints do: give a "
            "pre-trained or retrieval checkpoint of salesforce/BLIP"
        )
    return weights[key]


def _count_layers(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[1] for key in weights if key.startswith(f"{prefix}.")})


def _grid_side(position_1IH: Tensor) -> int:
    """Patches along one side; the class token is not one of them."""
    return round((position_1IH.shape[1] - 1) ** 0.5)
