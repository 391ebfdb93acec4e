"""Published text weights as both text encoders: any uncased BERT in a folder of transformers' layout.

MiniLM, bge, e5, gte and BERT itself have the layers of BLIP's text encoder under the same names. Two things
have no place there and are folded in: every token is of type 0, so row 0 of the token types is added to all
positions; and [DEC] and [ENC], which BLIP appends to the vocabulary, begin as copies of [CLS]. Pooling, a
projection and the texts that go before queries and titles are read from the files that sentence-transformers
writes beside the weights. Vectors are unit vectors whether or not the folder says so: cosines are the same.

What such a folder has no weights for is random until it is trained (`RANDOM`). With the fusion "completion"
a product is its title until then.

Shapes: V tokens, H hidden width, D embedding width.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from embeddings.catalog.tokenizer import TextTokenizer
from embeddings.encoders.config import EncoderConfig, Pooling, Size
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.encoders.modules import ProductEncoder, seeded
from embeddings.encoders.pretrained import PretrainedError, read_tensors, tokenizer_of_folder
from embeddings.encoders.sentence_files import CONFIG, Head, head_of, modules_of, prompts_of, weights_file
from features.artifacts import json_file_has, sha256_of

#: Fields of `EncoderConfig` that the weights leave open.
OPEN_FIELDS = (
    "image_size",
    "patch_size",
    "vision_hidden_dim",
    "vision_layers",
    "vision_heads",
    "vision_layer_norm_eps",
    "image_pooling",
    "image_stem",
    "fusion",
    "dropout",
    "max_title_tokens",
    "max_query_tokens",
    "title_prefix",
    "query_prefix",
)
#: Pieces of a title and of a query that are read, unless more or fewer are asked for. Of Home Depot's titles
#: 0.1 % are longer, of its queries none.
MAX_TITLE_TOKENS, MAX_QUERY_TOKENS = 48, 32
#: Parts of the encoder that no text model has weights for.
RANDOM = ("vision", "vision_proj", "text.encoder.layer.*.crossattention", "itm_head")
#: Rows of the word embeddings that a right tokenizer may leave unused, as padding to a multiple of 64.
UNUSED_WORDS = 63
#: More pieces with a capital letter than this share are those of a cased model.
CAPITALS_SHARE = 0.01

_TYPES, _WORDS, _POSITIONS = (
    f"embeddings.{name}_embeddings.weight" for name in ("token_type", "word", "position")
)
#: In a checkpoint but no part of the encoder: the pooler of [CLS], a constant, heads of pre-training.
_LEFT_OUT = re.compile(r"pooler\.|cls\.|classifier\.|embeddings\.position_ids$")


class BertSettings(BaseModel):
    """What a config.json says of a BERT, with BERT's values for what it leaves out."""

    model_type: str
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    position_embedding_type: str | None = "absolute"
    max_position_embeddings: int = 512
    layer_norm_eps: float = 1e-12
    is_decoder: bool = False


def is_bert_folder(folder: Path) -> bool:
    """Whether a folder holds a model in transformers' layout; `read_bert` says whether it can be used."""
    return json_file_has(Path(folder) / CONFIG, "model_type")


def read_bert(
    folder: Path,
    *,
    pooling: Pooling | None = None,
    size: Size = "small",
    seed: int = 0,
    **changes: Any,
) -> DashClipEncoder:
    """The encoder of stage "initial" whose query and title vectors are those of the model in `folder`.

    Args:
        pooling: "mean" or "cls"; what the folder says if None.
        size: its image side (`EncoderConfig.preset`), which begins at random weights of `seed`.
        changes: fields of `OPEN_FIELDS`. Prefixes not given are the prompts that the folder names.

    Raises:
        PretrainedError: a file is missing, or the model is not an uncased BERT with GELU layers four times as
            wide as its state and absolute positions.
    """
    folder = Path(folder)
    unknown = sorted(set(changes) - set(OPEN_FIELDS))
    if unknown:
        raise PretrainedError(
            f"{unknown[0]} comes with the weights of {folder}; only {', '.join(OPEN_FIELDS)} can be chosen"
        )
    modules = modules_of(folder)
    home = folder / modules[0][1] if modules else folder
    settings = _settings(home)
    head = head_of(folder, modules, pooling)
    weights_path = weights_file(home)
    tokenizer = _tokenizer(home)
    text = _text_weights(_named_weights(weights_path), settings, tokenizer, source=weights_path)
    most = min(settings.max_position_embeddings, 512)
    given: dict[str, Any] = {
        "max_title_tokens": min(MAX_TITLE_TOKENS, most),
        "max_query_tokens": min(MAX_QUERY_TOKENS, most),
        **prompts_of(folder),
        **changes,
    }
    for name in ("max_title_tokens", "max_query_tokens"):
        if given[name] > settings.max_position_embeddings:
            raise PretrainedError(
                f"{folder} has positions for {settings.max_position_embeddings} tokens, so {name} must not "
                f"exceed that; got {given[name]}"
            )
    try:
        config = EncoderConfig.preset(
            size,
            vocab_size=tokenizer.vocab_size,
            text_hidden_dim=settings.hidden_size,
            text_layers=settings.num_hidden_layers,
            text_heads=settings.num_attention_heads,
            text_layer_norm_eps=settings.layer_norm_eps,
            embedding_dim=settings.hidden_size if head.weight_DH is None else len(head.weight_DH),
            pooling=head.pooling,
            **given,
        )
    except ValidationError as error:
        problem = error.errors()[0]
        where = "".join(f"{part}: " for part in problem["loc"])
        raise PretrainedError(f"{folder} does not make an encoder: {where}{problem['msg']}") from None
    product = seeded(lambda: ProductEncoder(config, enc_id=tokenizer.enc_id), seed)
    _fill(product, text, head, source=weights_path)
    trained_on = {
        "source": folder.name,
        "sha256": sha256_of(weights_path),
        "pooling": head.pooling,
        "random": list(RANDOM),
    }
    encoder = DashClipEncoder(
        config=config,
        tokenizer=tokenizer,
        product=product.eval(),
        query=None,
        stage="initial",
        trained_on=trained_on,
    )
    # With a query encoder a product is what `fusion` makes of it, not the mean with a random image's vector.
    return encoder.with_query_encoder()


def lacks_images(encoder: DashClipEncoder) -> bool:
    """Whether the image side of an encoder of `read_bert` is as random as it began."""
    return RANDOM[0] in (encoder.trained_on or {}).get("random", ())


def _settings(folder: Path) -> BertSettings:
    path = folder / CONFIG
    try:
        settings = BertSettings.model_validate_json(path.read_bytes())
    except OSError:
        raise PretrainedError(
            f"{folder} must be a folder with the config.json, weights and tokenizer of a BERT"
        ) from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "content"
        raise PretrainedError(f"{path} is no config of a BERT: {where}: {problem['msg']}") from None
    if settings.model_type != "bert":
        raise PretrainedError(
            f"{folder} must be a BERT (MiniLM, bge, e5 and gte are), its config says "
            f"{settings.model_type!r}, which has other layers or another tokenizer"
        )
    if settings.hidden_act != "gelu":
        raise PretrainedError(
            f"{folder}: layers must have the exact GELU ('gelu'), got {settings.hidden_act!r}; other "
            "activations give other vectors"
        )
    if settings.position_embedding_type not in (None, "absolute"):
        raise PretrainedError(
            f"{folder}: positions must be absolute, got {settings.position_embedding_type!r}"
        )
    if settings.intermediate_size != 4 * settings.hidden_size:
        raise PretrainedError(
            f"{folder}: layers must be four times as wide as the state of {settings.hidden_size}, got "
            f"{settings.intermediate_size}"
        )
    if settings.is_decoder:
        raise PretrainedError(f"{folder} reads from left to right (is_decoder); an encoder is needed")
    return settings


def _tokenizer(folder: Path) -> TextTokenizer:
    tokenizer = tokenizer_of_folder(folder)
    capitals = sum(1 for token in tokenizer.tokens if not token.startswith("[") and re.search("[A-Z]", token))
    if capitals > CAPITALS_SHARE * tokenizer.vocab_size:
        raise PretrainedError(
            f"{folder}: {capitals:,} of {tokenizer.vocab_size:,} pieces have capital letters, so the model "
            "is cased; only uncased vocabularies are supported"
        )
    return tokenizer


def _named_weights(path: Path) -> dict[str, Tensor]:
    """Weights by the names that BertModel gives them; those of heads and of the pooler are left out."""
    found = {name.removeprefix("bert."): value for name, value in read_tensors(path).items()}
    # Google's own checkpoints have the names of TensorFlow.
    return {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): value
        for name, value in found.items()
        if not _LEFT_OUT.match(name)
    }


def _text_weights(
    weights: Mapping[str, Tensor], settings: BertSettings, tokenizer: TextTokenizer, *, source: Path
) -> dict[str, Tensor]:
    """The same for our layers: token type 0 within the positions, and rows for [DEC] and [ENC]."""
    text = {name: value.to(torch.float32) for name, value in weights.items()}
    for name in (_WORDS, _POSITIONS, _TYPES):
        if name not in text:
            raise PretrainedError(f"{source} lacks {name!r}")
    words_VH, positions_TH, types = text[_WORDS], text[_POSITIONS], text.pop(_TYPES)
    known = min(tokenizer.dec_id, tokenizer.enc_id)  # tokens of the folder's own vocabulary
    if known + 2 != tokenizer.vocab_size or not 0 <= len(words_VH) - known <= UNUSED_WORDS:
        raise PretrainedError(
            f"{source} has {len(words_VH):,} word embeddings, but its vocabulary {known:,} tokens; the "
            "tokenizer files must be those of the model"
        )
    if len(positions_TH) != settings.max_position_embeddings:
        raise PretrainedError(
            f"{source} has {len(positions_TH)} positions, its config says {settings.max_position_embeddings}"
        )
    cls_2H = words_VH[tokenizer.cls_id].expand(2, -1)
    text[_WORDS] = torch.cat([words_VH[:known], cls_2H])
    # Texts are cut at 512 tokens, and at fewer where there are fewer positions: those are never read.
    rows = min(settings.max_position_embeddings, 512)
    text[_POSITIONS] = torch.zeros(512, positions_TH.shape[1])
    text[_POSITIONS][:rows] = positions_TH[:rows] + types[0]
    return text


@torch.no_grad()
def _fill(product: ProductEncoder, text: dict[str, Tensor], head: Head, *, source: Path) -> None:
    """Put the weights into the text side; none of it but cross-attention may stay random."""
    own = product.text.state_dict()
    unknown = sorted(text.keys() - own.keys())
    if unknown:
        raise PretrainedError(
            f"{source} holds a weight {unknown[0]!r} ({len(unknown)} in all) that the layers of its config "
            "do not have"
        )
    missing = sorted(name for name in own.keys() - text.keys() if "crossattention" not in name)
    if missing:
        raise PretrainedError(f"{source} lacks {missing[0]!r} ({len(missing)} weights in all)")
    for name, value in text.items():
        if value.shape != own[name].shape:
            raise PretrainedError(
                f"{source}: {name!r} must be {list(own[name].shape)}, as its config says, got "
                f"{list(value.shape)}"
            )
        own[name].copy_(value)
    projection = product.text_proj
    if head.weight_DH is None or head.bias_D is None:
        projection.weight.copy_(torch.eye(projection.in_features))
        projection.bias.zero_()
    else:
        if head.weight_DH.shape != projection.weight.shape:
            raise PretrainedError(
                f"{source}: the Dense module takes {head.weight_DH.shape[1]} values, the model gives "
                f"{projection.in_features}"
            )
        projection.weight.copy_(head.weight_DH)
        projection.bias.copy_(head.bias_D)
    product.start_product_proj()
