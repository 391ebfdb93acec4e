"""The folder of training tuples: `tuples.npy`, `grades.npy`, `queries.parquet` and `report.json`.

A `.npy` file whose number of rows is known only at the end is written row by row, so memory does not grow.

Shapes: N tuples of C = 2 + K columns, K negatives of each.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from embeddings.relevance.grades import IRRELEVANT, MODERATE, Count, GradesReport, RelevanceError
from embeddings.relevance.sampling import PROXY, TupleConfig
from features.artifacts import StrictModel, json_file_has, verify_checksums


class RowFile:
    """Rows of one width and type, appended; closing writes their number into the header.

    `np.load`, also memory-mapped, gives the same array as if all rows had been saved at once.
    """

    def __init__(self, path: Path, width: int, dtype: np.dtype[Any]) -> None:
        self.rows = 0
        self._width, self._dtype = width, dtype
        self._file: IO[bytes] = path.open("w+b")
        self._header_bytes = self._write_header()

    def append(self, rows_NW: npt.NDArray[Any]) -> None:
        """Add rows, cast to the file's type."""
        assert rows_NW.shape[1:] == (self._width,), rows_NW.shape
        self._file.write(np.ascontiguousarray(rows_NW, self._dtype).tobytes())
        self.rows += len(rows_NW)

    def close(self) -> None:
        """Complete the header and close the file."""
        self._file.seek(0)
        header_bytes = self._write_header()
        self._file.close()
        # NumPy leaves room for any number of rows in the header, so that it can be written again in place.
        assert header_bytes == self._header_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write_header(self) -> int:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.rows, self._width),
        }
        np.lib.format.write_array_header_1_0(self._file, header)
        return self._file.tell()


FORMAT: Literal["tuples-1"] = "tuples-1"
TUPLES, TUPLE_GRADES, QUERIES, REPORT = "tuples.npy", "grades.npy", "queries.parquet", "report.json"
#: Tuples looked at together when they are counted.
CHUNK_TUPLES = 65_536


class NegativeMix(StrictModel):
    """How many negatives of each kind the tuples of one positive grade have."""

    irrelevant: Count = 0
    moderate: Count = 0
    proxy: Count = 0


class TupleReport(StrictModel):
    """What `build_tuples` made; stored as report.json."""

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
        """Open a folder of tuples; `product_ids` of the catalogue are checked when given.

        Raises:
            RelevanceError: a file is missing or changed, or the catalogue is not the one of the tuples.
        """
        folder = Path(folder)
        report = _read_report(folder)
        verify_checksums(
            folder, report.checksums, error=RelevanceError, advice="build the tuples again", contents=verify
        )
        if product_ids is not None and ids_sha256(product_ids) != report.product_ids_sha256:
            raise RelevanceError(
                f"the products of the catalogue are not those of {folder}, or in another order; "
                "build the tuples again"
            )
        return cls(
            folder=folder,
            tuples_NC=np.load(folder / TUPLES, mmap_mode="r"),
            grades_NC=np.load(folder / TUPLE_GRADES, mmap_mode="r"),
            queries=pq.read_table(folder / QUERIES).column("query").combine_chunks(),
            report=report,
        )


def negative_mix(grades_NC: npt.NDArray[np.int8], positive_grade: int) -> NegativeMix:
    """Kinds of negatives, counted in pieces: memory stays flat in the number of tuples."""
    found = dict.fromkeys((IRRELEVANT, MODERATE, PROXY), 0)
    for start in range(0, len(grades_NC), CHUNK_TUPLES):
        part = grades_NC[start : start + CHUNK_TUPLES]
        negatives = part[part[:, 0] == positive_grade, 1:]
        for kind in found:
            found[kind] += int((negatives == kind).sum())
    return NegativeMix(irrelevant=found[IRRELEVANT], moderate=found[MODERATE], proxy=found[PROXY])


def ids_sha256(ids: pa.Array) -> str:
    """Checksum of ids in their order."""
    return hashlib.sha256("\0".join(map(str, ids.to_pylist())).encode()).hexdigest()


def is_tuple_set(folder: Path) -> bool:
    """Whether `build_tuples` wrote this folder."""
    return json_file_has(folder / REPORT, "product_ids_sha256")


def _read_report(folder: Path) -> TupleReport:
    path = folder / REPORT
    try:
        return TupleReport.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RelevanceError(f"{folder} holds no tuples: {path} cannot be read: {error}") from None
