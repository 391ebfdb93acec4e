"""Completion: what the image of a product says and its title leaves out, added to the product's vector.

Cross-attention and projection can do that in principle. From scratch they do not learn it from a few thousand
products, though the image encoder reads brands, flavours and badges (experiments/LOG.md). So after stage 2,
with all encoders locked, a small network learns from every title: words are left out, and vector of the short
title and image together are to give the vector of the whole title. No grades are needed.

What the network sees of an image are the title tokens that it predicts, as in the image warm-up: a
probability for each token of the vocabulary, of which the square root is taken (Hellinger's geometry) and the
leading principal components. Unlike image features, they are sharp: a badge either says "organic" or not.

Shapes: B products, D width of product vectors, E of image features, V vocabulary, K components.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

#: Principal components of foretold tokens.
COMPONENTS = 256
HIDDEN = 512
DROPOUT = 0.3


class Completion(nn.Module):
    """Adds to product vectors what their images predict; untrained it changes none that has a title."""

    def __init__(self, dim: int, vocab_size: int, *, image_dim: int) -> None:
        super().__init__()
        self.token_head = nn.Linear(image_dim, vocab_size)
        #: Principal axes of the roots of token probabilities; set, not trained by gradients.
        self.components = nn.Linear(vocab_size, COMPONENTS).requires_grad_(False)
        #: For products with a title, and for those that have nothing but an image.
        self.beside_title = _network(dim + COMPONENTS, dim)
        self.alone = _network(COMPONENTS, dim)
        self.forget_titles()

    @torch.no_grad()
    def forget_titles(self) -> None:
        """Let it add nothing to products that have a title."""
        for parameter in self.beside_title[-1].parameters():
            parameter.zero_()

    def token_logits(self, image_BE: Tensor) -> Tensor:
        """Logits of the tokens that images predict, (B, V), from their features (unit vectors)."""
        logits_BV: Tensor = self.token_head(image_BE * image_BE.shape[1] ** 0.5)
        return logits_BV

    def roots(self, image_BE: Tensor) -> Tensor:
        """Square roots of the probabilities of the tokens that images predict, (B, V)."""
        return self.token_logits(image_BE).softmax(dim=1).sqrt()

    def foretold(self, image_BE: Tensor) -> Tensor:
        """Their principal components, (B, K)."""
        components_BK: Tensor = self.components(self.roots(image_BE))
        return components_BK

    def added(self, product_BD: Tensor, foretold_BK: Tensor) -> Tensor:
        """Completed unit vectors, (B, D), from components that exist already; zeros stand for no title."""
        beside_BD = self.beside_title(torch.cat([product_BD, foretold_BK], dim=1))
        titled_B1 = product_BD.any(dim=1, keepdim=True)
        return normalize(torch.where(titled_B1, product_BD + beside_BD, self.alone(foretold_BK)), dim=-1)

    def forward(self, product_BD: Tensor, image_BE: Tensor) -> Tensor:
        """Completed unit vectors, (B, D), from unit vectors of products and of their images."""
        return self.added(product_BD, self.foretold(image_BE))


def _network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, outputs)
    )
