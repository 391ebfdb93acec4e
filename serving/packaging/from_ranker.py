"""From a trained ranker on torchrec to a `RequestRanker`: its shape, its weights and its tables, all by key.

For packaging; a worker does not import this module. The columns of every first layer are reordered: those of
the request first, then those of the candidate, each part padded with zeros.

Shapes: K inputs of a layer, H its outputs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torchrec.modules.crossnet import LowRankCrossNet

from ranking.cross_network import CrossNetwork
from ranking.embedding_collection import PooledEmbeddings
from ranking.model import DcnRanker, Ranker, SimilarityRanker, TwoTowerRanker
from ranking.towers import DashClipTower, DcnTower
from serving.scoring.request_ranker import RankerShape, RequestRanker, SemanticShape
from serving.scoring.request_towers import (
    FullCross,
    LowRankCross,
    PlainMlp,
    SemanticTower,
    SplitLinear,
    padded,
)

#: In an order of columns: a column of zeros.
_PADDING = -1
_CHUNK_ROWS = 16_384


def request_ranker_of(
    ranker: Ranker,
    *,
    dense_columns: Sequence[str],
    sparse_columns: Sequence[str],
    request_columns: Iterable[str],
    quantised: bool = False,
    projected: bool = False,
) -> RequestRanker:
    """The same ranker for requests, in evaluation mode; its tables come from `tables_of` and `vectors_of`.

    Args:
        dense_columns: what the ranker's dense inputs are, in order.
        sparse_columns: the ids that it embeds; their order does not matter, tables are found by key.
        request_columns: those of them that all candidates of a request share. Any choice gives the same
            scores.

    Raises:
        ValueError: the columns are not those of the ranker.
    """
    tower = ranker.dcn_tower
    dims = {
        key: config.embedding_dim
        for config in ranker.sparse_tables.collection.embedding_bag_configs()
        for key in config.feature_names
    }
    if set(sparse_columns) != set(dims):
        raise ValueError(
            f"sparse_columns must be those of the ranker, {sorted(dims)}, got {sorted(sparse_columns)}"
        )
    similarities = ranker.similarities.width if isinstance(ranker, SimilarityRanker) else 0
    dense_count = _cross_width(tower) - tower.padding.shape[1] - sum(dims.values()) - similarities
    if len(dense_columns) != dense_count:
        raise ValueError(f"the ranker has {dense_count} dense columns, got {len(dense_columns)}")
    cross = tower.cross
    shape = RankerShape(
        dense_columns=tuple(dense_columns),
        sparse_columns=tuple(sparse_columns),
        request_columns=tuple(sorted(request_columns)),
        table_dims=dims,
        cross_layers=len(cross.V_kernels) if isinstance(cross, LowRankCrossNet) else len(_linears(cross)),
        cross_rank=cross.V_kernels[0].shape[0] if isinstance(cross, LowRankCrossNet) else None,
        deep_widths=tuple(_widths(tower.deep)),
        top_widths=tuple(_widths(ranker.head)[:-1]),
        semantic=None if isinstance(ranker, DcnRanker) else _semantic_shape(ranker),
        quantised=quantised,
        projected=projected,
    )
    module = RequestRanker(shape)
    _copy_weights(ranker, module)
    return module.eval().requires_grad_(False)


@torch.no_grad()
def _copy_weights(ranker: Ranker, module: RequestRanker) -> None:
    source, target = ranker.dcn_tower, module.dcn
    order = _dcn_order(ranker, module.shape)
    _copy_cross(source.cross, target.cross, target.first, order)
    if source.is_parallel:
        first, *rest = _linears(source.deep)
        _copy_split(first, target.first, order, outputs=slice(target.cross.first_width, None))
        _copy_all(rest, _linears(target.deep))
    if isinstance(ranker, TwoTowerRanker):
        assert module.semantic is not None
        _copy_semantic(ranker.dashclip_tower, module.semantic, module.shape.entities)
        if module.history is not None:
            assert ranker.dashclip_tower.tier_layers is not None
            _copy_all(_linears(ranker.dashclip_tower.tier_layers), _linears(module.history.layers))
    # The head reads [cross, deep, DashCLIP]; the cross layers' columns are in another order now.
    (first, *rest), (first_target, *rest_target) = _linears(ranker.head), _linears(module.head)
    width = _cross_width(source)
    _fill(first_target, first, inputs=[*order.columns, *range(width, first.in_features)])
    _copy_all(rest, rest_target)


def tables_of(ranker: Ranker) -> dict[str, NDArray[np.float32]]:
    """The trained table of each sparse column, [rows, dim]."""
    return _tables(ranker.sparse_tables)


def vectors_of(ranker: Ranker) -> dict[str, NDArray[np.float32]]:
    """The vectors that the ranker reads, trained or pretrained, under "product" and "query"; row 0 is zeros.

    A missing vector is an empty bag in training, whatever row 0 of a trained table holds.
    """
    if isinstance(ranker, DcnRanker):
        return {}
    found = {}
    for key, table in _tables(ranker.semantic_tables).items():
        table[0] = 0
        found["query" if key == "query" else "product"] = table
    return found


@torch.no_grad()
def product_projections(module: RequestRanker, vectors_MD: NDArray[np.floating]) -> NDArray[np.float16]:
    """The first layer's products with product vectors, [M, P], which a `projected` ranker looks up.

    At D = 256 they take three times the space of the vectors. A vector of zeros gives zeros.
    """
    tower = module.semantic
    assert tower is not None
    assert tower.project is not None
    projected_MP = np.empty((len(vectors_MD), tower.project.out_features), np.float16)
    for start in range(0, len(vectors_MD), _CHUNK_ROWS):
        chunk_CD = torch.from_numpy(np.array(vectors_MD[start : start + _CHUNK_ROWS], np.float32))
        projected_MP[start : start + _CHUNK_ROWS] = tower.project(tower.scale * chunk_CD).numpy()
    return projected_MP


@dataclass(frozen=True)
class _Order:
    """Old positions of a first layer's columns, of the request and of the candidate; -1 pads."""

    request: list[int]
    candidate: list[int]

    @property
    def columns(self) -> list[int]:
        return self.request + self.candidate


def _order(request: Sequence[int], candidate: Sequence[int]) -> _Order:
    def pad(columns: Sequence[int]) -> list[int]:
        return [*columns, *[_PADDING] * (padded(len(columns)) - len(columns))]

    return _Order(pad(request), pad(candidate))


def _dcn_order(ranker: Ranker, shape: RankerShape) -> _Order:
    """The ranker reads dense columns, similarities, then its tables in the order of their keys."""
    position = {("dense", name): [i] for i, name in enumerate(shape.dense_columns)}
    start = len(shape.dense_columns)
    of_request: list[int] = []
    of_candidate: list[int] = []
    if isinstance(ranker, SimilarityRanker):
        of_request, of_candidate = _similarity_order(shape.entities, start)
        start += ranker.similarities.width
    for key in ranker.sparse_tables.keys:
        position["sparse", key] = list(range(start, start + shape.table_dims[key]))
        start += shape.table_dims[key]

    def columns(dense: Sequence[str], sparse: Sequence[str]) -> list[int]:
        keys = [("dense", name) for name in dense] + [("sparse", name) for name in sparse]
        return [column for key in keys for column in position[key]]

    return _order(
        columns(shape.request_dense, shape.request_sparse) + of_request,
        columns(shape.candidate_dense, shape.candidate_sparse) + of_candidate,
    )


def _semantic_order(entities: Sequence[str], dim: int) -> _Order:
    """The tower reads the vectors, then their similarities."""
    vector = {entity: list(range(i * dim, (i + 1) * dim)) for i, entity in enumerate(entities)}
    of_request, of_candidate = _similarity_order(entities, len(entities) * dim)
    request = [column for entity in entities if entity != "product" for column in vector[entity]]
    return _order(request + of_request, vector.get("product", []) + of_candidate)


def _similarity_order(entities: Sequence[str], first: int) -> tuple[list[int], list[int]]:
    """Old positions of `similarity_columns`: from `first` on lie all cosines, then which vectors exist."""
    pairs = list(combinations(entities, 2))
    of_request = [entity for entity in entities if entity != "product"]
    cosine = {frozenset(pair): first + i for i, pair in enumerate(pairs)}
    exists = {entity: first + len(pairs) + i for i, entity in enumerate(entities)}
    request = [
        *(cosine[frozenset(pair)] for pair in combinations(of_request, 2)),
        *(exists[entity] for entity in of_request),
    ]
    candidate: list[int] = []
    if "product" in entities:
        candidate = [*(cosine[frozenset(("product", entity))] for entity in of_request), exists["product"]]
    return request, candidate


def _copy_semantic(source: DashClipTower, target: SemanticTower, entities: Sequence[str]) -> None:
    cross, fully_connected = source.layers
    order = _semantic_order(entities, round(source.scale**2))
    linears, targets = _linears(fully_connected), _linears(target.layers.mlp)
    if isinstance(target.layers, PlainMlp):
        _copy_split(linears[0], target.first, order, project=target.project)
        _copy_all(linears[1:], targets)
        return
    _copy_cross(cross, target.layers.cross, target.first, order, project=target.project)
    _fill(targets[0], linears[0], inputs=order.columns)
    _copy_all(linears[1:], targets[1:])


def _copy_cross(
    source: nn.Module,
    target: FullCross | LowRankCross,
    first: SplitLinear,
    order: _Order,
    *,
    project: nn.Linear | None = None,
) -> None:
    if isinstance(target, FullCross):
        assert isinstance(source, CrossNetwork)
        layers = _linears(source)
        outputs = slice(0, target.first_width)
        _copy_split(layers[0], first, order, outputs=outputs, reorder_outputs=True, project=project)
        for layer, layer_target in zip(layers[1:], _linears(target), strict=True):
            _fill(layer_target, layer, inputs=order.columns, outputs=order.columns)
        return
    assert isinstance(source, LowRankCrossNet)
    down = [_linear(kernel, None) for kernel in source.V_kernels]
    up = [_linear(kernel, bias) for kernel, bias in zip(source.W_kernels, source.bias, strict=True)]
    _copy_split(down[0], first, order, outputs=slice(0, target.first_width))
    for layer, layer_target in zip(down[1:], _linears(target.down), strict=True):
        _fill(layer_target, layer, inputs=order.columns)
    for layer, layer_target in zip(up, _linears(target.up), strict=True):
        _fill(layer_target, layer, outputs=order.columns)


def _copy_split(
    source: nn.Linear,
    target: SplitLinear,
    order: _Order,
    *,
    outputs: slice = slice(None),
    reorder_outputs: bool = False,
    project: nn.Linear | None = None,
) -> None:
    """Fill rows `outputs` of a split layer; `project` takes the first columns of the candidate's part."""
    rows = order.columns if reorder_outputs else None
    target.request.weight[outputs] = _taken(source.weight, rows, order.request)
    candidate = _taken(source.weight, rows, order.candidate)
    if project is not None:
        project.weight.copy_(candidate[:, : project.in_features])
        candidate = candidate[:, project.in_features :]
    target.candidate.weight[outputs] = candidate
    target.request.bias[outputs] = _bias(source, rows)


def _fill(
    target: nn.Linear, source: nn.Linear, *, inputs: list[int] | None = None, outputs: list[int] | None = None
) -> None:
    """Copy a layer whose inputs or outputs come in another order."""
    target.weight.copy_(_taken(source.weight, outputs, inputs))
    if target.bias is not None:
        target.bias.copy_(_bias(source, outputs))


def _copy_all(sources: Sequence[nn.Linear], targets: Sequence[nn.Linear]) -> None:
    for source, target in zip(sources, targets, strict=True):
        _fill(target, source)


def _bias(source: nn.Linear, outputs: list[int] | None) -> Tensor:
    if source.bias is None:
        return torch.zeros(source.out_features if outputs is None else len(outputs))
    return _taken(source.bias.unsqueeze(1), outputs, None).squeeze(1)


def _taken(weight_HK: Tensor, rows: list[int] | None, columns: list[int] | None) -> Tensor:
    """Rows and columns by old position; -1 takes zeros."""
    taken = functional.pad(weight_HK.detach(), (0, 1, 0, 1))  # position -1 reads the zeros behind the last
    taken = taken[:-1] if rows is None else taken[rows]
    return taken[:, :-1] if columns is None else taken[:, columns]


def _linears(layers: nn.Module) -> list[nn.Linear]:
    return [layer for layer in layers.modules() if isinstance(layer, nn.Linear)]


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
    return layer


def _widths(layers: nn.Module) -> list[int]:
    return [layer.out_features for layer in _linears(layers)]


def _cross_width(tower: DcnTower) -> int:
    """Inputs, and outputs, of the cross layers."""
    return tower.width - (_widths(tower.deep)[-1] if tower.is_parallel else 0)


def _semantic_shape(ranker: SimilarityRanker | TwoTowerRanker) -> SemanticShape:
    tables = ranker.semantic_tables
    of_vectors = {"entities": tables.keys, "dim": tables.collection.embedding_bag_configs()[0].embedding_dim}
    if isinstance(ranker, SimilarityRanker):
        return SemanticShape.model_validate({**of_vectors, "reads": "similarity"})
    tower = ranker.dashclip_tower
    cross, fully_connected = tower.layers
    assert isinstance(cross, CrossNetwork)
    history: dict[str, Any] = {}
    if tower.history_tiers is not None and tower.tier_layers is not None:
        tiers = len(tower.history_tiers.tier_T)
        history = {"history_tiers": tiers, "history_widths": _widths(tower.tier_layers)}
    return SemanticShape.model_validate(
        {
            **of_vectors,
            "cross_layers": len(cross.layers),
            "widths": _widths(fully_connected),
            **history,
        }
    )


def _tables(tables: PooledEmbeddings) -> dict[str, NDArray[np.float32]]:
    """A copy of the table of each key: positions among a collection's outputs cannot be relied upon."""
    bags = tables.collection.embedding_bags
    return {
        key: bags[config.name].weight.detach().cpu().float().numpy().copy()
        for config in tables.collection.embedding_bag_configs()
        for key in config.feature_names
    }
