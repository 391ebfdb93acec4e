"""The rows of table 1 before they are measured: what orders the products of a query.

Shapes: P products, Q queries, K places, J judged pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embeddings.embedding_table import EmbeddingTable
from embeddings.evaluation.judgements import FloatArray, IntArray, Judgements
from embeddings.evaluation.lexical import Scorer, bm25_scores, char_tfidf_scores, tuned_bm25
from embeddings.evaluation.retrieval import Pool, rank_judged, retrieval_metrics
from embeddings.evaluation.search import pair_scores, search, top_rows

#: Random numbers drawn at a time.
_BLOCK_NUMBERS = 8_000_000
#: Reciprocal rank fusion: the usual offset of places, and how many places of each row count.
_FUSION_OFFSET = 60
FUSION_DEPTH = 1000
#: Validation queries by which BM25 is tuned.
TUNING_QUERIES = 300


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
class LexicalRow:
    """What titles share with queries; how rare a word is comes from all `titles`, whoever competes."""

    product_ids: pa.Array
    titles: Sequence[str | None]
    scorer: Scorer

    def ranking(self, judgements: Judgements, k: int) -> IntArray:
        place_P = self._places(judgements)
        scored = self.scorer(self.titles, judgements.queries.to_pylist())
        ranked = [top_rows(scores[place_P], k) for scores in scored]
        return np.array(ranked, np.int64).reshape(len(judgements), min(k, len(place_P)))

    def pair_scores(self, judgements: Judgements) -> FloatArray:
        place_J = self._places(judgements)[judgements.product_J]
        score_J = np.empty(len(place_J))
        for query, scores in enumerate(self.scorer(self.titles, judgements.queries.to_pylist())):
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
                f"lexical rows need the title of every product that is ranked, but {len(unknown):,} are not "
                f"among their products, {unknown[0].as_py()!r} for one"
            )
        return place_P.to_numpy(zero_copy_only=False)


@dataclass(frozen=True, eq=False)
class FusionRow:
    """Reciprocal rank fusion of other rows: a product scores the sum of 1 / (60 + its place in each).

    Cormack et al. 2009, https://doi.org/10.1145/1571941.1572114
    """

    rows: Sequence[TableRow]

    def ranking(self, judgements: Judgements, k: int) -> IntArray:
        """Of each row the best FUSION_DEPTH products count."""
        count = len(judgements.products)
        depth = min(max(k, FUSION_DEPTH), count)
        ranked = [row.ranking(judgements, depth) for row in self.rows]
        fused = np.empty((len(judgements), min(k, count)), np.int64)
        for query in range(len(judgements)):
            score_P = np.zeros(count)
            for ranked_QD in ranked:
                score_P[ranked_QD[query]] += _reciprocal(ranked_QD.shape[1])
            fused[query] = top_rows(score_P, k)
        return fused

    def pair_scores(self, judgements: Judgements) -> FloatArray:
        """Places are those among the query's judged products; of equal scores the earlier row comes first."""
        fused_J = np.zeros(len(judgements.product_J))
        for row in self.rows:
            score_J = row.pair_scores(judgements)
            for start, end in zip(judgements.start_Q[:-1], judgements.start_Q[1:], strict=True):
                best = start + np.argsort(-score_J[start:end], kind="stable")
                fused_J[best] += _reciprocal(end - start)
        return fused_J

    def missing(self, judgements: Judgements) -> Missing:
        """What no row knows is at most what the best informed one lacks."""
        missing = [row.missing(judgements) for row in self.rows]
        return Missing(
            products=min(found.products for found in missing), queries=min(found.queries for found in missing)
        )


def lexical_rows(
    product_ids: pa.Array,
    titles: Sequence[str | None],
    validation: Judgements,
    *,
    pool: Pool,
    k: int,
    language: str = "english",
) -> dict[str, TableRow]:
    """The opponents that need no training, strongest last: BM25, the same stemmed, n-grams, their fusion.

    k1 and b of the stemmed BM25 are chosen by the nDCG of at most TUNING_QUERIES queries of `validation`,
    or left as they are where it is empty.
    """
    tuning = validation.select_queries(np.arange(len(validation)) < TUNING_QUERIES)

    def ndcg(scorer: Scorer) -> float:
        row = LexicalRow(product_ids, titles, scorer)
        ranked_QK = (
            row.ranking(tuning, k) if pool == "catalogue" else rank_judged(row.pair_scores(tuning), tuning, k)
        )
        return float(np.nanmean(retrieval_metrics(ranked_QK, tuning, k)["ndcg"]))

    stemmed: Scorer = partial(bm25_scores, language=language)
    if len(tuning):
        stemmed, _, _ = tuned_bm25(ndcg, language=language)
    rows = {
        name: LexicalRow(product_ids, titles, scorer)
        for name, scorer in (
            ("bm25", bm25_scores),
            ("bm25_stemmed", stemmed),
            ("char_tfidf", char_tfidf_scores),
        )
    }
    return {**rows, "fusion": FusionRow((rows["bm25_stemmed"], rows["char_tfidf"]))}


def _reciprocal(places: int) -> FloatArray:
    return 1 / (_FUSION_OFFSET + 1 + np.arange(places))


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
