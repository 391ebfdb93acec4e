"""Towers of the request ranker: first layers in two parts, the request's and the candidate's.

Each part is padded with zeros to a multiple of `WIDTH_MULTIPLE`. A padded column stays zero through cross
layers, whose weights for it are zero, so the towers compute what `ranking.towers` does.

Shapes: R requests, N candidates in all, H purchases, D width of the pretrained vectors, K inputs of a layer.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Odd widths cost a GEMM up to 40 %.
WIDTH_MULTIPLE = 16
#: `functional.cosine_similarity` takes the same.
_NORM_FLOOR = 1e-8


def padded(width: int) -> int:
    """The next multiple of `WIDTH_MULTIPLE`, at least one: no layer has zero inputs."""
    return max(1, -(-width // WIDTH_MULTIPLE)) * WIDTH_MULTIPLE


def mlp(width: int, hidden: Sequence[int]) -> nn.Sequential:
    """`ranking.towers.mlp` without dropout."""
    layers: list[nn.Module] = []
    for inner in hidden:
        layers += [nn.Linear(width, inner), nn.ReLU()]
        width = inner
    return nn.Sequential(*layers)


def similarity_widths(entities: Sequence[str]) -> tuple[int, int]:
    """Columns of `similarity_columns` that are the request's, and the candidate's."""
    of_request = len(entities) - ("product" in entities)
    request = of_request * (of_request - 1) // 2 + of_request
    return request, 1 + of_request if "product" in entities else 0


def semantic_widths(entities: Sequence[str], dim: int) -> tuple[int, int]:
    """Columns of `SemanticTower` that are the request's, and the candidate's; both padded."""
    request, candidate = similarity_widths(entities)
    of_candidate = int("product" in entities)
    of_request = len(entities) - of_candidate
    return padded(of_request * dim + request), padded(of_candidate * dim + candidate)


def similarity_columns(
    vectors_RD: Sequence[Tensor], products_ND: Sequence[Tensor], request_of_N: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """`ranking.towers.Similarities`, columns of the request and of the candidate, each [R, 1] or [N, 1].

    Only the product is a candidate's. The request's: cosines of pairs of its vectors, which of these exist.
    The candidate's: cosines with the request's vectors in their order, whether it exists.

    Args:
        vectors_RD: the request's vectors, in the order of the entities.
        products_ND: one tensor, or none if the product is not among the entities.
    """
    unit_RD = [_unit(vector_RD) for vector_RD in vectors_RD]
    of_request = [(one * other).sum(dim=1, keepdim=True) for one, other in combinations(unit_RD, 2)]
    of_request += [_exists(vector_RD) for vector_RD in vectors_RD]
    of_candidate = []
    for product_ND in products_ND:
        unit_ND = _unit(product_ND)
        of_candidate += [
            (unit_ND * one.index_select(0, request_of_N)).sum(dim=1, keepdim=True) for one in unit_RD
        ]
        of_candidate += [_exists(product_ND)]
    return of_request, of_candidate


class SplitLinear(nn.Module):
    """W [r; c] + b, with W_r r + b computed once per request."""

    def __init__(self, request_width: int, candidate_width: int, out_width: int) -> None:
        super().__init__()
        self.request = nn.Linear(request_width, out_width)
        self.candidate = nn.Linear(candidate_width, out_width, bias=False)

    def forward(self, request_RK: Tensor, candidate_NK: Tensor, request_of_N: Tensor) -> Tensor:
        """[N, out_width]."""
        return self.request(request_RK).index_select(0, request_of_N) + self.candidate(candidate_NK)


def joined(request_RK: Tensor, candidate_NK: Tensor, request_of_N: Tensor) -> Tensor:
    """Inputs of each candidate, its request's first, [N, K]."""
    return torch.cat([request_RK.index_select(0, request_of_N), candidate_NK], dim=1)


class FullCross(nn.Module):
    """The cross layers after the products with W_0, which the split layer has made."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.first_width = width
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers - 1))

    def forward(self, x0_NK: Tensor, first_NK: Tensor) -> Tensor:
        """[N, K]."""
        x_NK = torch.addcmul(x0_NK, x0_NK, first_NK)
        for layer in self.layers:
            x_NK = torch.addcmul(x_NK, x0_NK, layer(x_NK))
        return x_NK


class LowRankCross(nn.Module):
    """The same with W = U V; the split layer has made V_0 x_0, which is all that depends on the parts."""

    def __init__(self, width: int, layers: int, rank: int) -> None:
        super().__init__()
        self.first_width = rank
        self.down = nn.ModuleList(nn.Linear(width, rank, bias=False) for _ in range(layers - 1))
        self.up = nn.ModuleList(nn.Linear(rank, width) for _ in range(layers))

    def forward(self, x0_NK: Tensor, first_NR: Tensor) -> Tensor:
        """[N, K]."""
        x_NK = torch.addcmul(x0_NK, x0_NK, self.up[0](first_NR))
        for down, up in zip(self.down, list(self.up)[1:], strict=True):
            x_NK = torch.addcmul(x_NK, x0_NK, up(down(x_NK)))
        return x_NK


class ParallelTower(nn.Module):
    """Cross layers beside deep layers: `ranking.towers.DcnTower`. Their first products share one GEMM."""

    def __init__(
        self,
        *,
        request_width: int,
        candidate_width: int,
        cross_layers: int,
        cross_rank: int | None,
        deep_widths: Sequence[int],
    ) -> None:
        super().__init__()
        self.request_padding, self.candidate_padding = (
            padded(width) - width for width in (request_width, candidate_width)
        )
        parts = padded(request_width), padded(candidate_width)
        width = sum(parts)
        self.cross: FullCross | LowRankCross = (
            FullCross(width, cross_layers)
            if cross_rank is None
            else LowRankCross(width, cross_layers, cross_rank)
        )
        deep_width = deep_widths[0] if deep_widths else 0
        self.first_widths = [self.cross.first_width, deep_width]
        self.first = SplitLinear(*parts, sum(self.first_widths))
        self.deep = nn.Sequential(nn.ReLU(), *mlp(deep_width, deep_widths[1:]))
        self.width = width + (deep_widths[-1] if deep_widths else 0)

    def forward(self, request_RK: Tensor, candidate_NK: Tensor, request_of_N: Tensor) -> Tensor:
        """[N, width]."""
        request_RK = functional.pad(request_RK, (0, self.request_padding))
        candidate_NK = functional.pad(candidate_NK, (0, self.candidate_padding))
        first_NK = self.first(request_RK, candidate_NK, request_of_N)
        crossed_NK, deep_NK = first_NK.split(self.first_widths, dim=1)
        x0_NK = joined(request_RK, candidate_NK, request_of_N)
        return torch.cat([self.cross(x0_NK, crossed_NK), self.deep(deep_NK)], dim=1)


class CrossedMlp(nn.Module):
    """Cross layers, then fully connected ones."""

    def __init__(self, width: int, cross_layers: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.cross = FullCross(width, cross_layers)
        self.first_width = self.cross.first_width
        self.mlp = mlp(width, widths)

    def forward(self, x0_NK: Tensor, first_NK: Tensor) -> Tensor:
        """[N, last of widths]."""
        return self.mlp(self.cross(x0_NK, first_NK))


class PlainMlp(nn.Module):
    """Fully connected layers of which the split layer is the first."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.first_width = widths[0]
        self.mlp = nn.Sequential(nn.ReLU(), *mlp(widths[0], widths[1:]))

    def forward(self, _x0_NK: Tensor, first_NK: Tensor) -> Tensor:
        """[N, last of widths]."""
        return self.mlp(first_NK)


class SemanticTower(nn.Module):
    """Pretrained vectors, their cosines and which exist: `ranking.towers.DashClipTower`.

    Each part, the request's and the candidate's, is its vectors and then its `similarity_columns`.

    If `projected`, the first layer's products with product vectors are looked up instead of computed: 40 % of
    the arithmetic of a candidate. They are `project` of the scaled vectors.
    """

    def __init__(
        self,
        *,
        entities: Sequence[str],
        dim: int,
        cross_layers: int,
        widths: Sequence[int],
        projected: bool = False,
    ) -> None:
        super().__init__()
        self.parts = semantic_widths(entities, dim)
        self.scale = dim**0.5
        self.layers: CrossedMlp | PlainMlp = (
            CrossedMlp(sum(self.parts), cross_layers, widths) if cross_layers else PlainMlp(widths)
        )
        self.looked_up = dim if projected else 0
        request_width, candidate_width = self.parts
        self.first = SplitLinear(request_width, candidate_width - self.looked_up, self.layers.first_width)
        self.project = nn.Linear(dim, self.layers.first_width, bias=False) if projected else None
        self.width = widths[-1]

    def forward(
        self,
        request_R0: Tensor,
        candidate_N0: Tensor,
        vectors_RD: Sequence[Tensor],
        products_ND: Sequence[Tensor],
        projections_NK: Sequence[Tensor],
        request_of_N: Tensor,
    ) -> Tensor:
        """[N, width].

        Args:
            request_R0, candidate_N0: no columns; they say how many requests and candidates there are.
            vectors_RD: the request's vectors, in the order of the entities.
            products_ND: one tensor, or none if the product is not among the entities.
            projections_NK: of the products, one tensor if `projected`, else none.
        """
        of_request, of_candidate = similarity_columns(vectors_RD, products_ND, request_of_N)
        columns = (
            [request_R0, *(self.scale * vector_RD for vector_RD in vectors_RD), *of_request],
            [candidate_N0, *(self.scale * product_ND for product_ND in products_ND), *of_candidate],
        )
        request_RK, candidate_NK = (
            functional.pad(part_XK, (0, width - part_XK.shape[1]))
            for part_XK, width in zip((torch.cat(part, dim=1) for part in columns), self.parts, strict=True)
        )
        first_NK = self.first(request_RK, candidate_NK[:, self.looked_up :], request_of_N)
        for projection_NK in projections_NK:
            first_NK = first_NK + projection_NK
        return self.layers(joined(request_RK, candidate_NK, request_of_N), first_NK)


class HistoryTower(nn.Module):
    """`ranking.towers.HistoryTiers` and its layers; the query's tiers are computed once per request."""

    def __init__(self, *, entities: Sequence[str], tiers: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.anchors = tuple(entities[:-1])
        self.tier_T: Tensor
        self.register_buffer("tier_T", torch.arange(tiers, dtype=torch.float32), persistent=False)
        self.layers = mlp(len(self.anchors) * (tiers + 1) + 1, widths)

    def forward(
        self,
        of_request_RD: Mapping[str, Tensor],
        of_candidate_ND: Mapping[str, Tensor],
        purchases_RHD: Tensor,
        exists_RH: Tensor,
        request_of_N: Tensor,
    ) -> Tensor:
        """[N, last of widths].

        Args:
            of_request_RD, of_candidate_ND: vectors of the anchors, "query" and "product".
            purchases_RHD: zeros where `exists_RH`, 1 or 0, is 0.
        """
        requests, purchases, dim = purchases_RHD.shape
        unit_RHD = _unit(purchases_RHD.reshape(-1, dim)).view(requests, purchases, dim)
        exists_NH = exists_RH.index_select(0, request_of_N)
        columns = []
        for anchor in self.anchors:
            if anchor in of_request_RD:
                vector_RD = of_request_RD[anchor]
                cosine_RH = torch.bmm(unit_RHD, _unit(vector_RD).unsqueeze(2)).squeeze(2)
                tiers_RW = self._tiers(cosine_RH, exists_RH) * _exists(vector_RD)
                columns.append(tiers_RW.index_select(0, request_of_N))
            else:
                vector_ND = of_candidate_ND[anchor]
                unit_NHD = unit_RHD.index_select(0, request_of_N)
                cosine_NH = torch.bmm(unit_NHD, _unit(vector_ND).unsqueeze(2)).squeeze(2)
                columns.append(self._tiers(cosine_NH, exists_NH) * _exists(vector_ND))
        columns.append(exists_NH.sum(dim=1, keepdim=True).log1p())
        return self.layers(torch.cat(columns, dim=1))

    def _tiers(self, cosine_XH: Tensor, exists_XH: Tensor) -> Tensor:
        """Tiers and largest cosine, [X, T + 1]."""
        place_XH = (cosine_XH + 1) * ((len(self.tier_T) - 1) / 2)
        weight_XHT = (1 - (place_XH.unsqueeze(2) - self.tier_T).abs()).clamp(min=0) * exists_XH.unsqueeze(2)
        # below -2 where there is no purchase, which no cosine is
        largest_X1 = (cosine_XH - 4 * (1 - exists_XH)).amax(dim=1, keepdim=True)
        largest_X1 = torch.where(largest_X1 < -2, torch.zeros_like(largest_X1), largest_X1)
        return torch.cat([weight_XHT.sum(dim=1).log1p(), largest_X1], dim=1)


def _unit(vector_XD: Tensor) -> Tensor:
    return vector_XD / vector_XD.norm(dim=1, keepdim=True).clamp(min=_NORM_FLOOR)


def _exists(vector_XD: Tensor) -> Tensor:
    return (vector_XD != 0).any(dim=1, keepdim=True).to(vector_XD.dtype)
