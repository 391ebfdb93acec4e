"""The trained ranker, written again for requests: R requests that bring N candidates in all.

What all candidates of a request share (user, query, context, purchase history) goes through the first layer
of each tower once per request: W [r; c] = W_r r + W_c c. Tables are inputs, not parameters: they stay files
that all workers map, and a new generation of them needs no new program. No torchrec: this module, exported
or as it is, is what a worker runs.

Inputs of `forward`, in the order of `RankerShape.inputs`:

    table:<column>   [rows, dim]  float16 or float32, one for each sparse column: those of the request first,
                                  then those of the candidates, each in the order of `sparse_columns`
    vectors          [rows, D]    product vectors, float16 or float32; row 0 is zeros. uint8 if `quantised`
    scales           [rows, 2]    float32, if `quantised`: a vector is scales[:, 0] * vectors + scales[:, 1]
    projections      [rows, P]    float16 or float32, if `projected`: `product_projections` of the vectors
    request_dense    [R, F_r]     float32, the columns `request_dense`
    request_sparse   [R, S_r]     int32, rows of the tables of `request_sparse`
    query            [R, D]       float32, the query's vector; zeros if it has none
    history          [R, H]       int64, rows of `vectors`, H at least 1; 0 fills up, at any place
    candidate_dense  [N, F_c]     float32, the columns `candidate_dense`
    candidate_sparse [N, S_c]     int32, rows of the tables of `candidate_sparse`
    product          [N]          int64, rows of `vectors`; 0 if the product has no vector
    request_of       [N]          int64, the request of each candidate, 0 to R - 1

`vectors`, `query`, `history` and `product` exist as far as the ranker reads them. There may be no
column of a kind: the tensor is then [R, 0] or [N, 0]. R and N are at least 1. All tensors are contiguous. A
compiled program checks none of this; `serving.scoring.ranker_scorer.RankerScorer` does, and makes the list.

Shapes: as above; D width of the pretrained vectors, K inputs of a layer, H (last) outputs of a tower.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from features.artifacts import StrictModel
from serving.scoring.request_towers import (
    HistoryTower,
    ParallelTower,
    SemanticTower,
    mlp,
    semantic_widths,
    similarity_columns,
    similarity_widths,
)

Width = Annotated[int, Field(ge=1)]


class RankerShape(StrictModel):
    """Everything about a `RequestRanker` but its weights: what a server needs to call it.

    Attributes:
        dense_columns, sparse_columns: of the feature set, in its order.
        request_columns: those that all candidates of a request share.
        table_dims: width of the table of each sparse column.
        cross_layers, cross_rank, deep_widths: of the DCN tower.
        top_widths: of the layers that join the towers, the last one to the logit excluded.
        semantic: the DashCLIP tower, or what the DCN tower reads of vectors, if there is either.
        quantised: product vectors are 8-bit numbers with a scale and an offset a row.
        projected: the first layer's products with product vectors are a table of their own.
    """

    dense_columns: tuple[str, ...]
    sparse_columns: tuple[str, ...]
    request_columns: tuple[str, ...]
    table_dims: dict[str, Width]
    cross_layers: Width
    cross_rank: Width | None
    deep_widths: tuple[Width, ...]
    top_widths: tuple[Width, ...]
    semantic: "SemanticShape | None"
    quantised: bool = False
    projected: bool = False

    @model_validator(mode="after")
    def _columns_exist(self) -> Self:
        unknown = sorted(set(self.request_columns) - {*self.dense_columns, *self.sparse_columns})
        if unknown:
            raise ValueError(
                f"request_columns must be features of the ranker, but {unknown} are not; it has "
                f"{', '.join((*self.dense_columns, *self.sparse_columns))}"
            )
        if set(self.table_dims) != set(self.sparse_columns):
            raise ValueError(
                f"each sparse column needs a table: columns {sorted(self.sparse_columns)}, "
                f"tables {sorted(self.table_dims)}"
            )
        if self.quantised and not self.reads_products:
            raise ValueError("only product vectors can be quantised, and this ranker reads none")
        if self.projected and "product" not in self.entities:
            raise ValueError("only vectors of candidates can be projected, and this ranker reads none")
        if self.projected and not self.has_tower:
            raise ValueError(
                "only what a DashCLIP tower makes of vectors can be projected, and this ranker reads their "
                "similarities alone"
            )
        return self

    @property
    def request_dense(self) -> tuple[str, ...]:
        """Dense columns of the request."""
        return tuple(name for name in self.dense_columns if name in self.request_columns)

    @property
    def candidate_dense(self) -> tuple[str, ...]:
        """Dense columns of the candidates."""
        return tuple(name for name in self.dense_columns if name not in self.request_columns)

    @property
    def request_sparse(self) -> tuple[str, ...]:
        """Sparse columns of the request."""
        return tuple(name for name in self.sparse_columns if name in self.request_columns)

    @property
    def candidate_sparse(self) -> tuple[str, ...]:
        """Sparse columns of the candidates."""
        return tuple(name for name in self.sparse_columns if name not in self.request_columns)

    @property
    def entities(self) -> tuple[str, ...]:
        """Which pretrained vectors are read."""
        return self.semantic.entities if self.semantic else ()

    @property
    def has_tower(self) -> bool:
        """Whether there is a DashCLIP tower."""
        return self.semantic is not None and self.semantic.reads == "vectors"

    @property
    def similarities(self) -> tuple[int, int]:
        """Similarities that the DCN tower reads: columns of the request and of the candidate."""
        if self.semantic is None or self.has_tower:
            return 0, 0
        return similarity_widths(self.entities)

    @property
    def reads_products(self) -> bool:
        """Whether product vectors are read: for the candidates or for the purchases."""
        return bool({"product", "history"} & set(self.entities))

    @property
    def projection_dim(self) -> int:
        """P: outputs of the DashCLIP tower's first layer."""
        if self.semantic is None or not self.has_tower:
            return 0
        crossed = sum(semantic_widths(self.semantic.entities, self.semantic.dim))
        return crossed if self.semantic.cross_layers else self.semantic.widths[0]

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the inputs that are tables, in order."""
        names = [f"table:{name}" for name in (*self.request_sparse, *self.candidate_sparse)]
        names += ["vectors"] if self.reads_products else []
        names += ["scales"] if self.quantised else []
        names += ["projections"] if self.projected else []
        return tuple(names)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all inputs, in order."""
        read = [name for name in ("query", "history") if name in self.entities]
        product = ["product"] if "product" in self.entities else []
        return (
            *self.tables,
            *("request_dense", "request_sparse", *read),
            *("candidate_dense", "candidate_sparse", *product, "request_of"),
        )


class SemanticShape(StrictModel):
    """What a `RankerShape` reads of vectors: the DashCLIP tower, or similarities for the DCN tower."""

    entities: tuple[Literal["product", "query", "history"], ...]
    dim: Width
    reads: Literal["vectors", "similarity"] = "vectors"
    #: Of the DashCLIP tower; 0 and () without it.
    cross_layers: Annotated[int, Field(ge=0)] = 0
    widths: tuple[Width, ...] = ()
    #: Tiers of `HistoryTower` and its layers; 0 where the ranker reads the mean of the purchases alone.
    history_tiers: Annotated[int, Field(ge=0)] = 0
    history_widths: tuple[Width, ...] = ()

    @model_validator(mode="after")
    def _a_tower_has_widths(self) -> Self:
        if (self.reads == "vectors") != bool(self.widths):
            raise ValueError(
                f'widths are those of the DashCLIP tower, which reads = "{self.reads}" '
                f"{'has' if self.reads == 'vectors' else 'lacks'}; got {self.widths}"
            )
        return self


class RequestRanker(nn.Module):
    """`ranking.model.Ranker` with its columns parted into request and candidates; see the module's inputs."""

    def __init__(self, shape: RankerShape) -> None:
        super().__init__()
        self.shape = shape
        of_request, of_candidate = shape.similarities
        self.dcn = ParallelTower(
            request_width=_width(shape, shape.request_dense, shape.request_sparse) + of_request,
            candidate_width=_width(shape, shape.candidate_dense, shape.candidate_sparse) + of_candidate,
            cross_layers=shape.cross_layers,
            cross_rank=shape.cross_rank,
            deep_widths=shape.deep_widths,
        )
        self.semantic = self.history = None
        width = self.dcn.width
        if shape.semantic and shape.has_tower:
            semantic = shape.semantic
            self.semantic = SemanticTower(
                entities=semantic.entities,
                dim=semantic.dim,
                cross_layers=semantic.cross_layers,
                widths=semantic.widths,
                projected=shape.projected,
            )
            width += semantic.widths[-1]
            if semantic.history_tiers:
                self.history = HistoryTower(
                    entities=semantic.entities, tiers=semantic.history_tiers, widths=semantic.history_widths
                )
                width += semantic.history_widths[-1]
        self.head = nn.Sequential(*mlp(width, shape.top_widths), nn.Linear((width, *shape.top_widths)[-1], 1))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Probability of a click, float32 [N]."""
        return torch.sigmoid(self.logits(*inputs))

    def logits(self, *inputs: Tensor) -> Tensor:
        """Logit of a click, float32 [N]."""
        named = dict(zip(self.shape.inputs, inputs, strict=True))
        request_of_N = named["request_of"]
        request_RK = _columns(named, "request", self.shape.request_sparse)
        candidate_NK = _columns(named, "candidate", self.shape.candidate_sparse)
        empty = request_RK[:, :0], candidate_NK[:, :0]
        exists_RH = purchases_RHD = request_RK[:, :0]
        of_request_RD = {"query": named["query"]} if "query" in named else {}
        if "history" in named:
            exists_RH = (named["history"] != 0).float()
            purchases_RHD = _vectors(named, named["history"])
            of_request_RD["history"] = _mean(purchases_RHD, exists_RH)
        vectors_RD = [of_request_RD[name] for name in self.shape.entities if name != "product"]
        products_ND = [_vectors(named, named["product"])] if "product" in named else []
        if self.shape.semantic is not None and self.semantic is None:
            of_request, of_candidate = similarity_columns(vectors_RD, products_ND, request_of_N)
            request_RK = torch.cat([request_RK, *of_request], dim=1)
            candidate_NK = torch.cat([candidate_NK, *of_candidate], dim=1)
        outputs = [self.dcn(request_RK, candidate_NK, request_of_N)]
        if self.semantic is not None:
            projections_NK = (
                [functional.embedding(named["product"], named["projections"]).float()]
                if "projections" in named
                else []
            )
            outputs.append(self.semantic(*empty, vectors_RD, products_ND, projections_NK, request_of_N))
            if self.history is not None:
                of_candidate_ND = dict(zip(("product",), products_ND, strict=False))
                outputs.append(
                    self.history(of_request_RD, of_candidate_ND, purchases_RHD, exists_RH, request_of_N)
                )
        return self.head(torch.cat(outputs, dim=1)).squeeze(1)


def _width(shape: RankerShape, dense: Sequence[str], sparse: Sequence[str]) -> int:
    return len(dense) + sum(shape.table_dims[name] for name in sparse)


def _columns(named: Mapping[str, Tensor], part: str, sparse: Sequence[str]) -> Tensor:
    """Dense columns, then the embeddings of the ids."""
    rows_XS = named[f"{part}_sparse"]
    embeddings = [
        functional.embedding(rows_XS[:, position], named[f"table:{name}"]).float()
        for position, name in enumerate(sparse)
    ]
    return torch.cat([named[f"{part}_dense"], *embeddings], dim=1)


def _mean(purchases_RHD: Tensor, exists_RH: Tensor) -> Tensor:
    """The mean of the purchases that exist, [R, D]; zeros where there are none."""
    weight_RH = exists_RH / exists_RH.sum(dim=1, keepdim=True).clamp(min=1)
    # A product instead of a sum over H, for which compilers read the vectors down their columns.
    return torch.bmm(weight_RH.unsqueeze(1), purchases_RHD).squeeze(1)


def _vectors(named: Mapping[str, Tensor], rows: Tensor) -> Tensor:
    """Product vectors in float32, the shape of `rows` and D."""
    vectors = functional.embedding(rows, named["vectors"]).float()
    if "scales" not in named:
        return vectors
    scales = functional.embedding(rows, named["scales"])
    return vectors * scales[..., :1] + scales[..., 1:]
