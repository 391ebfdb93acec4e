"""The query side of a DashCLIP encoder in plain torch: what a server runs for queries that have no vector.

The layers of `embeddings.encoders.modules.QueryEncoder` (BERT's, as BLIP has them) without transformers, and
without dropout: for inference only. `embeddings.encoders.query_export` fills it and compares the two.

Shapes: B queries, T tokens, H hidden width, A attention heads, D embedding width.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from embeddings.encoders.config import Pooling, Prefix
from embeddings.encoders.ngrams import CharacterNgrams
from features.artifacts import StrictModel

Positive = Annotated[int, Field(ge=1)]

CONFIG, TOKENIZER, MODEL = "config.json", "tokenizer.json", "model.safetensors"


class QueryNetworkConfig(StrictModel):
    """Sizes of the network, and whose vectors it makes."""

    format: Literal[1] = 1
    encoder_id: str
    vocab_size: Positive
    hidden_dim: Positive
    layers: Positive
    heads: Positive
    embedding_dim: Positive
    max_tokens: Annotated[int, Field(ge=3, le=512)]
    #: Comes before each query.
    prefix: Prefix = ""
    pooling: Pooling
    layer_norm_eps: float
    #: Rows and width of the table of character n-grams; 0 rows if the encoder has none.
    ngram_buckets: Annotated[int, Field(ge=0)] = 0
    ngram_dim: Positive = 128


class QueryLayer(nn.Module):
    """Self-attention and feed-forward, each with a residual and normalised after it."""

    def __init__(self, config: QueryNetworkConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.heads = config.heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, state_BTH: Tensor, mask_B11T: Tensor) -> Tensor:
        """[B, T, H]; tokens outside of the mask are not attended to."""
        batch, tokens, width = state_BTH.shape
        parts = self.query_key_value(state_BTH).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask_B11T)
        attended_BTH = self.attended(attended.transpose(1, 2).reshape(batch, tokens, width))
        state_BTH = self.attention_norm(attended_BTH + state_BTH)
        return self.norm(self.narrow(functional.gelu(self.wide(state_BTH))) + state_BTH)


class QueryNetwork(nn.Module):
    """Token ids to unit vectors."""

    def __init__(self, config: QueryNetworkConfig) -> None:
        super().__init__()
        self.takes_mean = config.pooling == "mean"
        self.words = nn.Embedding(config.vocab_size, config.hidden_dim)
        self.positions = nn.Embedding(config.max_tokens, config.hidden_dim)
        self.norm = nn.LayerNorm(config.hidden_dim, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(QueryLayer(config) for _ in range(config.layers))
        self.ngrams, state_dim = None, config.hidden_dim
        if config.ngram_buckets:
            self.ngrams = CharacterNgrams(config.vocab_size, config.ngram_buckets, config.ngram_dim)
            state_dim += config.ngram_dim
        self.projection = nn.Linear(state_dim, config.embedding_dim)

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Unit vectors, float32 (B, D); `mask_BT` is 1 at tokens and 0 at padding."""
        state_BTH = self.norm(self.words(ids_BT) + self.positions.weight[: ids_BT.shape[1]])
        mask_B11T = mask_BT.bool()[:, None, None, :]
        for layer in self.layers:
            state_BTH = layer(state_BTH, mask_B11T)
        state_BH = self._pooled(state_BTH, mask_BT)
        if self.ngrams is not None:
            state_BH = torch.cat([state_BH, self.ngrams(ids_BT, mask_BT)], dim=1)
        return functional.normalize(self.projection(state_BH), dim=-1)

    def _pooled(self, state_BTH: Tensor, mask_BT: Tensor) -> Tensor:
        if not self.takes_mean:
            return state_BTH[:, 0]
        weight_BT1 = mask_BT.unsqueeze(2).to(state_BTH)
        return (state_BTH * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1)
