"""What the towers of a ranker read of some rows, and which of its columns belong to which feature.

Permutation, ablation and integrated gradients all act here: behind the embedding lookups, in front of the
first layer. An embedding is its vector, its indicator, and whatever cosines are made of it. In a ranker that
reads similarities alone, indicators and cosines are columns of the DCN tower, between dense and id ones.

Shapes: B rows, N input columns of the DCN tower, M of the DashCLIP tower, K entities of width D, C columns.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from experiments.importance.model_features import Feature
from experiments.importance.split_rows import Rows, SplitRows
from features.batches.pretrained_rows import SemanticRows
from ranking.model import DcnRanker, Ranker, SimilarityRanker, TwoTowerRanker
from ranking.towers import HistoryTiers


@dataclass(frozen=True)
class TowerInputs:
    """Inputs of both towers for the same rows; the DashCLIP side is None in a ranker without that tower.

    Attributes:
        dcn_BN: dense features, similarities if the tower reads them, pooled id embeddings, padding.
        dashclip_BM: scaled embeddings, cosines, indicators, history tiers.
        entities: the embeddings as looked up, K of [B, D].
        purchase_BH: rows of the purchases in the product table, 0 behind the last; None without tiers.
    """

    dcn_BN: Tensor
    dashclip_BM: Tensor | None
    entities: tuple[Tensor, ...]
    purchase_BH: Tensor | None = None

    def rows(self, start: int, end: int) -> "TowerInputs":
        """A part of the rows, without a copy."""
        return TowerInputs(
            self.dcn_BN[start:end],
            None if self.dashclip_BM is None else self.dashclip_BM[start:end],
            tuple(entity_BD[start:end] for entity_BD in self.entities),
            None if self.purchase_BH is None else self.purchase_BH[start:end],
        )


@dataclass(frozen=True)
class FeatureColumns:
    """Columns that a feature feeds.

    Attributes:
        dcn_C: columns of the DCN tower's input; where it reads the similarities, their columns are the last,
            as in `dashclip_C`.
        entities: entities that are exchanged.
        own_C: their columns of the input of the tower that reads them: vectors and indicators.
        moved: cosines that move on their own, without their embeddings.
        derived: cosines that are made anew, since an embedding of theirs has changed.
        tiers: columns of the history tiers that are made anew for the same reason.
        dashclip_C: own_C, then the columns of `moved`, of `derived` and of `tiers`; none without the tower.
    """

    dcn_C: Tensor
    entities: tuple[int, ...]
    own_C: Tensor
    moved: tuple[int, ...]
    derived: tuple[int, ...]
    tiers: Tensor
    dashclip_C: Tensor


class InputLayout:
    """Where the features of one ranker lie, and how its towers' inputs are looked up."""

    def __init__(self, ranker: Ranker, *, dense_features: int, semantic: SemanticRows | None) -> None:
        self.ranker = ranker
        self.dense_features = dense_features
        self.semantic = None if isinstance(ranker, DcnRanker) else semantic
        widths = {
            key: table.embedding_dim
            for table in ranker.sparse_tables.collection.embedding_bag_configs()
            for key in table.feature_names
        }
        #: The DCN tower's columns that are similarities.
        self.similarities = ranker.similarities.width if isinstance(ranker, SimilarityRanker) else 0
        self.sparse_start = [dense_features + self.similarities]
        for key in ranker.sparse_tables.keys:
            self.sparse_start.append(self.sparse_start[-1] + widths[key])
        self.pairs: tuple[tuple[int, int], ...] = ()
        self.dim = self.entities = 0
        self.tiers: HistoryTiers | None = None
        if not isinstance(ranker, DcnRanker):
            self.pairs = ranker.similarities.pairs
            self.entities = len(ranker.semantic_tables.keys)
            self.dim = ranker.semantic_tables.collection.embedding_bag_configs()[0].embedding_dim
        if isinstance(ranker, TwoTowerRanker):
            self.tiers = ranker.dashclip_tower.history_tiers
        #: Of the first cosine, among the columns of the tower that reads it.
        self.first_pair = dense_features if self.similarities else self.entities * self.dim

    def inputs(self, rows: SplitRows, row_B: Rows) -> TowerInputs:
        """Look the rows up, in the order given."""
        batch = rows.batch(row_B, self.semantic)
        purchase_BH = None
        if self.tiers is not None:
            bag = batch.semantic["history"]
            purchase_BH = bag.to_padded_dense().long()
        return self.join(
            batch.dense_BF,
            self.ranker.sparse_tables(batch.sparse),
            [] if isinstance(self.ranker, DcnRanker) else self.ranker.semantic_tables(batch.semantic),
            purchase_BH,
        )

    def join(
        self,
        dense_BF: Tensor,
        ids: list[Tensor],
        entities: list[Tensor],
        purchase_BH: Tensor | None = None,
    ) -> TowerInputs:
        """From dense features, pooled embeddings and, for history tiers, rows of the purchases."""
        dashclip_BM = None
        if isinstance(self.ranker, TwoTowerRanker):
            purchases = None if purchase_BH is None else self._purchases(purchase_BH)
            dashclip_BM = self.ranker.dashclip_tower.inputs(entities, purchases)
        if isinstance(self.ranker, SimilarityRanker):
            dense_BF = torch.cat([dense_BF, self.ranker.similarities(entities)], dim=1)
        dcn_BN = self.ranker.dcn_tower.inputs(dense_BF, ids)
        return TowerInputs(dcn_BN, dashclip_BM, tuple(entities), purchase_BH)

    def _purchases(self, purchase_BH: Tensor) -> tuple[Tensor, Tensor]:
        """What `HistoryTiers` takes."""
        assert isinstance(self.ranker, TwoTowerRanker)
        exists_BH = purchase_BH != 0
        vectors_LD = self.ranker.semantic_tables.table("history").index_select(0, purchase_BH[exists_BH])
        return vectors_LD, exists_BH.sum(dim=1)

    def _tier_columns(self, entities: Collection[int]) -> list[int]:
        """Columns of the history tiers that depend on any of `entities`, the last of which is the history."""
        if self.tiers is None:
            return []
        width, history = self.tiers.width(1) - 1, self.entities - 1
        found = [
            column
            for anchor in range(history)
            if anchor in entities or history in entities
            for column in range(anchor * width, (anchor + 1) * width)
        ]
        return [*found, history * width] if history in entities else found

    def columns(self, feature: Feature) -> FeatureColumns:
        """Where `feature` lies."""
        dcn = list(feature.dense)
        for i in feature.sparse:
            dcn += range(self.sparse_start[i], self.sparse_start[i + 1])
        own: list[int] = []
        for i in () if self.similarities else feature.entities:
            own += range(i * self.dim, (i + 1) * self.dim)
        first_indicator = self.first_pair + len(self.pairs)
        own += [first_indicator + i for i in feature.entities]
        derived = tuple(
            i for i, pair in enumerate(self.pairs) if any(entity in feature.entities for entity in pair)
        )
        moved = tuple(i for i in feature.pairs if i not in derived)
        cosines = [self.first_pair + i for i in (*moved, *derived)]
        tiers = self._tier_columns(feature.entities)
        first_tier = first_indicator + self.entities
        semantic = [*own, *cosines, *(first_tier + i for i in tiers)]
        dcn, dashclip = ([*dcn, *semantic], []) if self.similarities else (dcn, semantic)
        return FeatureColumns(
            dcn_C=torch.tensor(dcn, dtype=torch.int64),
            entities=feature.entities,
            own_C=torch.tensor(own, dtype=torch.int64),
            moved=moved,
            derived=derived,
            tiers=torch.tensor(tiers, dtype=torch.int64),
            dashclip_C=torch.tensor(dashclip, dtype=torch.int64),
        )

    def exchanged_dcn(self, base: TowerInputs, other: TowerInputs, columns: FeatureColumns) -> Tensor:
        """Values [B, C] of `columns.dcn_C` when the feature comes from `other`."""
        if not self.similarities:
            return other.dcn_BN[:, columns.dcn_C]
        of_similarities = len(columns.own_C) + len(columns.moved) + len(columns.derived)
        others_C = columns.dcn_C[: len(columns.dcn_C) - of_similarities]
        return torch.cat(
            [other.dcn_BN[:, others_C], self._semantic(other.dcn_BN, base, other, columns)], dim=1
        )

    def exchanged(self, base: TowerInputs, other: TowerInputs, columns: FeatureColumns) -> Tensor:
        """Values [B, C] of `columns.dashclip_C` when the feature's entities and cosines come from `other`."""
        assert other.dashclip_BM is not None
        return self._semantic(other.dashclip_BM, base, other, columns)

    def _semantic(
        self, other_BX: Tensor, base: TowerInputs, other: TowerInputs, columns: FeatureColumns
    ) -> Tensor:
        """Vectors, indicators, cosines and tiers of `columns`; `other_BX` is the tower's input of `other`."""
        entities = [
            other.entities[i] if i in columns.entities else base.entities[i] for i in range(self.entities)
        ]
        parts = [other_BX[:, columns.own_C]]
        parts += [other_BX[:, self.first_pair + i, None] for i in columns.moved]
        for i in columns.derived:
            a, b = self.pairs[i]
            parts.append(functional.cosine_similarity(entities[a], entities[b], dim=1)[:, None])
        if self.tiers is not None and len(columns.tiers):
            purchase_BH = (other if self.entities - 1 in columns.entities else base).purchase_BH
            assert purchase_BH is not None
            tiers_BW = self.tiers(entities[:-1], *self._purchases(purchase_BH))
            parts.append(tiers_BW[:, columns.tiers])
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
        entities = [torch.zeros(rows, self.dim) for _ in range(self.entities)]
        none = None if self.tiers is None else torch.zeros(rows, 1, dtype=torch.int64)
        return self.join(dense_BF, ids, entities, none)
