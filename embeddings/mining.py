"""Mined hard negatives: queries that the encoder takes for relevant replace some random ones of each tuple.

Beyond the paper. The nearest queries of each product are searched with the present vectors, relabelled by the
grades, and the hardest that may be negatives are put into its tuples (ANCE, arXiv 2007.00808, with labels).

Shapes: P products, Q queries, U products with tuples, M neighbours, N tuples of C = 2 + K columns, D width.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from embeddings.files import atomic_folder, sha256_of
from embeddings.grades import HIGH, MODERATE, Grades, RelevanceError
from embeddings.hard_negatives import (
    AisleRelevance,
    HardNegatives,
    MiningCounts,
    MiningReport,
    label_neighbours,
    place_hard_negatives,
)

# This name belongs to this module's interface: `as` says so.
from embeddings.hard_negatives import MiningConfig as MiningConfig
from embeddings.relevance import PROGRESS_PRODUCTS, Progress, aisle_numbers, checked_mask, generator_of
from embeddings.retrieval import FloatArray, search
from embeddings.row_file import RowFile
from embeddings.tuple_set import (
    GRADES,
    QUERIES,
    REPORT,
    TUPLES,
    TupleSet,
    ids_sha256,
    negative_mix,
    refuse_foreign_folder,
)

#: Part of the seed: the random places are independent of how the tuples were drawn.
PLACES = 1


def mine_tuples(
    tuples: TupleSet,
    grades: Grades,
    aisles: Sequence[str | None] | None,
    *,
    product_vectors_PD: FloatArray,
    query_vectors_QD: FloatArray,
    config: MiningConfig,
    seed: int,
    out: Path,
    query_mask: npt.NDArray[np.bool_] | None = None,
    product_mask: npt.NDArray[np.bool_] | None = None,
    progress: Progress | None = None,
) -> TupleSet:
    """Write the tuples with hard negatives to `out`, complete or not at all.

    A neighbour that is graded for the product is a negative as its grade says: IR for any positive, MR for HR
    positives, HR never. One that is not graded is a negative only if it is an HR query of another aisle and
    neither HR nor MR for any product of this one; anything else is dropped and counted. Without aisles
    (`aisles` None, or none for this product) all that are not graded are dropped.

    Queries whose mask is False are not searched; neither they nor the grades of products whose mask is False
    count for anything. Products and queries without a vector (all zeros) take no part. The number of tuples,
    their order, products and positives stay, and so do negatives that are not replaced.

    Vectors, grades and the neighbours of the products are held in memory, the tuples are not.

    Raises:
        RelevanceError: tuples, grades, vectors, aisles or masks do not belong together, or `out` holds
            something other than tuples.
    """
    out = Path(out)
    refuse_foreign_folder(out)
    products, queries = len(grades.product_ids), len(grades.queries)
    product_mask = checked_mask(product_mask, products, "product_mask")
    query_mask = checked_mask(query_mask, queries, "query_mask")
    aisle_P = np.full(products, -1) if aisles is None else aisle_numbers(aisles, products)[0]
    _check_fit(tuples, grades, product_vectors_PD, query_vectors_QD)
    relevance = AisleRelevance.of(grades, aisle_P, product_mask)

    start_U1 = _product_starts(tuples.tuples_NC)
    product_U = np.asarray(tuples.tuples_NC[start_U1[:-1], 0])
    searchable = np.flatnonzero(query_mask & query_vectors_QD.any(axis=1))
    has_vector_U = product_vectors_PD[product_U].any(axis=1)
    neighbour_UM = _neighbours(
        product_vectors_PD[product_U], query_vectors_QD[searchable], searchable, config, progress
    )

    counts = MiningCounts()
    repeated = 0
    with atomic_folder(out) as temporary:
        with (
            RowFile(temporary / TUPLES, tuples.tuples_NC.shape[1], np.dtype(np.int32)) as tuple_file,
            RowFile(temporary / GRADES, tuples.grades_NC.shape[1], np.dtype(np.int8)) as grade_file,
        ):
            for number, product in enumerate(product_U.tolist()):
                if progress is not None and number % PROGRESS_PRODUCTS == 0:
                    progress("mining", number, len(product_U))
                rows = slice(*start_U1[number : number + 2].tolist())
                tuples_NC = np.array(tuples.tuples_NC[rows])
                grades_NC = np.array(tuples.grades_NC[rows])
                hard = HardNegatives(np.zeros(0, np.int64), np.zeros(0, np.int8))
                if has_vector_U[number]:
                    part = slice(*grades.product_start_P1[product : product + 2].tolist())
                    hard = label_neighbours(
                        neighbour_UM[number],
                        grades.query_G[part],
                        grades.grade_G[part],
                        aisles=relevance,
                        aisle=int(aisle_P[product]),
                        counts=counts,
                    )
                place_hard_negatives(
                    tuples_NC,
                    grades_NC,
                    hard,
                    mined_share=config.mined_share,
                    generator=generator_of(grades.product_ids[product].as_py(), seed, PLACES),
                    counts=counts,
                )
                repeated += int((np.diff(np.sort(tuples_NC[:, 2:], axis=1), axis=1) == 0).sum())
                tuple_file.append(tuples_NC)
                grade_file.append(grades_NC)
        if progress is not None:
            progress("mining", len(product_U), len(product_U))
        mined = counts.mined_irrelevant + counts.mined_moderate + counts.mined_proxy
        mining = MiningReport(
            config=config,
            seed=seed,
            products=len(product_U),
            products_without_vector=int((~has_vector_U).sum()),
            queries=len(searchable),
            queries_without_vector=int(query_mask.sum()) - len(searchable),
            mean_mined_per_tuple=mined / len(tuples),
            **asdict(counts),
        )
        pq.write_table(pq.read_table(tuples.folder / QUERIES), temporary / QUERIES, compression="zstd")
        written_NC = np.load(temporary / GRADES, mmap_mode="r")
        report = tuples.report.model_copy(
            update={
                "negatives_of_high": negative_mix(written_NC, HIGH),
                "negatives_of_moderate": negative_mix(written_NC, MODERATE),
                "repeated_negatives": repeated,
                "mining": mining,
                "checksums": {name: sha256_of(temporary / name) for name in (TUPLES, GRADES, QUERIES)},
            }
        )
        (temporary / REPORT).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return TupleSet.open(out, verify=False)


def _product_starts(tuples_NC: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Where the tuples of each product begin, and the end of the last."""
    product_N = np.asarray(tuples_NC[:, 0])
    return np.flatnonzero(np.diff(product_N, prepend=-1, append=-1))


def _neighbours(
    products_UD: FloatArray,
    queries_QD: FloatArray,
    searchable: npt.NDArray[np.int64],
    config: MiningConfig,
    progress: Progress | None,
) -> npt.NDArray[np.int32]:
    """Query indices of the nearest searchable queries of each product, nearest first."""
    if progress is not None:
        progress("neighbours", 0, len(products_UD))
    found_UM = search(queries_QD, products_UD, config.neighbours, index=config.index)
    if progress is not None:
        progress("neighbours", len(products_UD), len(products_UD))
    return searchable[found_UM].astype(np.int32)


def _check_fit(tuples: TupleSet, grades: Grades, products_PD: FloatArray, queries_QD: FloatArray) -> None:
    if ids_sha256(grades.product_ids) != tuples.report.product_ids_sha256 or not tuples.queries.equals(
        grades.queries
    ):
        raise RelevanceError(
            f"the tuples of {tuples.folder} have other products or queries than the grades; build them again"
        )
    for name, vectors, wanted in (
        ("product_vectors_PD", products_PD, len(grades.product_ids)),
        ("query_vectors_QD", queries_QD, len(grades.queries)),
    ):
        if vectors.ndim != 2 or len(vectors) != wanted:
            raise RelevanceError(f"{name} must have {wanted:,} rows, got shape {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise RelevanceError(f"{name} must be finite, but holds NaN or infinity; encode again")
