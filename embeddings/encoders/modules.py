"""ProductEncoder and QueryEncoder of DashCLIP (paper section 3.1, figure 1) on transformers' BLIP modules.

The product encoder is BLIP's: an image encoder, a text encoder, and the image-grounded text encoder, which is
the text encoder with its cross-attention to the image switched on. The query encoder is a text transformer of
its own. transformers carries the layers; projections, heads and forward passes are ours.

Shapes: B products or queries, T text tokens, I image tokens, H hidden width, D embedding width.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from embeddings.catalog.device_copies import asking_waits
from embeddings.catalog.products import ProductBatch
from embeddings.encoders.completion import Completion
from embeddings.encoders.config import EncoderConfig, ImagePooling, Pooling
from embeddings.encoders.ngrams import CharacterNgrams
from embeddings.training.fast_products import FastLinear, use_fast_products

Module = TypeVar("Module", bound=nn.Module)

#: transformers' default for BLIP's image encoder is 1e-10: from scratch all images would look the same.
INITIAL_STD = 0.02


class TextEncoder(BlipTextModel):
    """BLIP's text encoder; with `EncoderConfig.ngram_buckets` the text's n-grams stand beside each state."""

    def __init__(self, config: EncoderConfig, *, cross_attention: bool) -> None:
        super().__init__(text_config(config, cross_attention=cross_attention), add_pooling_layer=False)
        self.ngrams = None
        if config.ngram_buckets:
            self.ngrams = CharacterNgrams(config.vocab_size, config.ngram_buckets, config.ngram_dim)
        use_fast_products(self)

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Any:
        """As BlipTextModel's, with `last_hidden_state` (B, T, `EncoderConfig.text_state_dim`)."""
        attended = attention_mask
        if asking_waits(attention_mask):
            # transformers would ask whether any token is masked at all, and wait for the answer
            attended = additive_mask(attention_mask, self.embeddings.word_embeddings.weight.dtype)
        found = super().forward(input_ids=input_ids, attention_mask=attended, **options)
        if self.ngrams is not None:
            state_BTH = found.last_hidden_state
            ngrams_BTG = (
                self.ngrams(input_ids, attention_mask).unsqueeze(1).expand(-1, state_BTH.shape[1], -1)
            )
            found.last_hidden_state = torch.cat([state_BTH, ngrams_BTG.to(state_BTH)], dim=2)
        return found


class ProductEncoder(nn.Module):
    """Image, title, and both together, each as one vector of the shared space.

    `forward` gives the product embedding: the projected state of [ENC] in the image-grounded text encoder, or
    the mean state of its tokens (`EncoderConfig.pooling`).
    """

    def __init__(self, config: EncoderConfig, *, enc_id: int) -> None:
        super().__init__()
        self.enc_id = enc_id
        self.pooling, self.image_pooling = config.pooling, config.image_pooling
        self.vision = BlipVisionModel(vision_config(config))
        self.no_image_tokens = (0, config.num_image_tokens, config.vision_hidden_dim)
        if config.image_stem == "conv":
            stem = ConvStem(config.patch_size, config.vision_hidden_dim)
            self.vision.embeddings.register_module("patch_embedding", stem)
        self.text = TextEncoder(config, cross_attention=True)
        self.vision_proj = nn.Linear(config.image_state_dim, config.embedding_dim)
        self.text_proj = nn.Linear(config.text_state_dim, config.embedding_dim)
        self.product_proj = nn.Linear(config.text_state_dim, config.vector_dim)
        #: Logits of (no match, match).
        self.itm_head = nn.Linear(config.text_state_dim, 2)
        self.fusion = config.fusion
        #: What images add to the vectors of titles; only after stage 2, and only with that fusion.
        self.completion: Completion | None = None
        use_fast_products(self)

    def image_tokens(self, pixels_BCHW: Tensor) -> Tensor:
        """States of [CLS] and of the patches, (B, I, H)."""
        return self.vision(pixel_values=pixels_BCHW).last_hidden_state

    def text_tokens(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """States of the text alone, (B, T, H)."""
        return self.text(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state

    def grounded_tokens(self, ids_BT: Tensor, mask_BT: Tensor, image_BIH: Tensor) -> Tensor:
        """States of the text that looks at the image, (B, T, H); position 0 is [ENC] instead of [CLS]."""
        return self.text(
            input_ids=self._with_enc(ids_BT), attention_mask=mask_BT, encoder_hidden_states=image_BIH
        ).last_hidden_state

    def image_features(self, image_BIH: Tensor) -> Tensor:
        """Unit vectors of images, (B, D)."""
        return normalize(self.projected_images(image_BIH), dim=-1)

    def projected_images(self, image_BIH: Tensor) -> Tensor:
        """Image features before they are made unit vectors, (B, D)."""
        projection: Tensor = self.vision_proj(pooled_image(image_BIH, self.image_pooling))
        return projection

    def text_features(self, text_BTH: Tensor, mask_BT: Tensor) -> Tensor:
        """Unit vectors of titles, (B, D)."""
        return normalize(self.text_proj(self._pooled(text_BTH, mask_BT)), dim=-1)

    def match_logits(self, ids_BT: Tensor, mask_BT: Tensor, image_BIH: Tensor) -> Tensor:
        """Logits of "this title is not, is of this image", (B, 2)."""
        return self.itm_head(self.grounded_tokens(ids_BT, mask_BT, image_BIH)[:, 0])

    def forward(self, batch: ProductBatch) -> Tensor:
        """Unit vectors of products, (B, D); zeros for a product with neither image nor title.

        With the fusion "completion" also zeros for one without a title, as long as there is no completion.
        """
        image_GIH, with_image_G = self._image_tokens(batch)
        return self.embed(batch, image_GIH, with_image_G)

    def embed(self, batch: ProductBatch, image_GIH: Tensor, with_image_G: Tensor) -> Tensor:
        """Product embeddings from image tokens that exist already.

        Args:
            batch: titles of B products; its pixels are not read.
            image_GIH: image tokens of the G products that have an image.
            with_image_G: their positions in the batch, ascending.
        """
        product_BD = normalize(self._project(batch, image_GIH, with_image_G), dim=-1)
        if self.fusion == "grounded":
            return product_BD * (batch.has_image_B | batch.has_title_B).unsqueeze(1)
        product_BD = product_BD * batch.has_title_B.unsqueeze(1)
        if self.completion is None:
            return product_BD
        completed_GD = self.completion(product_BD[with_image_G], self.image_features(image_GIH))
        return product_BD.index_copy(0, with_image_G, completed_GD.to(product_BD))

    def projected(self, batch: ProductBatch) -> Tensor:
        """Product embeddings before they are completed and made unit vectors, (B, D)."""
        return self._project(batch, *self._image_tokens(batch))

    def _image_tokens(self, batch: ProductBatch) -> tuple[Tensor, Tensor]:
        """Image tokens of the products whose image counts, and their positions in the batch.

        None counts before there is a completion, if that is how images come in.
        """
        with_image = batch.image_rows()
        if self.fusion == "completion" and self.completion is None:
            with_image = with_image[:0]
        if not len(with_image):
            return batch.pixels_BCHW.new_zeros(self.no_image_tokens), with_image
        return self.image_tokens(batch.pixels_BCHW[with_image]), with_image

    def _project(self, batch: ProductBatch, image_GIH: Tensor, with_image_G: Tensor) -> Tensor:
        """A product without an image goes through the same layers without cross-attention.

        One without a title is [ENC] alone, which looks at the image if the fusion is "grounded".
        """
        dtype, rows = self.product_proj.weight.dtype, len(batch.ids_BT)
        state_BH = batch.ids_BT.new_zeros((rows, self.text_proj.in_features), dtype=dtype)
        if self.fusion == "grounded" and len(with_image_G):
            mask_GT = batch.mask_BT[with_image_G]
            grounded_GTH = self.grounded_tokens(batch.ids_BT[with_image_G], mask_GT, image_GIH)
            state_BH = state_BH.index_copy(0, with_image_G, self._pooled(grounded_GTH, mask_GT).to(dtype))
        text_only = batch.title_rows(without_image=self.fusion == "grounded")
        if len(text_only):
            mask_RT = batch.mask_BT[text_only]
            text_RTH = self.text_tokens(self._with_enc(batch.ids_BT[text_only]), mask_RT)
            state_BH = state_BH.index_copy(0, text_only, self._pooled(text_RTH, mask_RT).to(dtype))
        return self.product_proj(state_BH)

    @torch.no_grad()
    def start_product_proj(self) -> None:
        """Let the product projection begin where titles are: not at chance."""
        self.product_proj.load_state_dict(self.text_proj.state_dict())

    def _pooled(self, state_BTH: Tensor, mask_BT: Tensor) -> Tensor:
        return pooled(state_BTH, mask_BT, self.pooling)

    def _with_enc(self, ids_BT: Tensor) -> Tensor:
        grounded_BT = ids_BT.clone()
        grounded_BT[:, 0] = self.enc_id
        return grounded_BT


class QueryEncoder(nn.Module):
    """A text transformer of its own for what people type; `forward` gives unit vectors, (B, D)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.pooling = config.pooling
        self.text = TextEncoder(config, cross_attention=False)
        self.query_proj = FastLinear(config.text_state_dim, config.vector_dim)

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Unit vectors of B queries."""
        return normalize(self.projected(ids_BT, mask_BT), dim=-1)

    def projected(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Query embeddings before they are made unit vectors, (B, D)."""
        text_BTH = self.text(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        return self.query_proj(pooled(text_BTH, mask_BT, self.pooling))

    def start_from(self, product: ProductEncoder) -> None:
        """Copy the text encoder and its projection, as the paper initialises the query encoder.

        Raises:
            RuntimeError: the shapes differ.
        """
        own = self.text.state_dict().keys()
        self.text.load_state_dict({n: v for n, v in product.text.state_dict().items() if n in own})
        self.query_proj.load_state_dict(product.text_proj.state_dict())


class ConvStem(nn.Sequential):
    """Patch tokens of an image, (B, H, rows, columns): each layer but the last halves its sides.

    Channels are normalised in groups within an image: neither a batch nor its split over ranks matters.
    """

    def __init__(self, patch_size: int, hidden_dim: int) -> None:
        halvings = patch_size.bit_length() - 1
        widths = [3, *(max(8, hidden_dim >> max(1, halvings - layer)) for layer in range(1, halvings + 1))]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1, bias=False),
                nn.GroupNorm(math.gcd(after, max(1, after // 16)), after),
                nn.ReLU(),
            ]
        super().__init__(*layers, nn.Conv2d(widths[-1], hidden_dim, kernel_size=1))

    @property
    def weight(self) -> Tensor:
        """Tells transformers the precision that it is to bring pixels to."""
        return next(self.parameters())


def pooled(state_BTH: Tensor, mask_BT: Tensor, pooling: Pooling) -> Tensor:
    """One state a text, (B, H): its first token's, or the mean over the tokens of the mask."""
    if pooling == "cls":
        return state_BTH[:, 0]
    weight_BT1 = mask_BT.unsqueeze(2).to(state_BTH)
    return (state_BTH * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1)


def pooled_image(state_BIH: Tensor, pooling: ImagePooling) -> Tensor:
    """One state an image: that of [CLS] or the mean, both (B, H), or all tokens side by side, (B, I * H)."""
    if pooling == "cls":
        return state_BIH[:, 0]
    return state_BIH.mean(dim=1) if pooling == "mean" else state_BIH.flatten(1)


def additive_mask(mask_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores, (B, 1, 1, T): 0 for tokens, the lowest number for what is none."""
    hidden_BT = mask_BT == 0
    added_BT = torch.zeros(mask_BT.shape, dtype=dtype, device=mask_BT.device)
    return added_BT.masked_fill(hidden_BT, torch.finfo(dtype).min)[:, None, None]


def vision_config(config: EncoderConfig) -> BlipVisionConfig:
    """What transformers calls this image encoder."""
    return BlipVisionConfig(
        hidden_size=config.vision_hidden_dim,
        intermediate_size=4 * config.vision_hidden_dim,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.vision_heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        layer_norm_eps=config.vision_layer_norm_eps,
        initializer_range=INITIAL_STD,
    )


def text_config(config: EncoderConfig, *, cross_attention: bool) -> BlipTextConfig:
    """What transformers calls this text encoder; its cross-attention comes with the decoder flag."""
    return BlipTextConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.text_hidden_dim,
        encoder_hidden_size=config.vision_hidden_dim,
        intermediate_size=4 * config.text_hidden_dim,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_heads,
        max_position_embeddings=512,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        layer_norm_eps=config.text_layer_norm_eps,
        initializer_range=INITIAL_STD,
        is_decoder=cross_attention,
        use_cache=False,
        # Only generation reads these; BLIP's defaults lie outside of a small vocabulary.
        bos_token_id=None,
        eos_token_id=None,
        sep_token_id=None,
    )


def freeze_first_layers(encoder: BlipVisionModel | BlipTextModel, count: int) -> None:
    """Stop training the embeddings and the first `count` layers; 0 leaves all of it trainable.

    In the text encoder that includes the cross-attention of those layers, which it owns.

    Raises:
        ValueError: the encoder has fewer layers.
    """
    layers = encoder.encoder.layers if isinstance(encoder, BlipVisionModel) else encoder.encoder.layer
    if count > len(layers):
        raise ValueError(f"cannot freeze the first {count} layers of an encoder that has {len(layers)}")
    if count:
        for part in (encoder.embeddings, getattr(encoder, "ngrams", None), *layers[:count]):
            if part is not None:
                part.requires_grad_(False)


def seeded(build: Callable[[], Module], seed: int) -> Module:
    """Build a module with weights drawn from `seed`, leaving the caller's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
