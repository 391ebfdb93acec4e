"""The two towers of DashCLIP's ranker (paper section 4.2, figure 3).

Shapes: B impressions, F dense features, D embedding width, N input width of a tower, H its output width.
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ranking.cross_network import cross_network

#: GEMM widths are padded to this multiple: a width of 429 runs at 58 % of the speed of 432 on a CPU.
_WIDTH_MULTIPLE = 16


def mlp(width: int, hidden: Sequence[int], *, dropout: float) -> nn.Sequential:
    """Linear, ReLU (and dropout) for each hidden width; the identity for none."""
    layers: list[nn.Module] = []
    for inner in hidden:
        layers += [nn.Linear(width, inner), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
        width = inner
    return nn.Sequential(*layers)


class DcnTower(nn.Module):
    """Dense features and id embeddings through cross layers beside deep layers (DCN-v2, parallel).

    Wang et al. 2021, https://arxiv.org/abs/2008.13535

    >>> tower = DcnTower(
    ...     dense_features=3,
    ...     embedding_widths=[4],
    ...     cross_layers=2,
    ...     cross_rank=None,
    ...     deep_widths=[8],
    ...     dropout=0.0,
    ... )
    >>> tower(torch.zeros(5, 3), [torch.zeros(5, 4)]).shape  # 3 + 4, padded to 16, and the deep layer's 8
    torch.Size([5, 24])
    """

    def __init__(
        self,
        *,
        dense_features: int,
        embedding_widths: Sequence[int],
        cross_layers: int,
        cross_rank: int | None,
        deep_widths: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        used = dense_features + sum(embedding_widths)
        width = -(-used // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
        self.padding: Tensor
        self.register_buffer("padding", torch.zeros(1, width - used), persistent=False)
        self.cross = cross_network(width, cross_layers, rank=cross_rank)
        self.deep = mlp(width, deep_widths, dropout=dropout)
        self.width = width + (deep_widths[-1] if deep_widths else 0)
        self.is_parallel = bool(deep_widths)

    def inputs(self, dense_BF: Tensor, embeddings: list[Tensor]) -> Tensor:
        """What the layers read [B, N]: dense features, id embeddings, padding."""
        padding_BP = self.padding.expand(dense_BF.shape[0], -1)
        return torch.cat([dense_BF, *embeddings, padding_BP], dim=1)

    def forward(self, dense_BF: Tensor, embeddings: list[Tensor]) -> Tensor:
        """[B, H]."""
        return self.layers(self.inputs(dense_BF, embeddings))

    def layers(self, x_BN: Tensor) -> Tensor:
        """From `inputs` to [B, H]."""
        branches = [self.cross(x_BN)] + ([self.deep(x_BN)] if self.is_parallel else [])
        return torch.cat(branches, dim=1)


class DashClipTower(nn.Module):
    """Embeddings of product, query and purchase history, their cosines, and which of them exist.

    The tower crosses the embeddings with each other before they meet the other features, which the paper
    found better than adding them to the DCN input. A missing vector is zeros: its cosines are 0 and its
    indicator is 0.

    Section 4.2 of https://arxiv.org/abs/2504.07110

    >>> tower = DashClipTower(entities=2, dim=2, cross_layers=1, widths=[8], dropout=0.0)
    >>> product_BD, missing_BD = torch.tensor([[0.6, 0.8]]), torch.zeros(1, 2)
    >>> tower.inputs([product_BD, missing_BD])[0, 4:].tolist()  # cosine, product exists, query exists
    [0.0, 1.0, 0.0]
    >>> tower([product_BD, missing_BD]).shape
    torch.Size([1, 8])
    """

    def __init__(
        self, *, entities: int, dim: int, cross_layers: int, widths: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        self.pairs = tuple(combinations(range(entities), 2))
        self.scale = dim**0.5  # unit vectors have entries of about 1 / sqrt(D); dense features have 1
        width = entities * (dim + 1) + len(self.pairs)
        self.layers = nn.Sequential(
            cross_network(width, cross_layers, rank=None), mlp(width, widths, dropout=dropout)
        )
        self.width = widths[-1]

    def forward(self, embeddings: list[Tensor]) -> Tensor:
        """[B, H]."""
        return self.layers(self.inputs(embeddings))

    def inputs(self, embeddings: list[Tensor]) -> Tensor:
        """What the layers read [B, N]: scaled embeddings, then cosines, then which embeddings exist."""
        cosines = [functional.cosine_similarity(embeddings[i], embeddings[j], dim=1) for i, j in self.pairs]
        exists = [(embedding_BD != 0).any(dim=1).to(embedding_BD.dtype) for embedding_BD in embeddings]
        scalars_BC = torch.stack([*cosines, *exists], dim=1)
        return torch.cat([*(self.scale * embedding_BD for embedding_BD in embeddings), scalars_BC], dim=1)
