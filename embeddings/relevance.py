"""Graded (query, product) pairs and the training tuples made of them (paper section 3.2.2).

A tuple is (product, positive query, K negative queries). Nothing in it depends on the order of rows in the
tables: products draw in the order of their ids, each from a random stream of its own.

Shapes: G graded pairs, P products of the catalogue, Q queries, N tuples, K negatives of each, J pairs of one
product, R tuples of one product and grade.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from embeddings.files import atomic_folder, sha256_of
from embeddings.input_tables import BATCH_ROWS, open_input_table
from embeddings.row_file import RowFile
from embeddings.tuple_sampling import (
    HIGH,
    IRRELEVANT,
    MODERATE,
    PROXY,
    Donors,
    NegativeCounts,
    ProxyQueries,
    draw_negatives,
    positive_counts,
)

FORMAT: Literal["tuples-1"] = "tuples-1"
TUPLES, GRADES, QUERIES, REPORT = "tuples.npy", "grades.npy", "queries.parquet", "report.json"
#: Products between two calls of `progress`.
PROGRESS_PRODUCTS = 500

Progress = Callable[[str, int, int], None]
Count = Annotated[int, Field(ge=0)]
IntArray = npt.NDArray[np.integer[Any]]


class RelevanceError(ValueError):
    """Grades or tuples that cannot be used; the message names the table or file and what to do."""


class GradesReport(BaseModel):
    """What reading the relevance table met; `rows` = `pairs` + everything set aside or merged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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

    def __len__(self) -> int:
        return len(self.grade_G)


class TupleConfig(BaseModel):
    """The sampling of section 3.2.2.

    `high_per_moderate` = 2 means 73 HR and 37 MR of 110 positives when there are enough of both. When MR
    queries run out, HR queries take their places. When HR queries run out there are two readings:
    "keep_ratio" takes one MR query for every two HR queries, rounded up and at least one, so that a product
    with MR queries alone has one positive (the paper's average of 50 positives is far below its 110, and HR
    queries are its rare kind); "fill" takes MR queries up to the maximum.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_positives: Annotated[int, Field(ge=1)] = 110
    high_per_moderate: Annotated[int, Field(ge=1)] = 2
    short_of_high: Literal["keep_ratio", "fill"] = "keep_ratio"
    negatives: Annotated[int, Field(ge=1)] = 10
    proxy_negatives: bool = True


class NegativeMix(BaseModel):
    """How many negatives of each kind the tuples of one positive grade have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    irrelevant: Count = 0
    moderate: Count = 0
    proxy: Count = 0


class TupleReport(BaseModel):
    """What `build_tuples` made; stored as report.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["tuples-1"]
    config: TupleConfig
    seed: int
    products: Count
    queries: Count
    tuples: Count
    #: Products with tuples, and those without any HR or MR query that may be used.
    products_with_tuples: Count
    products_without_positives: Count
    products_masked: Count
    queries_masked: Count
    high_positives: Count
    moderate_positives: Count
    mean_positives: float
    median_positives: float
    most_positives: Count
    negatives_of_high: NegativeMix
    negatives_of_moderate: NegativeMix
    #: Tuples whose K negatives were all IR, so that one was replaced by a proxy; and those where none exists.
    tuples_with_swap: Count
    tuples_without_swap: Count
    #: Tuples completed by proxies, and negatives that repeat one of their tuple because nothing else exists.
    tuples_filled_by_proxies: Count
    repeated_negatives: Count
    #: Positives for which not a single negative exists.
    positives_left_out: Count
    grades: GradesReport
    #: Of the product ids in the order that the product indices mean.
    product_ids_sha256: str
    checksums: dict[str, str]


@dataclass(frozen=True, eq=False)
class TupleSet:
    """Tuples on disk, memory-mapped.

    `tuples_NC` int32 has C = 2 + K columns: product index, index of the positive query, indices of the
    negative queries. `grades_NC` int8 has 1 + K: the grade of the positive and of each negative, -1 = proxy.
    The order of negatives means nothing; tuples of a product stand together.
    """

    folder: Path
    tuples_NC: npt.NDArray[np.int32]
    grades_NC: npt.NDArray[np.int8]
    queries: pa.Array
    report: TupleReport

    def __len__(self) -> int:
        return len(self.tuples_NC)

    @classmethod
    def open(cls, folder: Path, *, product_ids: pa.Array | None = None, verify: bool = True) -> Self:
        """Open what `build_tuples` wrote; `product_ids` of the catalogue are checked when given.

        Raises:
            RelevanceError: a file is missing or changed, or the catalogue is not the one of the tuples.
        """
        folder = Path(folder)
        report = _read_report(folder)
        for name, checksum in report.checksums.items():
            path = folder / name
            if not path.is_file() or (verify and sha256_of(path) != checksum):
                raise RelevanceError(f"{path} is missing or was changed; build the tuples again")
        if product_ids is not None and _ids_sha256(product_ids) != report.product_ids_sha256:
            raise RelevanceError(
                f"the products of the catalogue are not those of {folder}, or in another order; "
                "build the tuples again"
            )
        return cls(
            folder=folder,
            tuples_NC=np.load(folder / TUPLES, mmap_mode="r"),
            grades_NC=np.load(folder / GRADES, mmap_mode="r"),
            queries=pq.read_table(folder / QUERIES).column("query").combine_chunks(),
            report=report,
        )


def read_grades(data: Path, *, sources: Sequence[str] = ("human", "llm")) -> Grades:
    """Read the relevance table of a data folder, one grade for each (query, product).

    An earlier source of `sources` beats a later one, whatever they say. Several grades of one source become
    their median, rounded down: 1 and 2 give 1. Rows that cannot be used are counted in the report.

    Raises:
        RelevanceError: there is no relevance table, a column is missing, a grade is not 0, 1 or 2, or
            product ids are of another type than in the products table.
    """
    product_ids = _read_product_ids(data)
    table = open_input_table(data, "relevance")
    if table is None:
        raise RelevanceError(f"{data} has no relevance.parquet and no relevance/; grades are needed here")
    columns = ["query", "product_id", "grade", "source"]
    missing = [name for name in columns if name not in table.schema.names]
    if missing:
        raise RelevanceError(
            f"relevance of {data} must have the columns {missing}; it has {', '.join(table.schema.names)}"
        )
    rows = null_rows = other_source_rows = unknown_product_rows = 0
    code_of: dict[str, int] = {}
    parts: list[tuple[IntArray, IntArray, IntArray, IntArray]] = []
    for batch in table.to_batches(columns=columns, batch_size=BATCH_ROWS):
        rows += batch.num_rows
        query = pc.cast(batch.column("query"), pa.string())
        source = pc.index_in(pc.cast(batch.column("source"), pa.string()), value_set=pa.array(sources))
        asked = source.is_valid()
        other_source_rows += pc.invert(asked).true_count
        complete = pc.and_(
            pc.and_(batch.column("grade").is_valid(), batch.column("product_id").is_valid()),
            pc.fill_null(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(query)), 0), False),
        )
        null_rows += pc.and_(asked, pc.invert(complete)).true_count
        product = pc.index_in(_ids_like(batch.column("product_id"), product_ids, data), value_set=product_ids)
        usable = pc.and_(asked, complete)
        unknown_product_rows += pc.and_(usable, product.is_null()).true_count
        usable = pc.and_(usable, product.is_valid())
        grade = batch.column("grade").filter(usable).cast(pa.int64()).to_numpy(zero_copy_only=False)
        if len(grade) and not 0 <= grade.min() <= grade.max() <= HIGH:
            wrong = int(grade[(grade < 0) | (grade > HIGH)][0])
            raise RelevanceError(
                f"grades of {data} must be 0 (irrelevant), 1 (moderate) or 2 (high), got {wrong}"
            )
        encoded = query.filter(usable).dictionary_encode()
        codes = [code_of.setdefault(text, len(code_of)) for text in encoded.dictionary.to_pylist()]
        parts.append(
            (
                product.filter(usable).to_numpy(zero_copy_only=False),
                np.array(codes, np.int64)[encoded.indices.to_numpy(zero_copy_only=False)],
                source.filter(usable).to_numpy(zero_copy_only=False),
                grade,
            )
        )
    texts = pa.array(list(code_of), pa.string())
    order = pc.sort_indices(texts)
    rank_Q = np.empty(len(texts), np.int64)
    rank_Q[order.to_numpy()] = np.arange(len(texts))
    # One number for each row, so that one sort does it all: 32 million rows take 256 MB.
    key = np.concatenate(
        [
            ((product.astype(np.int64) * len(texts) + rank_Q[code]) * len(sources) + source) * 3 + grade
            for product, code, source, grade in parts
        ]
        or [np.empty(0, np.int64)]
    )
    key.sort()
    return _one_grade_each(
        key,
        queries=texts.take(order),
        product_ids=product_ids,
        sources=tuple(sources),
        rows=rows,
        null_rows=null_rows,
        other_source_rows=other_source_rows,
        unknown_product_rows=unknown_product_rows,
    )


def _one_grade_each(
    key: npt.NDArray[np.int64],
    *,
    queries: pa.Array,
    product_ids: pa.Array,
    sources: tuple[str, ...],
    **counts: int,
) -> Grades:
    """Merge rows sorted by pair, source and grade."""
    judgement, grade = np.divmod(key, 3)
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


def build_tuples(
    grades: Grades,
    aisles: Sequence[str | None] | None,
    out_folder: Path,
    *,
    config: TupleConfig,
    seed: int,
    product_mask: npt.NDArray[np.bool_] | None = None,
    query_mask: npt.NDArray[np.bool_] | None = None,
    progress: Progress | None = None,
) -> TupleSet:
    """Draw the tuples of section 3.2.2 and write them to `out_folder`, complete or not at all.

    Each product with an HR or MR query has up to `max_positives` positives. A negative never repeats inside
    its tuple unless no other exists (then it is counted); across the tuples of a product negatives do repeat.
    Where the product's own grades give fewer than K, and where all K are IR (then in place of a random one),
    a proxy steps in: a random HR query of a random product of another aisle, never one graded for the
    product itself. Without proxies short tuples repeat negatives.

    `aisles` has one entry for each product. A product whose aisle is None or blank neither lends nor gets
    proxies, as nothing says that aisles differ; `aisles` None stands for a data set without aisles: proxies
    then come from any other product. Products and queries whose mask is False appear nowhere, neither as
    positives nor as negatives or proxies.

    Grades are held in memory, the written tuples are not: one product is worked on at a time.

    Raises:
        RelevanceError: lengths do not fit, no tuple can be made, or `out_folder` holds something else.
    """
    out_folder = Path(out_folder)
    _refuse_foreign_folder(out_folder)
    products, queries = len(grades.product_ids), len(grades.queries)
    product_mask = _checked_mask(product_mask, products, "product_mask")
    query_mask = _checked_mask(query_mask, queries, "query_mask")
    aisle_P, aisle_count = _aisle_numbers(aisles, products)
    order = pc.sort_indices(grades.product_ids).to_numpy()
    order = order[product_mask[order]]

    def pairs_of(product: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int8]]:
        part = slice(*grades.product_start_P1[product : product + 2].tolist())
        query_J, grade_J = grades.query_G[part], grades.grade_G[part]
        kept = query_mask[query_J]
        return query_J[kept], grade_J[kept]

    lenders: list[int] = []
    lent: list[npt.NDArray[np.int32]] = []
    for product in order.tolist():
        query_J, grade_J = pairs_of(product)
        if aisle_P[product] >= 0 and (grade_J == HIGH).any():
            lenders.append(product)
            lent.append(query_J[grade_J == HIGH])
    donors = Donors.of(lent, aisle_P[lenders], aisle_count=aisle_count)

    positives: list[int] = []
    without_positives = 0
    mix = {grade: {HIGH: 0, MODERATE: 0, IRRELEVANT: 0, PROXY: 0} for grade in (HIGH, MODERATE)}
    tuples_of = {HIGH: 0, MODERATE: 0}
    counts = NegativeCounts()
    with atomic_folder(out_folder) as temporary:
        with (
            RowFile(temporary / TUPLES, 2 + config.negatives, np.dtype(np.int32)) as tuple_file,
            RowFile(temporary / GRADES, 1 + config.negatives, np.dtype(np.int8)) as grade_file,
        ):
            for done, product in enumerate(order.tolist()):
                if progress is not None and done % PROGRESS_PRODUCTS == 0:
                    progress("tuples", done, len(order))
                query_J, grade_J = pairs_of(product)
                wanted = positive_counts(
                    int((grade_J == HIGH).sum()),
                    int((grade_J == MODERATE).sum()),
                    most=config.max_positives,
                    high_per_moderate=config.high_per_moderate,
                    fill=config.short_of_high == "fill",
                )
                if not sum(wanted):
                    without_positives += 1
                    continue
                generator = _generator_of(grades.product_ids[product].as_py(), seed)
                aisle = int(aisle_P[product])
                proxies = None
                if config.proxy_negatives and aisle >= 0:
                    proxies = ProxyQueries(
                        donors, None if aisles is None else aisle, frozenset(query_J.tolist()), generator
                    )
                written = 0
                for grade, count in zip((HIGH, MODERATE), wanted, strict=True):
                    query_RC, grade_RC = draw_negatives(
                        query_J,
                        grade_J,
                        generator.choice(query_J[grade_J == grade], count, replace=False),
                        positive_grade=grade,
                        count=config.negatives,
                        proxies=proxies,
                        generator=generator,
                        counts=counts,
                    )
                    tuple_file.append(np.insert(query_RC, 0, product, axis=1))
                    grade_file.append(grade_RC)
                    for kind in mix[grade]:
                        mix[grade][kind] += int((grade_RC[:, 1:] == kind).sum())
                    tuples_of[grade] += len(query_RC)
                    written += len(query_RC)
                if written:
                    positives.append(written)
        if not positives:
            raise RelevanceError(
                "no tuple can be made: no product has an HR or MR query that may be used together with a "
                "negative; check the grades, the masks and the aisles"
            )
        if progress is not None:
            progress("tuples", len(order), len(order))
        pq.write_table(pa.table({"query": grades.queries}), temporary / QUERIES, compression="zstd")
        report = TupleReport(
            format=FORMAT,
            config=config,
            seed=seed,
            products=products,
            queries=queries,
            tuples=sum(positives),
            products_with_tuples=len(positives),
            products_without_positives=without_positives,
            products_masked=int((~product_mask).sum()),
            queries_masked=int((~query_mask).sum()),
            high_positives=tuples_of[HIGH],
            moderate_positives=tuples_of[MODERATE],
            mean_positives=float(np.mean(positives)),
            median_positives=float(np.median(positives)),
            most_positives=max(positives),
            negatives_of_high=_mix(mix[HIGH]),
            negatives_of_moderate=_mix(mix[MODERATE]),
            tuples_with_swap=counts.swapped,
            tuples_without_swap=counts.not_swapped,
            tuples_filled_by_proxies=counts.filled,
            repeated_negatives=counts.repeated,
            positives_left_out=counts.left_out,
            grades=grades.report,
            product_ids_sha256=_ids_sha256(grades.product_ids),
            checksums={name: sha256_of(temporary / name) for name in (TUPLES, GRADES, QUERIES)},
        )
        (temporary / REPORT).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return TupleSet.open(out_folder, verify=False)


def _mix(by_grade: dict[int, int]) -> NegativeMix:
    return NegativeMix(irrelevant=by_grade[IRRELEVANT], moderate=by_grade[MODERATE], proxy=by_grade[PROXY])


def _generator_of(product_id: int | str, seed: int) -> np.random.Generator:
    """The random stream of a product, the same whatever other products there are."""
    digest = hashlib.blake2b(str(product_id).encode(), digest_size=16).digest()
    return np.random.default_rng((seed, int.from_bytes(digest, "big")))


def _aisle_numbers(aisles: Sequence[str | None] | None, products: int) -> tuple[npt.NDArray[np.int64], int]:
    """Number of each product's aisle in the order of names, -1 where unknown; and how many there are."""
    if aisles is None:
        return np.zeros(products, np.int64), 1
    if len(aisles) != products:
        raise RelevanceError(
            f"aisles must have one entry for each of {products:,} products, got {len(aisles):,}"
        )
    names = [(aisle or "").strip() for aisle in aisles]
    number_of = {name: number for number, name in enumerate(sorted({*names} - {""}))}
    return np.array([number_of.get(name, -1) for name in names], np.int64), len(number_of)


def _checked_mask(mask: npt.NDArray[np.bool_] | None, count: int, name: str) -> npt.NDArray[np.bool_]:
    if mask is None:
        return np.ones(count, np.bool_)
    if mask.shape != (count,) or mask.dtype != np.bool_:
        raise RelevanceError(f"{name} must be {count:,} booleans, got {mask.dtype} of shape {mask.shape}")
    return mask


def _read_product_ids(data: Path) -> pa.Array:
    table = open_input_table(data, "products")
    if table is None or "product_id" not in table.schema.names:
        raise RelevanceError(f"{data} must have a products table with the column product_id")
    ids = table.to_table(columns=["product_id"]).column("product_id").combine_chunks()
    if ids.null_count or pc.count_distinct(ids).as_py() != len(ids):
        raise RelevanceError(
            f"product ids of products in {data} must be unique and not null; drop the others"
        )
    return ids


def _ids_like(column: pa.Array, product_ids: pa.Array, data: Path) -> pa.Array:
    if pa.types.is_integer(column.type) != pa.types.is_integer(product_ids.type):
        raise RelevanceError(
            f"product ids of relevance in {data} are {column.type}, those of products {product_ids.type}; "
            "write both tables with one type"
        )
    return column.cast(product_ids.type)


def _ids_sha256(ids: pa.Array) -> str:
    return hashlib.sha256("\0".join(map(str, ids.to_pylist())).encode()).hexdigest()


def _read_report(folder: Path) -> TupleReport:
    path = folder / REPORT
    try:
        return TupleReport.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        raise RelevanceError(f"{folder} holds no tuples: {path} cannot be read: {error}") from None


def _refuse_foreign_folder(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        try:
            _read_report(folder)
        except RelevanceError:
            raise RelevanceError(
                f"{folder} holds something other than tuples and is left as it is; choose another path"
            ) from None
