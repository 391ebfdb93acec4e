"""Graded (query, product) pairs: one grade for each, whatever the table repeats (paper section 2.2).

Nothing depends on the order of rows in the relevance table.

Shapes: G graded pairs, P products of the catalogue, Q queries.
"""

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from embeddings.catalog.groups import connected_groups
from embeddings.catalog.holdout import HoldoutConfig, query_roles, roles_of_groups
from embeddings.catalog.intents import intent_groups
from embeddings.evaluation.judgements import Judgements
from features.artifacts import StrictModel
from features.inputs.blanks import without_blanks
from features.inputs.tables import open_table

IRRELEVANT, MODERATE, HIGH = 0, 1, 2
#: Name of each grade.
GRADES = ("irrelevant", "moderate", "high")
#: Whose grades come first where the order is not given; those of other sources follow by their names.
FIRST_SOURCES = ("human", "llm")
#: More than so many are rather the names of people than kinds of graders.
MOST_SOURCES = 50
#: Columns with a model's probabilities of the three, in their order.
PROBABILITIES = ("p_ir", "p_mr", "p_hr")
_BATCH_ROWS = 1 << 20

Count = Annotated[int, Field(ge=0)]
IntArray = npt.NDArray[np.integer[Any]]


class RelevanceError(ValueError):
    """Grades or tuples that cannot be used; the message names the table or file and what to do."""


class GradesReport(StrictModel):
    """What reading the relevance table met.

    `rows` = `pairs` + the rows set aside or merged: other_source, null, unknown_product, repeated, overruled.
    """

    rows: Count
    #: Distinct (query, product) pairs kept, in all and by the source whose grade counts.
    pairs: Count
    pairs_by_source: dict[str, Count]
    #: Rows set aside: of a source that was not asked for, null or blank, of a product not in the catalogue.
    other_source_rows: Count
    null_rows: Count
    unknown_product_rows: Count
    #: Further rows of a pair with the same source; their median counts.
    repeated_rows: Count
    #: Grades (medians) that stand back behind those of an earlier source.
    overruled_rows: Count
    #: Pairs that several sources grade, and those of them whose sources disagree.
    shared_pairs: Count
    disagreeing_pairs: Count


@dataclass(frozen=True, eq=False)
class Grades:
    """Distinct graded pairs, sorted by product and query.

    The pairs of product p are `product_start_P1[p] : product_start_P1[p + 1]`.
    """

    #: Distinct queries with a grade, sorted by their UTF-8 bytes.
    queries: pa.Array
    #: Ids of the catalogue, in the order of the products table.
    product_ids: pa.Array
    query_G: npt.NDArray[np.int32]
    product_G: npt.NDArray[np.int32]
    grade_G: npt.NDArray[np.int8]
    #: Index into `sources`.
    source_G: npt.NDArray[np.int8]
    sources: tuple[str, ...]
    product_start_P1: npt.NDArray[np.int64]
    report: GradesReport
    #: What queries ask for, as far as the table says it.
    intent_of: Mapping[str, str] = field(default_factory=dict)
    #: `queries`, and those that only other sources grade: roles are the same whose grades are read.
    all_queries: pa.Array | None = None

    def __len__(self) -> int:
        return len(self.grade_G)

    def query_roles(self, holdout: HoldoutConfig) -> npt.NDArray[np.int8]:
        """Role of each query: all queries of one intent have one role, unless `holdout.by` is "spelling".

        A query of which the table does not say what it asks for goes by its words: a group of
        `intent_groups` has the role of its most held-out member. So a test query stays one whatever queries
        come later, and a training query that asks for the same leaves training, with all of its intent.
        Whose grades were read makes no difference: what one source's queries hold out, all do.
        """
        if holdout.by == "spelling":
            return query_roles(self.queries, holdout)
        texts = self._known.to_pylist()
        roles_Q = query_roles(texts, holdout, intents=[self.intent_of.get(text) for text in texts])
        return roles_of_groups(roles_Q, self._group_of_known)[self._place_Q]

    def judgements(self) -> Judgements:
        """The graded pairs as what retrieval is measured by; pairs without a grade are not judged."""
        return Judgements.from_pairs(
            queries=self.queries,
            products=self.product_ids,
            query_J=self.query_G,
            product_J=self.product_G,
            grade_J=self.grade_G,
        )

    def intent_groups(self) -> npt.NDArray[np.int64]:
        """Queries that ask for the same thing have one number."""
        return self._group_of_known[self._place_Q]

    @property
    def _known(self) -> pa.Array:
        return self.queries if self.all_queries is None else self.all_queries

    @cached_property
    def _place_Q(self) -> npt.NDArray[np.int64]:
        """Of each query among the known ones."""
        return pc.index_in(self.queries, value_set=self._known).to_numpy(zero_copy_only=False)

    @cached_property
    def _group_of_known(self) -> npt.NDArray[np.int64]:
        texts = self._known.to_pylist()
        if not any(text in self.intent_of for text in texts):
            return intent_groups(texts)
        names = [self.intent_of.get(text) or f"\0{text}" for text in texts]
        if all(text in self.intent_of for text in texts):
            return np.unique(names, return_inverse=True)[1].astype(np.int64)
        by_words_Q = intent_groups(texts).tolist()
        untold = {group for text, group in zip(texts, by_words_Q, strict=True) if text not in self.intent_of}
        keys: list[tuple[int, Hashable]] = [*enumerate(names)]
        keys += [(row, group) for row, group in enumerate(by_words_Q) if group in untold]
        return connected_groups(len(texts), keys)


def read_grades(data: Path, *, sources: Sequence[str] | None = None, draw_seed: int | None = None) -> Grades:
    """Read the relevance table of a data folder, one grade for each (query, product).

    An earlier source of `sources` beats a later one, whatever they say. Several grades of one source become
    their median, rounded down: 1 and 2 give 1. Rows that cannot be used are counted in the report.

    Args:
        sources: whose grades count; all of them in the order of `sources_of` if None.
        draw_seed: draw the grades of rows with probabilities (p_ir, p_mr, p_hr) from those, instead of taking
            what the model found most fitting: what it doubts is then wrong as often as it thinks. A pair's
            draw depends on the seed, its query and its product alone.

    Raises:
        InputError: a table or a column is missing.
        RelevanceError: a grade is not 0, 1 or 2, product ids are of another type than in products, or
            probabilities to draw from are missing or do not sum to 1.
    """
    product_ids = _read_product_ids(data)
    columns = ["query", "product_id", "grade", "source"]
    table = open_table(data, "relevance", columns)
    sources = sources_of(data) if sources is None else sources
    has_intents = "intent" in table.schema.names
    if draw_seed is not None:
        if missing := [name for name in PROBABILITIES if name not in table.schema.names]:
            raise RelevanceError(
                f"relevance in {data} has no {missing[0]} to draw grades from; `dashclip grade run` writes "
                "probabilities, or set draw_grades = false"
            )
        columns += PROBABILITIES
    intent_of: dict[str, str] = {}
    known: set[str] = set()
    counts = dict.fromkeys(("rows", "other_source_rows", "null_rows", "unknown_product_rows"), 0)
    code_of: dict[str, int] = {}
    parts = []
    for batch in table.to_batches(
        columns=[*columns, "intent"] if has_intents else columns, batch_size=_BATCH_ROWS
    ):
        if draw_seed is not None:
            batch = _drawn(batch, draw_seed, data)
        parts.append(_usable_rows(batch, product_ids, sources, code_of, known, counts, data))
        if has_intents:
            _note_intents(batch, intent_of, data)
    texts = pa.array(list(code_of), pa.string())
    order = pc.sort_indices(texts)
    rank_Q = np.empty(len(texts), np.int64)
    rank_Q[order.to_numpy()] = np.arange(len(texts))
    # One number for each row, so that one sort does it all: 32 million rows take 256 MB.
    key = np.empty(sum(len(grade) for *_, grade in parts), np.int64)
    end = 0
    for product, code, source, grade in parts:
        start, end = end, end + len(grade)
        key[start:end] = product
        key[start:end] = (key[start:end] * len(texts) + rank_Q[code]) * len(sources) + source
        key[start:end] = key[start:end] * len(GRADES) + grade
    key.sort()
    queries = texts.take(order)
    grades = _one_grade_each(
        key, queries=queries, product_ids=product_ids, sources=tuple(sources), counts=counts
    )
    others = known.difference(code_of)
    everything = pa.array(sorted([*code_of, *others]), pa.string()) if others else None
    return replace(grades, intent_of=intent_of, all_queries=everything)


def sources_of(data: Path) -> tuple[str, ...]:
    """Every word that stands in the column `source` of the relevance table: human, llm, others by name.

    Raises:
        InputError: there is no such table or column.
        RelevanceError: there are too many to be kinds of graders.
    """
    table = open_table(data, "relevance", ["source"])
    found: set[str] = set()
    for batch in table.to_batches(columns=["source"], batch_size=_BATCH_ROWS):
        words = without_blanks(batch.column("source").cast(pa.string()))
        found.update(pc.unique(words.drop_null()).to_pylist())
        if len(found) > MOST_SOURCES:
            raise RelevanceError(
                f"source of relevance in {data} has more than {MOST_SOURCES} values, such as "
                f"{min(found)!r}; it should be a kind of grader (human, llm, rule), not a name or an id"
            )
    first = [name for name in FIRST_SOURCES if name in found]
    return (*first, *sorted(found.difference(FIRST_SOURCES)))


def _note_intents(batch: pa.RecordBatch, intent_of: dict[str, str], data: Path) -> None:
    pairs = pa.table({name: batch.column(name).cast(pa.string()) for name in ("query", "intent")})
    for pair in pairs.drop_null().group_by(["query", "intent"]).aggregate([]).to_pylist():
        if not pair["intent"].strip():
            continue
        known = intent_of.setdefault(pair["query"], pair["intent"])
        if known != pair["intent"]:
            raise RelevanceError(
                f"relevance in {data} gives the query {pair['query']!r} two intents, {known!r} and "
                f"{pair['intent']!r}; write one for all of its rows, or leave the column out"
            )


def _drawn(batch: pa.RecordBatch, seed: int, data: Path) -> pa.RecordBatch:
    """The rows with grades drawn where all three probabilities are given."""
    chance_NC = np.column_stack(
        [
            pc.fill_null(batch.column(name).cast(pa.float64()), np.nan).to_numpy(zero_copy_only=False)
            for name in PROBABILITIES
        ]
    )
    given = np.flatnonzero(~np.isnan(chance_NC).any(axis=1))
    wrong = (chance_NC[given] < 0).any(axis=1) | (np.abs(chance_NC[given].sum(axis=1) - 1) > 0.01)
    if wrong.any():
        raise RelevanceError(
            f"probabilities of relevance in {data} must not be negative and must sum to 1, got "
            f"{chance_NC[given][wrong][0].round(3).tolist()}; correct them or do not draw"
        )
    queries, products = (batch.column(name).to_pylist() for name in ("query", "product_id"))
    grades = batch.column("grade").to_pylist()
    share_NC = chance_NC[given] / chance_NC[given].sum(axis=1, keepdims=True)
    for row, chance_C in zip(given.tolist(), share_NC.tolist(), strict=True):
        text = f"{seed}\0{queries[row]}\0{products[row]}".encode(errors="surrogatepass")
        uniform = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) / 2**64
        grades[row] = int(uniform >= chance_C[0]) + int(uniform >= chance_C[0] + chance_C[1])
    place = batch.schema.get_field_index("grade")
    return batch.set_column(place, "grade", pa.array(grades, pa.int8()))


def _usable_rows(
    batch: pa.RecordBatch,
    product_ids: pa.Array,
    sources: Sequence[str],
    code_of: dict[str, int],
    known: set[str],
    counts: dict[str, int],
    data: Path,
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Product index, query code, source number and grade of the rows to use; new queries get new codes.

    `known` gets the queries of other sources, too.
    """
    query = without_blanks(batch.column("query").cast(pa.string()))
    source = pc.index_in(batch.column("source").cast(pa.string()), value_set=pa.array(sources, pa.string()))
    product_id = _canonical_ids(batch.column("product_id"))
    if product_id.type != product_ids.type:
        raise RelevanceError(
            f"product ids of relevance in {data} are {product_id.type}, of products {product_ids.type}; "
            "write both tables with one type"
        )
    product = pc.index_in(product_id, value_set=product_ids)
    complete = pc.and_(pc.and_(query.is_valid(), product_id.is_valid()), batch.column("grade").is_valid())
    asked = source.is_valid()
    usable = pc.and_(pc.and_(asked, complete), product.is_valid())
    known.update(query.filter(pc.and_(complete, product.is_valid())).unique().to_pylist())
    counts["rows"] += batch.num_rows
    counts["other_source_rows"] += batch.num_rows - asked.true_count
    counts["null_rows"] += asked.true_count - pc.and_(asked, complete).true_count
    counts["unknown_product_rows"] += pc.and_(asked, complete).true_count - usable.true_count

    grade = batch.column("grade").filter(usable)
    wrong = grade.filter(pc.invert(pc.is_in(grade, value_set=pa.array(range(len(GRADES))).cast(grade.type))))
    if len(wrong):
        raise RelevanceError(
            f"grades of relevance in {data} must be 0 (irrelevant), 1 (moderate) or 2 (high), "
            f"got {wrong[0].as_py()!r}; map them before importing"
        )
    encoded = query.filter(usable).dictionary_encode()
    codes = [code_of.setdefault(text, len(code_of)) for text in encoded.dictionary.to_pylist()]
    return (
        product.filter(usable).to_numpy(zero_copy_only=False),
        np.array(codes, np.int32)[encoded.indices.to_numpy(zero_copy_only=False)],
        source.filter(usable).to_numpy(zero_copy_only=False).astype(np.int8),
        grade.cast(pa.int8()).to_numpy(zero_copy_only=False),
    )


def _one_grade_each(
    key: npt.NDArray[np.int64],
    *,
    queries: pa.Array,
    product_ids: pa.Array,
    sources: tuple[str, ...],
    counts: dict[str, int],
) -> Grades:
    """Merge rows sorted by pair, source and grade."""
    judgement, grade = np.divmod(key, len(GRADES))
    start = np.flatnonzero(np.diff(judgement, prepend=-1))
    size = np.diff(np.append(start, len(key)))
    median = (grade[start + (size - 1) // 2] + grade[start + size // 2]) // 2
    pair, source = np.divmod(judgement[start], max(len(sources), 1))
    first = np.flatnonzero(np.diff(pair, prepend=-1))
    judges = np.diff(np.append(first, len(pair)))
    spread = np.zeros(len(first), np.int64)
    if len(first):
        spread = np.maximum.reduceat(median, first) - np.minimum.reduceat(median, first)
    product_G, query_G = np.divmod(pair[first], max(len(queries), 1))
    source_G = source[first].astype(np.int8)
    report = GradesReport(
        pairs=len(first),
        pairs_by_source={name: int((source_G == code).sum()) for code, name in enumerate(sources)},
        repeated_rows=len(key) - len(start),
        overruled_rows=len(start) - len(first),
        shared_pairs=int((judges > 1).sum()),
        disagreeing_pairs=int((spread > 0).sum()),
        **counts,
    )
    return Grades(
        queries=queries,
        product_ids=product_ids,
        query_G=query_G.astype(np.int32),
        product_G=product_G.astype(np.int32),
        grade_G=median[first].astype(np.int8),
        source_G=source_G,
        sources=sources,
        product_start_P1=np.searchsorted(product_G, np.arange(len(product_ids) + 1)),
        report=report,
    )


def _read_product_ids(data: Path) -> pa.Array:
    table = open_table(data, "products", ["product_id"])
    ids = _canonical_ids(table.to_table(columns=["product_id"]).column("product_id").combine_chunks())
    if ids.null_count or pc.count_distinct(ids).as_py() != len(ids):
        raise RelevanceError(
            f"product ids of products in {data} must be unique and not null or blank; drop the others"
        )
    return ids


def _canonical_ids(ids: pa.Array) -> pa.Array:
    """Ids as int64 or strings, whatever their width or encoding; null for blank ones."""
    return without_blanks(ids.cast(pa.int64() if pa.types.is_integer(ids.type) else pa.string()))
