"""Which pairs to grade: the queries that most searches ask, each with products from several sources.

A grader's labels are worth most where shoppers search. Nearest neighbours alone would teach an encoder only
what it believes already, so products of the log and random ones stand beside them.

Shapes: Q queries, P products, K products of a query.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from embeddings.catalog.inputs import read_distinct_queries
from embeddings.embedding_table import EmbeddingTable
from embeddings.evaluation.lexical import char_tfidf_scores
from embeddings.evaluation.linear_probe import unit_vectors
from embeddings.evaluation.search import search
from embeddings.grading.pairs import Catalogue, GradedPairs, GradingError
from features.artifacts import StrictModel
from features.inputs.blanks import without_blanks
from features.inputs.tables import find_table
from features.progress import Progress, silent


class CandidateConfig(StrictModel):
    """How many products of each source a query gets, and how much of the search volume is covered."""

    lexical: Annotated[int, Field(ge=0)] = 8
    vectors: Annotated[int, Field(ge=0)] = 8
    log: Annotated[int, Field(ge=0)] = 4
    random: Annotated[int, Field(ge=0)] = 2
    #: The most searched queries are taken until they are this share of all searches; the paper covers 99 %.
    coverage: Annotated[float, Field(gt=0, le=1)] = 0.99
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, eq=False)
class Candidates:
    """Pairs to grade: query, product_id, text, volume (searches), sources."""

    table: pa.Table
    #: Share of searches whose query has at least one pair, queries kept, and queries in all.
    coverage: float
    queries: int
    queries_in_all: int
    pairs_by_source: dict[str, int]


def candidate_pairs(
    data: Path,
    catalogue: Catalogue,
    *,
    config: CandidateConfig,
    tables: tuple[EmbeddingTable, EmbeddingTable] | None = None,
    people: GradedPairs | None = None,
    progress: Progress = silent,
) -> Candidates:
    """The pairs of a data folder that are worth a grade.

    The volume of a query is its impressions; without impressions each query of relevance counts once.

    Args:
        people: pairs that are taken as they are, however seldom their queries are searched: a model whose
            run has them can be compared with people.

    Raises:
        GradingError: there is no query, or no source gives anything.
    """
    queries, volume_Q = search_volume(data)
    if not queries:
        raise GradingError(f"impressions and relevance of {data} hold no query; there is nothing to grade")
    order = np.lexsort((np.arange(len(queries)), -volume_Q))
    reached = np.cumsum(volume_Q[order]) / volume_Q.sum()
    kept = order[: int(np.searchsorted(reached, config.coverage - 1e-12)) + 1]
    asked = [queries[row] for row in kept.tolist()]
    shown = _shown(data, asked, catalogue, config.log) if config.log else [[] for _ in asked]
    near = _nearest(asked, catalogue, tables, config.vectors)
    graded = _graded(people, catalogue) if people is not None else {}
    row_of = {query: row for row, query in enumerate(queries)}
    seldom = [query for query in graded if query not in set(asked)]
    kept = np.concatenate([kept, np.array([row_of[query] for query in seldom], np.int64)])
    generator = np.random.default_rng(config.seed)
    rows: list[tuple[int, int, str]] = []
    counts = dict.fromkeys(("lexical", "vectors", "log", "random"), 0)
    if people is not None:
        counts["people"] = 0
    scores = char_tfidf_scores(catalogue.texts, asked) if config.lexical else None
    every = asked + seldom
    for place, query in enumerate(every):
        if place % 100 == 0:
            progress("candidates", place, len(every))
        found: dict[int, list[str]] = {}
        parts: dict[str, Sequence[int]] = {}
        if place < len(asked):
            parts |= {"vectors": near[place], "log": shown[place]}
            if scores is not None:
                parts["lexical"] = _top(next(scores), config.lexical)
            parts["random"] = generator.integers(0, len(catalogue.texts), config.random).tolist()
        parts["people"] = graded.get(query, [])
        for source, products in parts.items():
            for product in products:
                if source not in found.setdefault(product, []):
                    found[product].append(source)
        for product, sources in found.items():
            rows.append((place, product, ",".join(sources)))
            for source in sources:
                counts[source] += 1
    progress("candidates", len(every), len(every))
    if not rows:
        raise GradingError("no source gives a product; ask for some of `lexical`, `log` or `random`")
    product_N = np.array([product for _, product, _ in rows], np.int64)
    covered = np.zeros(len(queries), bool)
    covered[kept[np.unique([place for place, *_ in rows])]] = True
    columns: dict[str, pa.Array] = {
        "query": pa.array([every[place] for place, *_ in rows], pa.string()),
        "product_id": catalogue.product_ids.take(pa.array(product_N)),
        "text": pa.array([catalogue.texts[product] for product in product_N.tolist()], pa.string()),
        "volume": pa.array([int(volume_Q[kept[place]]) for place, *_ in rows], pa.int64()),
        "sources": pa.array([sources for *_, sources in rows], pa.string()),
    }
    return Candidates(
        pa.table(columns), float(volume_Q[covered].sum() / volume_Q.sum()), len(every), len(queries), counts
    )


def search_volume(data: Path) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Queries in the order of their bytes and how often each was searched."""
    queries = read_distinct_queries(data)
    count_Q = np.zeros(len(queries), np.int64)
    impressions = find_table(data, "impressions")
    if impressions is None or "query" not in impressions.schema.names:
        return queries.to_pylist(), np.ones(len(queries), np.int64)
    for batch in impressions.to_batches(columns=["query"]):
        texts = without_blanks(batch.column("query").cast(pa.string())).drop_null()
        place = pc.index_in(texts, value_set=queries).drop_null().to_numpy()
        count_Q += np.bincount(place, minlength=len(queries))
    return queries.to_pylist(), count_Q


def _graded(people: GradedPairs, catalogue: Catalogue) -> dict[str, list[int]]:
    """Rows of the products that people graded for each query."""
    product_N = pc.index_in(
        people.pairs.product_ids.cast(catalogue.product_ids.type), value_set=catalogue.product_ids
    ).to_pylist()
    found: dict[str, list[int]] = {}
    for query, product in zip(people.pairs.queries, product_N, strict=True):
        found.setdefault(query, []).append(product)
    return found


def _shown(data: Path, asked: list[str], catalogue: Catalogue, most: int) -> list[list[int]]:
    """Rows of the products that were shown most often for each query."""
    impressions = find_table(data, "impressions")
    if impressions is None or "query" not in impressions.schema.names:
        return [[] for _ in asked]
    wanted, ids = pa.array(asked, pa.string()), catalogue.product_ids
    key = np.array([], np.int64)
    count = np.array([], np.int64)
    for batch in impressions.to_batches(columns=["query", "product_id"]):
        query = pc.index_in(batch.column("query").cast(pa.string()), value_set=wanted)
        product = pc.index_in(batch.column("product_id").cast(ids.type), value_set=ids)
        usable = pc.and_(query.is_valid(), product.is_valid())
        pair = query.filter(usable).to_numpy().astype(np.int64) * len(ids) + product.filter(usable).to_numpy()
        key, inverse = np.unique(np.concatenate([key, pair]), return_inverse=True)
        weights = np.concatenate([count, np.ones(len(pair), np.int64)])
        count = np.bincount(inverse, weights, len(key)).astype(np.int64)
    found: list[list[int]] = [[] for _ in asked]
    query_K, product_K = np.divmod(key, len(ids))
    for row in np.lexsort((key, -count)).tolist():
        products = found[query_K[row]]
        if len(products) < most:
            products.append(int(product_K[row]))
    return found


def _nearest(
    asked: list[str],
    catalogue: Catalogue,
    tables: tuple[EmbeddingTable, EmbeddingTable] | None,
    most: int,
) -> list[list[int]]:
    """Rows of the products whose vectors are nearest to each query that has one."""
    if tables is None or most == 0:
        return [[] for _ in asked]
    product_PD = unit_vectors(tables[0], catalogue.product_ids)
    query_QD = unit_vectors(tables[1], pa.array(asked, pa.string()))
    found = search(product_PD, query_QD, most).tolist()
    known_Q = np.asarray(query_QD.any(axis=1)).tolist()
    return [rows if known else [] for rows, known in zip(found, known_Q, strict=True)]


def _top(score_P: npt.NDArray[np.float32], most: int) -> list[int]:
    """Rows of the largest positive scores, equal ones in order of rows."""
    most = min(most, len(score_P))
    least = np.partition(score_P, len(score_P) - most)[len(score_P) - most] if most else np.inf
    rows = np.flatnonzero((score_P >= least) & (score_P > 0))
    return [int(row) for row in rows[np.lexsort((rows, -score_P[rows]))][:most]]
