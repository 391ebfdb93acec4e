"""What the towers of a ranker read of some rows, and which of its columns belong to which feature.

Permutation, ablation and integrated gradients all act here: behind the embedding lookups, in front of the
first layer. An embedding is its vector, its indicator, and whatever cosines are made of it.

Shapes: B rows, N input columns of the DCN tower, M of the DashCLIP tower, K entities of width D, C columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from experiments.importance.model_features import Feature
from experiments.importance.split_rows import Rows, SplitRows
from features.batches.pretrained_rows import SemanticRows
from ranking.model import Ranker, TwoTowerRanker


@dataclass(frozen=True)
class TowerInputs:
    """Inputs of both towers for the same rows; the DashCLIP side is None in a ranker without that tower.

    Attributes:
        dcn_BN: dense features, pooled id embeddings, padding.
        dashclip_BM: scaled embeddings, cosines, indicators.
        entities: the embeddings as looked up, K of [B, D].
    """

    dcn_BN: Tensor
    dashclip_BM: Tensor | None
    entities: tuple[Tensor, ...]

    def rows(self, start: int, end: int) -> "TowerInputs":
        """A part of the rows, without a copy."""
        return TowerInputs(
            self.dcn_BN[start:end],
            None if self.dashclip_BM is None else self.dashclip_BM[start:end],
            tuple(entity_BD[start:end] for entity_BD in self.entities),
        )


@dataclass(frozen=True)
class FeatureColumns:
    """Columns that a feature feeds.

    Attributes:
        dcn_C: columns of the DCN tower's input.
        entities: entities that are exchanged.
        own_C: their columns of the DashCLIP tower's input: vectors and indicators.
        moved: cosines that move on their own, without their embeddings.
        derived: cosines that are made anew, since an embedding of theirs has changed.
        dashclip_C: own_C, then the columns of `moved`, then those of `derived`.
    """

    dcn_C: Tensor
    entities: tuple[int, ...]
    own_C: Tensor
    moved: tuple[int, ...]
    derived: tuple[int, ...]
    dashclip_C: Tensor


class InputLayout:
    """Where the features of one ranker lie, and how its towers' inputs are looked up."""

    def __init__(self, ranker: Ranker, *, dense_features: int, semantic: SemanticRows | None) -> None:
        self.ranker = ranker
        self.dense_features = dense_features
        self.semantic = semantic if isinstance(ranker, TwoTowerRanker) else None
        widths = {
            key: table.embedding_dim
            for table in ranker.sparse_tables.collection.embedding_bag_configs()
            for key in table.feature_names
        }
        self.sparse_start = [dense_features]
        for key in ranker.sparse_tables.keys:
            self.sparse_start.append(self.sparse_start[-1] + widths[key])
        self.pairs: tuple[tuple[int, int], ...] = ()
        self.dim = self.entities = 0
        if isinstance(ranker, TwoTowerRanker):
            self.pairs = ranker.dashclip_tower.pairs
            self.entities = len(ranker.semantic_tables.keys)
            self.dim = ranker.semantic_tables.collection.embedding_bag_configs()[0].embedding_dim

    def inputs(self, rows: SplitRows, row_B: Rows) -> TowerInputs:
        """Look the rows up, in the order given."""
        batch = rows.batch(row_B, self.semantic)
        return self.join(
            batch.dense_BF,
            self.ranker.sparse_tables(batch.sparse),
            self.ranker.semantic_tables(batch.semantic) if isinstance(self.ranker, TwoTowerRanker) else [],
        )

    def join(self, dense_BF: Tensor, ids: list[Tensor], entities: list[Tensor]) -> TowerInputs:
        """From dense features and pooled embeddings."""
        dashclip_BM = None
        if isinstance(self.ranker, TwoTowerRanker):
            dashclip_BM = self.ranker.dashclip_tower.inputs(entities)
        return TowerInputs(self.ranker.dcn_tower.inputs(dense_BF, ids), dashclip_BM, tuple(entities))

    def columns(self, feature: Feature) -> FeatureColumns:
        """Where `feature` lies."""
        dcn = list(feature.dense)
        for i in feature.sparse:
            dcn += range(self.sparse_start[i], self.sparse_start[i + 1])
        own: list[int] = []
        for i in feature.entities:
            own += range(i * self.dim, (i + 1) * self.dim)
        first_pair = self.entities * self.dim
        first_indicator = first_pair + len(self.pairs)
        own += [first_indicator + i for i in feature.entities]
        derived = tuple(
            i for i, pair in enumerate(self.pairs) if any(entity in feature.entities for entity in pair)
        )
        moved = tuple(i for i in feature.pairs if i not in derived)
        cosines = [first_pair + i for i in (*moved, *derived)]
        return FeatureColumns(
            dcn_C=torch.tensor(dcn, dtype=torch.int64),
            entities=feature.entities,
            own_C=torch.tensor(own, dtype=torch.int64),
            moved=moved,
            derived=derived,
            dashclip_C=torch.tensor([*own, *cosines], dtype=torch.int64),
        )

    def exchanged(self, base: TowerInputs, other: TowerInputs, columns: FeatureColumns) -> Tensor:
        """Values [B, C] of `columns.dashclip_C` when the feature's entities and cosines come from `other`."""
        assert other.dashclip_BM is not None
        first_pair = self.entities * self.dim
        entities = [
            other.entities[i] if i in columns.entities else base.entities[i] for i in range(self.entities)
        ]
        parts = [other.dashclip_BM[:, columns.own_C]]
        parts += [other.dashclip_BM[:, first_pair + i, None] for i in columns.moved]
        for i in columns.derived:
            a, b = self.pairs[i]
            parts.append(functional.cosine_similarity(entities[a], entities[b], dim=1)[:, None])
        return torch.cat(parts, dim=1)

    def missing(self, rows: int, *, missing_columns: Sequence[int]) -> TowerInputs:
        """What the ranker is given when every feature is missing.

        Dense features have their training mean (0 after the transform) and `missing_columns`, the dense
        columns that say so, are 1; ids read row 0 of their tables; embeddings are zeros, which makes their
        cosines and indicators 0.
        """
        dense_BF = torch.zeros(rows, self.dense_features)
        dense_BF[:, list(missing_columns)] = 1.0
        bags = self.ranker.sparse_tables.collection.embedding_bags
        table_of = {
            key: table.name
            for table in self.ranker.sparse_tables.collection.embedding_bag_configs()
            for key in table.feature_names
        }
        ids = [bags[table_of[key]].weight[:1].expand(rows, -1) for key in self.ranker.sparse_tables.keys]
        return self.join(dense_BF, ids, [torch.zeros(rows, self.dim) for _ in range(self.entities)])
