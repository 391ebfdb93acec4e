"""ProductEncoder and QueryEncoder of DashCLIP (paper section 3.1, figure 1) on transformers' BLIP modules.

The product encoder is BLIP's: an image encoder, a text encoder, and the image-grounded text encoder, which is
the text encoder with its cross-attention to the image switched on. The query encoder is a text transformer of
its own. transformers carries the layers; projections, heads and forward passes are ours.

Shapes: B products or queries, T text tokens, I image tokens, H hidden width, D embedding width.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from embeddings.catalog import ProductBatch
from embeddings.encoder_config import EncoderConfig, Pooling

Module = TypeVar("Module", bound=nn.Module)

#: transformers' default for BLIP's image encoder is 1e-10: from scratch all images would look the same.
INITIAL_STD = 0.02

#: Weight of the image beside the title where a product projection begins (`start_product_proj`).
IMAGE_SHARE = 0.3


class ProductEncoder(nn.Module):
    """Image, title, and both together, each as one vector of the shared space.

    `forward` gives the product embedding: the projected state of [ENC] in the image-grounded text encoder, or
    the mean state of its tokens (`EncoderConfig.pooling`).
    """

    def __init__(self, config: EncoderConfig, *, enc_id: int) -> None:
        super().__init__()
        self.enc_id = enc_id
        self.pooling = config.pooling
        self.vision = BlipVisionModel(vision_config(config))
        self.text = BlipTextModel(text_config(config, cross_attention=True), add_pooling_layer=False)
        self.vision_proj = nn.Linear(config.vision_hidden_dim, config.embedding_dim)
        self.text_proj = nn.Linear(config.text_hidden_dim, config.embedding_dim)
        image_dim = config.vision_hidden_dim if config.late_fusion else 0
        self.late_fusion = config.late_fusion
        self.product_proj = nn.Linear(config.text_hidden_dim + image_dim, config.embedding_dim)
        #: Logits of (no match, match).
        self.itm_head = nn.Linear(config.text_hidden_dim, 2)

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
        return normalize(self.vision_proj(self._pooled(image_BIH)), dim=-1)

    def text_features(self, text_BTH: Tensor, mask_BT: Tensor) -> Tensor:
        """Unit vectors of titles, (B, D)."""
        return normalize(self.text_proj(self._pooled(text_BTH, mask_BT)), dim=-1)

    def match_logits(self, ids_BT: Tensor, mask_BT: Tensor, image_BIH: Tensor) -> Tensor:
        """Logits of "this title is not, is of this image", (B, 2)."""
        return self.itm_head(self.grounded_tokens(ids_BT, mask_BT, image_BIH)[:, 0])

    def forward(self, batch: ProductBatch) -> Tensor:
        """Unit vectors of products, (B, D); zeros for a product with neither image nor title."""
        with_image = batch.has_image_B.nonzero().squeeze(1)
        return self.embed(batch, self.image_tokens(batch.pixels_BCHW[with_image]), with_image)

    def embed(self, batch: ProductBatch, image_GIH: Tensor, with_image_G: Tensor) -> Tensor:
        """Product embeddings from image tokens that exist already.

        Args:
            batch: titles of B products; its pixels are not read.
            image_GIH: image tokens of the G products that have an image.
            with_image_G: their positions in the batch, ascending.
        """
        known_B1 = (batch.has_image_B | batch.has_title_B).unsqueeze(1)
        return normalize(self._project(batch, image_GIH, with_image_G), dim=-1) * known_B1

    def projected(self, batch: ProductBatch) -> Tensor:
        """Product embeddings before they are made unit vectors, (B, D)."""
        with_image = batch.has_image_B.nonzero().squeeze(1)
        return self._project(batch, self.image_tokens(batch.pixels_BCHW[with_image]), with_image)

    def _project(self, batch: ProductBatch, image_GIH: Tensor, with_image_G: Tensor) -> Tensor:
        """A product without an image goes through the same layers without cross-attention.

        One without a title is [ENC] alone that looks at the image.
        """
        dtype, rows = self.product_proj.weight.dtype, len(batch.ids_BT)
        state_BH = batch.ids_BT.new_zeros((rows, self.text_proj.in_features), dtype=dtype)
        if len(with_image_G):
            mask_GT = batch.mask_BT[with_image_G]
            grounded_GTH = self.grounded_tokens(batch.ids_BT[with_image_G], mask_GT, image_GIH)
            state_BH = state_BH.index_copy(0, with_image_G, self._pooled(grounded_GTH, mask_GT).to(dtype))
        text_only = (batch.has_title_B & ~batch.has_image_B).nonzero().squeeze(1)
        if len(text_only):
            mask_RT = batch.mask_BT[text_only]
            text_RTH = self.text_tokens(self._with_enc(batch.ids_BT[text_only]), mask_RT)
            state_BH = state_BH.index_copy(0, text_only, self._pooled(text_RTH, mask_RT).to(dtype))
        if self.late_fusion:
            image_BH = state_BH.new_zeros((rows, self.vision_proj.in_features))
            if len(with_image_G):
                image_BH = image_BH.index_copy(0, with_image_G, self._pooled(image_GIH).to(dtype))
            state_BH = torch.cat([state_BH, image_BH], dim=1)
        return self.product_proj(state_BH)

    @torch.no_grad()
    def start_product_proj(self) -> None:
        """Let the product projection begin where titles, and with late fusion images, are: not at chance."""
        text, image = self.text_proj, self.vision_proj
        if self.late_fusion:
            both_DH = torch.cat([text.weight, IMAGE_SHARE * image.weight], dim=1)
            self.product_proj.weight.copy_(both_DH)
            self.product_proj.bias.copy_(text.bias + IMAGE_SHARE * image.bias)
        else:
            self.product_proj.load_state_dict(text.state_dict())

    def _pooled(self, state_BTH: Tensor, mask_BT: Tensor | None = None) -> Tensor:
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
        self.text = BlipTextModel(text_config(config, cross_attention=False), add_pooling_layer=False)
        self.query_proj = nn.Linear(config.text_hidden_dim, config.embedding_dim)

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


def pooled(state_BTH: Tensor, mask_BT: Tensor | None, pooling: Pooling) -> Tensor:
    """One state a row, (B, H): its first token's, or the mean over the tokens of the mask, or over all."""
    if pooling == "cls":
        return state_BTH[:, 0]
    if mask_BT is None:
        return state_BTH.mean(dim=1)
    weight_BT1 = mask_BT.unsqueeze(2).to(state_BTH)
    return (state_BTH * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1)


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
        for part in (encoder.embeddings, *layers[:count]):
            part.requires_grad_(False)


def seeded(build: Callable[[], Module], seed: int) -> Module:
    """Build a module with weights drawn from `seed`, leaving the caller's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
