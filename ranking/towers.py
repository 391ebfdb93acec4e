"""The two towers of DashCLIP's ranker (paper section 4.2, figure 3).

Shapes: B impressions, F dense features, D embedding width, N input width of a tower, H its output width.
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ranking.cross_network import cross_network
from ranking.dense_layers import autocast_dtype, join_columns, mlp

#: GEMM widths are padded to this multiple: a width of 429 runs at 58 % of the speed of 432 on a CPU.
_WIDTH_MULTIPLE = 16
#: Fully connected layers over the history tiers.
HISTORY_WIDTHS = (64, 32)


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
        return join_columns([dense_BF, *embeddings, padding_BP], autocast_dtype(dense_BF))

    def forward(self, dense_BF: Tensor, embeddings: list[Tensor]) -> Tensor:
        """[B, H]."""
        return self.layers(self.inputs(dense_BF, embeddings))

    def layers(self, x_BN: Tensor) -> Tensor:
        """From `inputs` to [B, H]."""
        branches = [self.cross(x_BN)] + ([self.deep(x_BN)] if self.is_parallel else [])
        return torch.cat(branches, dim=1)


class HistoryTiers(nn.Module):
    """The purchases as the candidate and the query see them: how many are how similar (SimTier).

    For each anchor (candidate, query) the cosines with the purchases are counted in tiers, as log(1 + count),
    beside the largest cosine. A mean of purchases cannot tell "bought this very thing once" from "bought
    things that are all a little like it". Tier centres go from -1 to 1 in equal steps and a purchase counts
    in the two that it lies between, by its distance: unlike with hard borders, vectors rounded to 16 bits
    give nearly the same counts.

    "Enhancing Taobao Display Advertising with Multimodal Representations", https://arxiv.org/abs/2407.19467

    Shapes: A anchors, L purchases in all bags, T tiers.

    >>> tiers = HistoryTiers(3)  # around the cosines -1, 0 and 1
    >>> candidate_BD, purchases_LD = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.6, 0.8]])
    >>> read_BW = tiers([candidate_BD], purchases_LD, torch.tensor([2]))
    >>> [round(value, 2) for value in read_BW.expm1()[0, :3].tolist()]
    [0.0, 0.4, 1.6]
    """

    def __init__(self, tiers: int) -> None:
        super().__init__()
        self.tier_T: Tensor
        self.register_buffer("tier_T", torch.arange(tiers, dtype=torch.float32), persistent=False)

    def width(self, anchors: int) -> int:
        """Columns of `forward`."""
        return anchors * (len(self.tier_T) + 1) + 1

    def forward(self, anchors_BD: Sequence[Tensor], purchase_LD: Tensor, length_B: Tensor) -> Tensor:
        """[B, A (T + 1) + 1]: tiers and largest cosine of each anchor, then log(1 + purchases).

        Args:
            anchors_BD: vectors of candidate or query; zeros where there is none, whose columns are 0.
            purchase_LD: vectors of all purchases, impression after impression.
            length_B: how many of them belong to each impression.
        """
        rows, tiers = len(length_B), len(self.tier_T)
        of_L = torch.repeat_interleave(
            torch.arange(rows, device=length_B.device),
            length_B,
            output_size=len(purchase_LD),  # else it asks the device for their sum
        )
        # outside autocast: bfloat16 would round cosines to 8 bits
        with torch.autocast(purchase_LD.device.type, enabled=False):
            unit_LD = functional.normalize(purchase_LD.float(), dim=1)
            columns = []
            for anchor_BD in anchors_BD:
                unit_BD = functional.normalize(anchor_BD.float(), dim=1)
                exists_B = (unit_BD != 0).any(dim=1)
                cosine_L = (unit_LD * unit_BD[of_L]).sum(dim=1)
                place_L = (cosine_L + 1) * ((tiers - 1) / 2)
                weight_LT = (1 - (place_L.unsqueeze(1) - self.tier_T).abs()).clamp(min=0)
                count_BT = weight_LT.new_zeros(rows, tiers).index_add_(0, of_L, weight_LT)
                largest_B = cosine_L.new_full((rows,), -1.0).scatter_reduce(0, of_L, cosine_L, "amax")
                largest_B = torch.where(length_B > 0, largest_B, 0)
                of_anchor_BW = torch.cat([count_BT.log1p(), largest_B.unsqueeze(1)], dim=1)
                columns.append(of_anchor_BW * exists_B.unsqueeze(1))
            return torch.cat([*columns, length_B.float().log1p().unsqueeze(1)], dim=1)


class Similarities(nn.Module):
    """Cosines of all pairs of K entities, and which exist. A missing vector is zeros: its cosines are 0.

    Shapes: K entities, C = K (K - 1) / 2 + K columns.

    >>> product_BD, query_BD = torch.tensor([[0.6, 0.8], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    >>> [[round(value, 2) for value in row] for row in Similarities(2)([product_BD, query_BD]).tolist()]
    [[0.6, 1.0, 1.0], [0.0, 1.0, 0.0]]
    """

    def __init__(self, entities: int) -> None:
        super().__init__()
        self.pairs = tuple(combinations(range(entities), 2))
        self.width = len(self.pairs) + entities

    def forward(self, embeddings: list[Tensor]) -> Tensor:
        """[B, C]: cosines in the order of `pairs`, then indicators in that of the entities."""
        cosines = [functional.cosine_similarity(embeddings[i], embeddings[j], dim=1) for i, j in self.pairs]
        exists = [(embedding_BD != 0).any(dim=1).to(embedding_BD.dtype) for embedding_BD in embeddings]
        return torch.stack([*cosines, *exists], dim=1)


class DashClipTower(nn.Module):
    """Embeddings of product, query and purchase history, their cosines, and which of them exist.

    The tower crosses the embeddings with each other before they meet the other features, which the paper
    found better than adding them to the DCN input. A missing vector is zeros: its cosines are 0 and its
    indicator is 0. With `history_tiers` it also reads the purchases one by one, as `HistoryTiers`.

    Section 4.2 of https://arxiv.org/abs/2504.07110

    >>> tower = DashClipTower(entities=2, dim=2, cross_layers=1, widths=[8], dropout=0.0)
    >>> product_BD, missing_BD = torch.tensor([[0.6, 0.8]]), torch.zeros(1, 2)
    >>> tower.inputs([product_BD, missing_BD])[0, 4:].tolist()  # cosine, product exists, query exists
    [0.0, 1.0, 0.0]
    >>> tower([product_BD, missing_BD]).shape
    torch.Size([1, 8])
    """

    def __init__(
        self,
        *,
        entities: int,
        dim: int,
        cross_layers: int,
        widths: Sequence[int],
        dropout: float,
        history_tiers: int = 0,
    ) -> None:
        super().__init__()
        self.similarities = Similarities(entities)
        self.scale = dim**0.5  # unit vectors have entries of about 1 / sqrt(D); dense features have 1
        self.history_tiers = HistoryTiers(history_tiers) if history_tiers else None
        width = entities * dim + self.similarities.width
        self.layers = nn.Sequential(
            cross_network(width, cross_layers, rank=None), mlp(width, widths, dropout=dropout)
        )
        self.width = widths[-1]
        self.split = [width]
        self.tier_layers = None
        if self.history_tiers is not None:
            self.split.append(self.history_tiers.width(entities - 1))
            self.tier_layers = mlp(self.split[-1], HISTORY_WIDTHS, dropout=dropout)
            self.width += HISTORY_WIDTHS[-1]

    def forward(self, embeddings: list[Tensor], purchases: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """[B, H]."""
        return self.hidden(self.inputs(embeddings, purchases))

    def hidden(self, x_BN: Tensor) -> Tensor:
        """From `inputs` to [B, H]; history tiers have fully connected layers of their own."""
        if self.tier_layers is None:
            return self.layers(x_BN)
        crossed_BK, tiers_BW = x_BN.split(self.split, dim=1)
        return torch.cat([self.layers(crossed_BK), self.tier_layers(tiers_BW)], dim=1)

    def inputs(self, embeddings: list[Tensor], purchases: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """What the layers read [B, N]: scaled embeddings, cosines, which embeddings exist, history tiers.

        Args:
            embeddings: each [B, D]; with history tiers the last is that of the history.
            purchases: with history tiers, what `HistoryTiers` takes: vectors [L, D] and lengths [B].
        """
        parts = [*(self.scale * embedding_BD for embedding_BD in embeddings), self.similarities(embeddings)]
        if self.history_tiers is not None:
            assert purchases is not None
            parts.append(self.history_tiers(embeddings[:-1], *purchases))
        return torch.cat(parts, dim=1)
