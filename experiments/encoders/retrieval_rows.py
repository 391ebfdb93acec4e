"""The rows of table 1 before they are measured: what orders the products of a query.

Shapes: P products, Q queries, K places, J judged pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embeddings.embedding_table import EmbeddingTable
from embeddings.evaluation.bm25 import bm25_scores
from embeddings.evaluation.judgements import FloatArray, IntArray, Judgements
from embeddings.evaluation.search import pair_scores, search, top_rows

#: Random numbers drawn at a time.
_BLOCK_NUMBERS = 8_000_000


@dataclass(frozen=True)
class Missing:
    """Products and queries of the evaluation that a row knows nothing of."""

    products: int
    queries: int


class TableRow(Protocol):
    """A way to order products, asked by the ids in the judgements, so that no order of tables matters."""

    def ranking(self, judgements: Judgements, k: int) -> IntArray:
        """Best rows [Q, K] of `judgements.products` for each query, from the whole catalogue."""

    def pair_scores(self, judgements: Judgements) -> FloatArray:
        """A score for each judged pair; larger is better."""

    def missing(self, judgements: Judgements) -> Missing:
        """What this row has no vector or text for."""


@dataclass(frozen=True, eq=False)
class VectorRow:
    """Nearest products by inner product of two embedding tables.

    Raises:
        ValueError: the tables have different widths, or are of the wrong kinds.
    """

    products: EmbeddingTable
    queries: EmbeddingTable

    def __post_init__(self) -> None:
        kinds = (self.products.manifest.kind, self.queries.manifest.kind)
        if kinds != ("product", "query") or self.products.dim != self.queries.dim:
            raise ValueError(
                "retrieval needs a product table and a query table of one width, got "
                f"{self.products.folder} ({kinds[0]}, {self.products.dim}) and "
                f"{self.queries.folder} ({kinds[1]}, {self.queries.dim})"
            )

    def ranking(self, judgements: Judgements, k: int) -> IntArray:
        return search(*self._vectors(judgements), k)

    def pair_scores(self, judgements: Judgements) -> FloatArray:
        return pair_scores(*self._vectors(judgements), judgements)

    def missing(self, judgements: Judgements) -> Missing:
        products_PD, queries_QD = self._vectors(judgements)
        return Missing(
            products=int((~products_PD.any(axis=1)).sum()), queries=int((~queries_QD.any(axis=1)).sum())
        )

    def _vectors(self, judgements: Judgements) -> tuple[FloatArray, FloatArray]:
        return (
            self.products.vectors_ND[self.products.rows_of(judgements.products)],
            self.queries.vectors_ND[self.queries.rows_of(judgements.queries)],
        )


@dataclass(frozen=True, eq=False)
class Bm25Row:
    """Words in common; how rare a word is comes from all `titles`, also where only some products compete."""

    product_ids: pa.Array
    titles: Sequence[str | None]

    def ranking(self, judgements: Judgements, k: int) -> IntArray:
        place_P = self._places(judgements)
        scored = bm25_scores(self.titles, judgements.queries.to_pylist())
        ranked = [top_rows(scores[place_P], k) for scores in scored]
        return np.array(ranked, np.int64).reshape(len(judgements), min(k, len(place_P)))

    def pair_scores(self, judgements: Judgements) -> FloatArray:
        place_J = self._places(judgements)[judgements.product_J]
        score_J = np.empty(len(place_J))
        for query, scores in enumerate(bm25_scores(self.titles, judgements.queries.to_pylist())):
            pairs = slice(judgements.start_Q[query], judgements.start_Q[query + 1])
            score_J[pairs] = scores[place_J[pairs]]
        return score_J

    def missing(self, judgements: Judgements) -> Missing:
        empty = sum(not self.titles[place] for place in self._places(judgements).tolist())
        return Missing(products=empty, queries=0)

    def _places(self, judgements: Judgements) -> IntArray:
        place_P = pc.index_in(judgements.products, value_set=self.product_ids)
        if place_P.null_count:
            unknown = judgements.products.filter(place_P.is_null())
            raise ValueError(
                f"BM25 needs the title of every product that is ranked, but {len(unknown):,} are not among "
                f"its products, {unknown[0].as_py()!r} for one"
            )
        return place_P.to_numpy(zero_copy_only=False)


@dataclass(frozen=True)
class RandomRow:
    """Any order: the level that knowing nothing reaches."""

    seed: int = 0

    def ranking(self, judgements: Judgements, k: int) -> IntArray:
        generator = np.random.default_rng(self.seed)
        count = len(judgements.products)
        step = max(1, _BLOCK_NUMBERS // max(count, 1))
        blocks = [np.zeros((0, min(k, count)), np.int64)]
        for start in range(0, len(judgements), step):
            number_BP = generator.random((min(step, len(judgements) - start), count))
            blocks.append(np.argsort(number_BP, axis=1)[:, :k])
        return np.concatenate(blocks)

    def pair_scores(self, judgements: Judgements) -> FloatArray:
        return np.random.default_rng(self.seed).random(len(judgements.product_J))

    def missing(self, judgements: Judgements) -> Missing:
        return Missing(products=0, queries=0)
