"""Training tuples made of graded pairs (paper section 3.2.2).

A tuple is (product, positive query, K negative queries). Nothing in it depends on the order of rows in the
tables: products draw in the order of their ids, each from a random stream of its own.

Shapes: P products of the catalogue, Q queries, N tuples, K negatives of each, J graded pairs of one product.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embeddings.catalog.holdout import query_groups

# These names belong to this module's interface: `as` says so.
from embeddings.relevance.grades import HIGH as HIGH
from embeddings.relevance.grades import IRRELEVANT as IRRELEVANT
from embeddings.relevance.grades import MODERATE as MODERATE
from embeddings.relevance.grades import Grades as Grades
from embeddings.relevance.grades import RelevanceError as RelevanceError
from embeddings.relevance.grades import read_grades as read_grades
from embeddings.relevance.sampling import PROXY as PROXY
from embeddings.relevance.sampling import Donors, NegativeCounts, ProxyQueries, draw_tuples
from embeddings.relevance.sampling import TupleConfig as TupleConfig
from embeddings.relevance.tuple_set import (
    FORMAT,
    QUERIES,
    REPORT,
    TUPLE_GRADES,
    TUPLES,
    RowFile,
    ids_sha256,
    is_tuple_set,
    negative_mix,
)
from embeddings.relevance.tuple_set import TupleReport as TupleReport
from embeddings.relevance.tuple_set import TupleSet as TupleSet
from features.artifacts import atomic_folder, checksums_of, refuse_foreign_folder
from features.progress import Progress, silent

#: Products between two calls of `progress`.
PROGRESS_PRODUCTS = 500


def build_tuples(
    grades: Grades,
    aisles: Sequence[str | None] | None,
    out_folder: Path,
    *,
    config: TupleConfig,
    seed: int,
    product_mask: npt.NDArray[np.bool_] | None = None,
    query_mask: npt.NDArray[np.bool_] | None = None,
    group_Q: npt.NDArray[np.int64] | None = None,
    progress: Progress = silent,
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
    positives nor as negatives or proxies. `group_Q` says which queries are the same query (`query_groups`,
    by spelling unless given): a positive query is never its own negative, whatever its grades by spelling.

    Grades are held in memory, the written tuples are not: one product is worked on at a time.

    Raises:
        RelevanceError: lengths do not fit, or no tuple can be made.
        FileExistsError: `out_folder` holds something other than tuples.
    """
    out_folder = Path(out_folder)
    refuse_foreign_folder(out_folder, ours=is_tuple_set)
    counts = NegativeCounts()
    drawn = draw_for_products(
        grades,
        aisles,
        config=config,
        seed=seed,
        product_mask=product_mask,
        query_mask=query_mask,
        group_Q=group_Q,
        counts=counts,
        progress=progress,
    )
    positives: list[int] = []
    with atomic_folder(out_folder) as temporary:
        with (
            RowFile(temporary / TUPLES, 2 + config.negatives, np.dtype(np.int32)) as tuple_file,
            RowFile(temporary / TUPLE_GRADES, 1 + config.negatives, np.dtype(np.int8)) as grade_file,
        ):
            for product, rows, row_grades in drawn:
                positives.append(len(rows))
                tuple_file.append(np.array([[product, *row] for row in rows]))
                grade_file.append(np.array(row_grades))
        if not positives:
            raise RelevanceError(
                "no tuple can be made: no product has an HR or MR query that may be used together with a "
                "negative; check the grades, the masks and the aisles"
            )
        grades_NC = np.load(temporary / TUPLE_GRADES, mmap_mode="r")
        pq.write_table(pa.table({"query": grades.queries}), temporary / QUERIES, compression="zstd")
        report = TupleReport(
            format=FORMAT,
            config=config,
            seed=seed,
            products=len(grades.product_ids),
            queries=len(grades.queries),
            tuples=sum(positives),
            products_with_tuples=len(positives),
            products_without_positives=counts.without_positives,
            products_masked=0 if product_mask is None else int((~product_mask).sum()),
            queries_masked=0 if query_mask is None else int((~query_mask).sum()),
            high_positives=int((grades_NC[:, 0] == HIGH).sum()),
            moderate_positives=int((grades_NC[:, 0] == MODERATE).sum()),
            mean_positives=float(np.mean(positives)),
            median_positives=float(np.median(positives)),
            most_positives=max(positives),
            negatives_of_high=negative_mix(grades_NC, HIGH),
            negatives_of_moderate=negative_mix(grades_NC, MODERATE),
            tuples_with_swap=counts.swapped,
            tuples_without_swap=counts.not_swapped,
            tuples_filled_by_proxies=counts.filled,
            repeated_negatives=counts.repeated,
            positives_left_out=counts.left_out,
            grades=grades.report,
            product_ids_sha256=ids_sha256(grades.product_ids),
            checksums=checksums_of(temporary, (TUPLES, TUPLE_GRADES, QUERIES)),
        )
        (temporary / REPORT).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return TupleSet.open(out_folder, verify=False)


class Drawn(NamedTuple):
    """At least one tuple of a product: rows of query indices, the positive first, and their grades."""

    product: int
    rows: list[list[int]]
    grades: list[list[int]]


def draw_for_products(
    grades: Grades,
    aisles: Sequence[str | None] | None,
    *,
    config: TupleConfig,
    seed: int,
    product_mask: npt.NDArray[np.bool_] | None = None,
    query_mask: npt.NDArray[np.bool_] | None = None,
    group_Q: npt.NDArray[np.int64] | None = None,
    counts: NegativeCounts,
    progress: Progress = silent,
) -> Iterator[Drawn]:
    """The tuples that `build_tuples` writes, product by product; arguments and errors are those of it.

    Whoever needs to know only that there are some stops early.
    """
    products, queries = len(grades.product_ids), len(grades.queries)
    product_mask = checked_mask(product_mask, products, "product_mask")
    query_mask = checked_mask(query_mask, queries, "query_mask")
    group_Q = query_groups(grades.queries) if group_Q is None else group_Q
    if group_Q.shape != (queries,):
        raise RelevanceError(
            f"group_Q must have one group for each of {queries:,} queries, got shape {group_Q.shape}"
        )
    aisle_P, aisle_count = aisle_numbers(aisles, products)
    order = pc.sort_indices(grades.product_ids).to_numpy()
    order = order[product_mask[order]]
    donors = _donors(grades, order, query_mask, aisle_P, aisle_count=aisle_count)
    positive_G = (grades.grade_G != IRRELEVANT) & query_mask[grades.query_G]
    has_positive = np.bincount(grades.product_G[positive_G], minlength=products)[order] > 0
    counts.without_positives += int((~has_positive).sum())
    order = order[has_positive]
    for done, product in enumerate(order.tolist()):
        if done % PROGRESS_PRODUCTS == 0:
            progress("tuples", done, len(order))
        part = slice(*grades.product_start_P1[product : product + 2].tolist())
        query_J, grade_J = grades.query_G[part], grades.grade_G[part]
        kept = query_mask[query_J]
        query_J, grade_J = query_J[kept], grade_J[kept]
        generator = generator_of(grades.product_ids[product].as_py(), seed)
        proxies = None
        if config.proxy_negatives and aisle_P[product] >= 0:
            own_aisle = None if aisles is None else int(aisle_P[product])
            graded = frozenset(group_Q[query_J].tolist())
            proxies = ProxyQueries(donors, own_aisle, graded, generator, group_Q)
        rows, row_grades = draw_tuples(
            query_J,
            grade_J,
            config=config,
            proxies=proxies,
            generator=generator,
            counts=counts,
            group_J=group_Q[query_J],
        )
        if rows:
            yield Drawn(product, rows, row_grades)
    progress("tuples", len(order), len(order))


def _donors(
    grades: Grades,
    order: npt.NDArray[np.int64],
    query_mask: npt.NDArray[np.bool_],
    aisle_P: npt.NDArray[np.int64],
    *,
    aisle_count: int,
) -> Donors:
    """The products of `order` that lend highly relevant queries, in that order within their aisle."""
    place_P = np.full(len(aisle_P), -1, np.int64)
    place_P[order] = np.arange(len(order))
    lent_G = (grades.grade_G == HIGH) & query_mask[grades.query_G]
    lent_G &= (place_P[grades.product_G] >= 0) & (aisle_P[grades.product_G] >= 0)
    product_L, query_L = grades.product_G[lent_G], grades.query_G[lent_G]
    by_product_L = np.argsort(place_P[product_L], kind="stable")
    product_L, query_L = product_L[by_product_L], query_L[by_product_L]
    first_D = np.flatnonzero(np.diff(product_L, prepend=-1))
    lent = np.split(query_L, first_D[1:]) if len(first_D) else []
    return Donors.of(lent, aisle_P[product_L[first_D]], aisle_count=aisle_count)


def generator_of(product_id: int | str, *seeds: int) -> np.random.Generator:
    """The random stream of a product, the same whatever other products there are."""
    digest = hashlib.blake2b(str(product_id).encode(), digest_size=16).digest()
    return np.random.default_rng((*seeds, int.from_bytes(digest, "big")))


def aisle_numbers(aisles: Sequence[str | None] | None, products: int) -> tuple[npt.NDArray[np.int64], int]:
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


def checked_mask(mask: npt.NDArray[np.bool_] | None, count: int, name: str) -> npt.NDArray[np.bool_]:
    """The mask, or one that is True everywhere.

    Raises:
        RelevanceError: it is not `count` booleans.
    """
    if mask is None:
        return np.ones(count, np.bool_)
    if mask.shape != (count,) or mask.dtype != np.bool_:
        raise RelevanceError(f"{name} must be {count:,} booleans, got {mask.dtype} of shape {mask.shape}")
    return mask
