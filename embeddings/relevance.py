"""Training tuples made of graded pairs (paper section 3.2.2).

A tuple is (product, positive query, K negative queries). Nothing in it depends on the order of rows in the
tables: products draw in the order of their ids, each from a random stream of its own.

Shapes: P products of the catalogue, Q queries, N tuples, K negatives of each, J graded pairs of one product.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from embeddings.files import atomic_folder, sha256_of

# These names belong to this module's interface: `as` says so.
from embeddings.grades import HIGH as HIGH
from embeddings.grades import IRRELEVANT as IRRELEVANT
from embeddings.grades import MODERATE as MODERATE
from embeddings.grades import Count, GradesReport
from embeddings.grades import Grades as Grades
from embeddings.grades import RelevanceError as RelevanceError
from embeddings.grades import read_grades as read_grades
from embeddings.row_file import RowFile
from embeddings.tuple_sampling import PROXY as PROXY
from embeddings.tuple_sampling import Donors, NegativeCounts, ProxyQueries, draw_tuples
from embeddings.tuple_sampling import TupleConfig as TupleConfig

FORMAT: Literal["tuples-1"] = "tuples-1"
TUPLES, GRADES, QUERIES, REPORT = "tuples.npy", "grades.npy", "queries.parquet", "report.json"
#: Products between two calls of `progress`.
PROGRESS_PRODUCTS = 500
#: Tuples looked at together when they are counted.
CHUNK_TUPLES = 65_536

Progress = Callable[[str, int, int], None]


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
        if aisle_P[product] >= 0 and HIGH in grade_J:
            lenders.append(product)
            lent.append(query_J[grade_J == HIGH])
    donors = Donors.of(lent, aisle_P[lenders], aisle_count=aisle_count)

    positives: list[int] = []
    without_positives = 0
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
                if not grade_J.any():
                    without_positives += 1
                    continue
                generator = _generator_of(grades.product_ids[product].as_py(), seed)
                proxies = None
                if config.proxy_negatives and aisle_P[product] >= 0:
                    own_aisle = None if aisles is None else int(aisle_P[product])
                    proxies = ProxyQueries(donors, own_aisle, frozenset(query_J.tolist()), generator)
                rows, row_grades = draw_tuples(
                    query_J, grade_J, config=config, proxies=proxies, generator=generator, counts=counts
                )
                if rows:
                    positives.append(len(rows))
                    tuple_file.append(np.array([[product, *row] for row in rows]))
                    grade_file.append(np.array(row_grades))
        if not positives:
            raise RelevanceError(
                "no tuple can be made: no product has an HR or MR query that may be used together with a "
                "negative; check the grades, the masks and the aisles"
            )
        if progress is not None:
            progress("tuples", len(order), len(order))
        grades_NC = np.load(temporary / GRADES, mmap_mode="r")
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
            high_positives=int((grades_NC[:, 0] == HIGH).sum()),
            moderate_positives=int((grades_NC[:, 0] == MODERATE).sum()),
            mean_positives=float(np.mean(positives)),
            median_positives=float(np.median(positives)),
            most_positives=max(positives),
            negatives_of_high=_mix(grades_NC, HIGH),
            negatives_of_moderate=_mix(grades_NC, MODERATE),
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


def _mix(grades_NC: npt.NDArray[np.int8], positive_grade: int) -> NegativeMix:
    """Kinds of negatives, counted in pieces: memory stays flat in the number of tuples."""
    found = dict.fromkeys((IRRELEVANT, MODERATE, PROXY), 0)
    for start in range(0, len(grades_NC), CHUNK_TUPLES):
        part = grades_NC[start : start + CHUNK_TUPLES]
        negatives = part[part[:, 0] == positive_grade, 1:]
        for kind in found:
            found[kind] += int((negatives == kind).sum())
    return NegativeMix(irrelevant=found[IRRELEVANT], moderate=found[MODERATE], proxy=found[PROXY])


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


def _ids_sha256(ids: pa.Array) -> str:
    return hashlib.sha256("\0".join(map(str, ids.to_pylist())).encode()).hexdigest()


def _read_report(folder: Path) -> TupleReport:
    path = folder / REPORT
    try:
        return TupleReport.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RelevanceError(f"{folder} holds no tuples: {path} cannot be read: {error}") from None


def _refuse_foreign_folder(folder: Path) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        ours = str(report["format"]).startswith("tuples-")
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise RelevanceError(
            f"{folder} holds something other than tuples and is left as it is; choose another path"
        )
