"""The rankers of the paper's table 2: a DCN-v2 baseline, and the same beside a DashCLIP tower (figure 3).

Shapes: B impressions, F dense features, S sparse features, D width of the pretrained vectors, C similarities.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.artifacts import StrictModel
from ranking.dense_layers import Mlp, mlp
from ranking.embedding_collection import (
    PooledEmbeddings,
    TableSpec,
    frozen_collection,
    trainable_collection,
)
from ranking.towers import DashClipTower, DcnTower, Similarities

Entity = Literal["product", "query", "history"]
Widths = tuple[Annotated[int, Field(ge=1, le=16_384)], ...]
#: Table that each entity reads: the purchase history is a bag of products.
_TABLE_OF: dict[str, str] = {"product": "product", "history": "product", "query": "query"}


class SemanticConfig(StrictModel):
    """What a ranker reads of embeddings: the DashCLIP tower. Cosines are taken of every pair of `entities`.

    Section 4.2 of https://arxiv.org/abs/2504.07110

    >>> SemanticConfig(entities=("product", "product"))
    Traceback (most recent call last):
    ...
    pydantic_core._pydantic_core.ValidationError: ...
    """

    #: Vectors that the ranker reads; each pair also gives a cosine.
    entities: Annotated[tuple[Entity, ...], Field(min_length=1)] = ("product", "query", "history")
    #: "similarity" leaves the tower out: the cosines, and which vectors exist, become dense columns of the
    #: DCN tower. So a lexical score, say, is a feature like any other.
    reads: Literal["vectors", "similarity"] = "vectors"
    #: "random" gives the same tower trainable tables that know nothing: the paper's control.
    initialisation: Literal["pretrained", "random"] = "pretrained"
    #: Beside the mean of the purchases, how many of them are how similar to product and query, in so many
    #: tiers of the cosine (`ranking.towers.HistoryTiers`); 0 leaves the mean alone, as in the paper.
    history_tiers: Annotated[int, Field(ge=0, le=256)] = 0
    #: Layers over vectors and cosines.
    cross_layers: Annotated[int, Field(ge=0, le=16)] = 1
    #: Fully connected layers of this tower.
    widths: Annotated[Widths, Field(min_length=1)] = (128, 64)

    @model_validator(mode="after")
    def _entities_are_distinct(self) -> Self:
        if len(set(self.entities)) != len(self.entities):
            raise ValueError(f"entities must differ from each other, got {self.entities}")
        return self

    @model_validator(mode="after")
    def _tiers_have_a_history(self) -> Self:
        if self.history_tiers == 1:
            raise ValueError("history_tiers must be 0, for none, or at least 2")
        if self.history_tiers and (self.entities[-1] != "history" or len(self.entities) == 1):
            raise ValueError(
                "history_tiers compares purchases with product or query: entities must name one of these "
                f'and end with "history", got {self.entities}'
            )
        return self

    @model_validator(mode="after")
    def _similarity_has_no_tower(self) -> Self:
        if self.reads == "vectors":
            return self
        if len(self.entities) == 1:
            raise ValueError(
                'reads = "similarity" compares entities with each other: name at least two, '
                f"got {self.entities}"
            )
        of_tower = [
            name
            for name in ("history_tiers", "cross_layers", "widths")
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        if of_tower:
            raise ValueError(
                f'reads = "similarity" has no DashCLIP tower, which {" and ".join(of_tower)} would shape; '
                f'leave {"it" if len(of_tower) == 1 else "them"} out, or set reads = "vectors"'
            )
        return self

    def narrowed(self, entities: Sequence[Entity]) -> "SemanticConfig | None":
        """The same for some of the entities; None where nothing is left to read.

        >>> SemanticConfig(reads="similarity").narrowed(["product"]) is None
        True
        >>> SemanticConfig(history_tiers=16).narrowed(["product", "query"]).history_tiers
        0
        """
        if not entities or (self.reads == "similarity" and len(entities) == 1):
            return None
        tiered = entities[-1] == "history" and len(entities) > 1
        changes = {"entities": tuple(entities), "history_tiers": self.history_tiers if tiered else 0}
        return self.model_copy(update=changes)


class RankerConfig(StrictModel):
    """Sizes of the ranker; `semantic` is what tells table 2's variants apart."""

    #: Width of the trainable embedding of each id.
    embedding_dim: Annotated[int, Field(ge=4, le=1024, multiple_of=4)] = 16
    #: Layers of DCN-v2 over all dense features and embeddings.
    cross_layers: Annotated[int, Field(ge=1, le=16)] = 3
    #: Splits each cross matrix into two of this rank; full matrices if left out.
    cross_rank: Annotated[int, Field(ge=1)] | None = None
    #: Fully connected layers beside the cross layers.
    deep_widths: Widths = (256, 128)
    #: Fully connected layers over both towers.
    top_widths: Widths = (64,)
    #: Share of a fully connected layer's outputs that training leaves out.
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    semantic: SemanticConfig | None = None


@dataclass(frozen=True)
class RankerInputs:
    """What the data decide about a ranker's shape.

    Attributes:
        dense_features: F.
        sparse_rows: rows of each sparse feature's table, in the order of the feature set.
        vectors: rows of the pretrained tables [rows, D] under "product" and "query"; empty without them.
        click_rate: CTR of the training window, from which an untrained ranker starts.
    """

    dense_features: int
    sparse_rows: dict[str, int]
    vectors: dict[str, NDArray[np.floating]]
    click_rate: float = 0.5


class DcnRanker(nn.Module):
    """The baseline: dense features and ids only."""

    def __init__(self, *, sparse_tables: PooledEmbeddings, dcn_tower: DcnTower, head: nn.Module) -> None:
        super().__init__()
        self.sparse_tables = sparse_tables
        self.dcn_tower = dcn_tower
        self.head = head

    def forward(self, dense_BF: Tensor, sparse: KeyedJaggedTensor, semantic: KeyedJaggedTensor) -> Tensor:
        """Logits of a click [B]; `semantic` is not read."""
        dcn_BH = self.dcn_tower(dense_BF, [self.sparse_tables.joined(sparse)])
        return self.head(dcn_BH).squeeze(1)


class SimilarityRanker(nn.Module):
    """The baseline with the similarities of pretrained vectors as dense features more."""

    def __init__(
        self,
        *,
        sparse_tables: PooledEmbeddings,
        semantic_tables: PooledEmbeddings,
        dcn_tower: DcnTower,
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.sparse_tables = sparse_tables
        self.semantic_tables = semantic_tables
        self.similarities = Similarities(len(semantic_tables.keys))
        self.dcn_tower = dcn_tower
        self.head = head

    def forward(self, dense_BF: Tensor, sparse: KeyedJaggedTensor, semantic: KeyedJaggedTensor) -> Tensor:
        """Logits of a click [B]."""
        similarity_BC = self.similarities(self.semantic_tables(semantic))
        dense_BK = torch.cat([dense_BF, similarity_BC], dim=1)
        return self.head(self.dcn_tower(dense_BK, [self.sparse_tables.joined(sparse)])).squeeze(1)


class TwoTowerRanker(nn.Module):
    """The DCN tower beside the DashCLIP tower, joined by fully connected layers."""

    def __init__(
        self,
        *,
        sparse_tables: PooledEmbeddings,
        semantic_tables: PooledEmbeddings,
        dcn_tower: DcnTower,
        dashclip_tower: DashClipTower,
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.sparse_tables = sparse_tables
        self.semantic_tables = semantic_tables
        self.dcn_tower = dcn_tower
        self.dashclip_tower = dashclip_tower
        self.head = head

    def forward(self, dense_BF: Tensor, sparse: KeyedJaggedTensor, semantic: KeyedJaggedTensor) -> Tensor:
        """Logits of a click [B]."""
        dcn_BH = self.dcn_tower(dense_BF, [self.sparse_tables.joined(sparse)])
        purchases = None if self.dashclip_tower.history_tiers is None else self.purchases(semantic)
        dashclip_BH = self.dashclip_tower(self.semantic_tables(semantic), purchases)
        return self.head(torch.cat([dcn_BH, dashclip_BH], dim=1)).squeeze(1)

    def purchases(self, semantic: KeyedJaggedTensor) -> tuple[Tensor, Tensor]:
        """Vectors [L, D] of the purchases of all impressions, and how many each impression has [B]."""
        return self.semantic_tables.vectors("history", semantic)

    @property
    def similarities(self) -> Similarities:
        """What makes the cosines."""
        return self.dashclip_tower.similarities


Ranker = DcnRanker | SimilarityRanker | TwoTowerRanker


def build_ranker(
    config: RankerConfig,
    inputs: RankerInputs,
    *,
    seed: int,
    embedding_learning_rate: float = 0.02,
    device: torch.device | None = None,
) -> Ranker:
    """A freshly initialised ranker. The same seed gives the same bits; the global generator is untouched.

    Raises:
        ValueError: the ranker asks for a table that `inputs.vectors` lacks, or the tables' widths
            differ.

    >>> config = RankerConfig(cross_layers=1, deep_widths=(8,), top_widths=())
    >>> inputs = RankerInputs(dense_features=3, sparse_rows={"user_id": 10}, vectors={}, click_rate=0.1)
    >>> ranker = build_ranker(config, inputs, seed=1)
    >>> one_user = KeyedJaggedTensor(["user_id"], torch.tensor([7]), lengths=torch.tensor([1]))
    >>> ranker(torch.zeros(1, 3), one_user, one_user).shape
    torch.Size([1])
    """
    device = device or torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        sparse_tables = PooledEmbeddings(
            trainable_collection(
                [
                    TableSpec(name, rows, config.embedding_dim, (name,))
                    for name, rows in inputs.sparse_rows.items()
                ],
                learning_rate=embedding_learning_rate,
                init_scale=0.01,
                generator=generator,
                device=device,
            ),
            list(inputs.sparse_rows),
        )
        semantic = config.semantic
        similarities = (
            Similarities(len(semantic.entities)).width if semantic and semantic.reads == "similarity" else 0
        )
        dcn_tower = DcnTower(
            dense_features=inputs.dense_features + similarities,
            embedding_widths=[config.embedding_dim] * len(inputs.sparse_rows),
            cross_layers=config.cross_layers,
            cross_rank=config.cross_rank,
            deep_widths=config.deep_widths,
            dropout=config.dropout,
        )
        if semantic is None:
            head = _head(dcn_tower.width, config, inputs.click_rate)
            return DcnRanker(sparse_tables=sparse_tables, dcn_tower=dcn_tower, head=head).to(device)

        semantic_tables, dim = _semantic_tables(
            semantic,
            inputs.vectors,
            learning_rate=embedding_learning_rate,
            generator=generator,
            device=device,
        )
        if semantic.reads == "similarity":
            return SimilarityRanker(
                sparse_tables=sparse_tables,
                semantic_tables=semantic_tables,
                dcn_tower=dcn_tower,
                head=_head(dcn_tower.width, config, inputs.click_rate),
            ).to(device)
        dashclip_tower = DashClipTower(
            entities=len(semantic.entities),
            dim=dim,
            cross_layers=semantic.cross_layers,
            widths=semantic.widths,
            dropout=config.dropout,
            history_tiers=semantic.history_tiers,
        )
        return TwoTowerRanker(
            sparse_tables=sparse_tables,
            semantic_tables=semantic_tables,
            dcn_tower=dcn_tower,
            dashclip_tower=dashclip_tower,
            head=_head(dcn_tower.width + dashclip_tower.width, config, inputs.click_rate),
        ).to(device)


def _head(width: int, config: RankerConfig, click_rate: float) -> nn.Sequential:
    top = mlp(width, config.top_widths, dropout=config.dropout)
    last = nn.Linear(config.top_widths[-1] if config.top_widths else width, 1)
    nn.init.constant_(last.bias, math.log(click_rate / (1 - click_rate)))
    return Mlp(*top, last)


def _semantic_tables(
    semantic: SemanticConfig,
    vectors: dict[str, NDArray[np.floating]],
    *,
    learning_rate: float,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[PooledEmbeddings, int]:
    keys_of = _keys_by_table(semantic.entities)
    missing = sorted(set(keys_of) - set(vectors))
    if missing:
        raise ValueError(
            f"the ranker needs {' and '.join(missing)} embeddings, which were not given; name an "
            f"EmbeddingTable for them, or take what reads them out of semantic.entities {semantic.entities}"
        )
    dims = {name: int(vectors[name].shape[1]) for name in keys_of}
    if len(set(dims.values())) > 1:
        raise ValueError(f"cosines need product and query vectors of one width, got {dims}")
    tables = [
        TableSpec(name, vectors[name].shape[0], dims[name], tuple(keys)) for name, keys in keys_of.items()
    ]
    if semantic.initialisation == "pretrained":
        collection = frozen_collection(tables, vectors, device=device)
    else:
        collection = trainable_collection(
            tables, learning_rate=learning_rate, init_scale=None, generator=generator, device=device
        )
    return PooledEmbeddings(collection, semantic.entities), next(iter(dims.values()))


def _keys_by_table(entities: Sequence[Entity]) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {}
    for entity in entities:
        keys.setdefault(_TABLE_OF[entity], []).append(entity)
    return keys
