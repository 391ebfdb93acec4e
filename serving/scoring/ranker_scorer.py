"""From arrays of a few requests to probabilities: the one door to a compiled ranker.

A compiled program trusts its inputs: a wrong type is read as other numbers, a row too large aborts the
request or the process, a negative one silently reads the end of the table. All of it is checked here.

Shapes: R requests, N candidates in all, H purchases of the longest history, D width of the vectors.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from serving.package.tables import ServingTable, check_rows
from serving.scoring.request_ranker import RankerShape

#: A compiled or plain `RequestRanker`: its inputs in order, to probabilities.
Program = Callable[[list[torch.Tensor]], torch.Tensor]


class ScoringError(ValueError):
    """Inputs or tables that do not fit the ranker: a mistake of the caller, not of its client."""


@dataclass(frozen=True, eq=False)
class ScoringBatch:
    """R requests with N candidates in all; what the ranker does not read may be None.

    Attributes:
        request_dense_RF: float32, columns `RankerShape.request_dense`.
        request_sparse_RS: int32 rows, columns `RankerShape.request_sparse`.
        candidate_dense_NF, candidate_sparse_NS: likewise, one row for each candidate.
        request_of_N: int64, the request of each candidate.
        query_RD: float32, zeros for a query without a vector.
        history_RH: int64 rows of the product vectors, 0 where there is none; the order does not matter. As
            in training, purchases whose product has no vector are dropped *before* the history is capped.
        product_N: int64 rows of the product vectors, 0 for a product without one.
    """

    request_dense_RF: NDArray[np.float32]
    request_sparse_RS: NDArray[np.int32]
    candidate_dense_NF: NDArray[np.float32]
    candidate_sparse_NS: NDArray[np.int32]
    request_of_N: NDArray[np.int64]
    query_RD: NDArray[np.float32] | None = None
    history_RH: NDArray[np.int64] | None = None
    product_N: NDArray[np.int64] | None = None

    @classmethod
    def joined(cls, batches: Sequence[Self]) -> Self:
        """Several batches of one request each as one; a history ends in zeros where another is longer."""
        if len(batches) == 1:
            return batches[0]
        return cls(
            request_dense_RF=np.concatenate([batch.request_dense_RF for batch in batches]),
            request_sparse_RS=np.concatenate([batch.request_sparse_RS for batch in batches]),
            candidate_dense_NF=np.concatenate([batch.candidate_dense_NF for batch in batches]),
            candidate_sparse_NS=np.concatenate([batch.candidate_sparse_NS for batch in batches]),
            request_of_N=np.repeat(np.arange(len(batches)), [len(batch.request_of_N) for batch in batches]),
            query_RD=_concatenated([batch.query_RD for batch in batches]),
            history_RH=_padded([batch.history_RH for batch in batches if batch.history_RH is not None]),
            product_N=_concatenated([batch.product_N for batch in batches]),
        )

    def cut(self, first: int, end: int) -> Self:
        """Candidates first..end - 1, which lie request by request, with the requests that bring them."""
        of_N = self.request_of_N[first:end]
        candidates, requests = slice(first, end), slice(int(of_N[0]), int(of_N[-1]) + 1)
        return replace(
            self,
            request_dense_RF=self.request_dense_RF[requests],
            request_sparse_RS=self.request_sparse_RS[requests],
            candidate_dense_NF=self.candidate_dense_NF[candidates],
            candidate_sparse_NS=self.candidate_sparse_NS[candidates],
            request_of_N=of_N - of_N[0],
            query_RD=None if self.query_RD is None else self.query_RD[requests],
            history_RH=None if self.history_RH is None else self.history_RH[requests],
            product_N=None if self.product_N is None else self.product_N[candidates],
        )


class RankerScorer:
    """A program bound to its tables. New tables need a new scorer, which costs nothing; no new program."""

    def __init__(
        self,
        program: Program,
        shape: RankerShape,
        *,
        tables: Mapping[str, ServingTable],
        vectors: ServingTable | None = None,
        projections: ServingTable | None = None,
    ) -> None:
        """Bind.

        Args:
            tables: the table of each sparse column.
            vectors: the product vectors, if the ranker reads any.
            projections: `serving.packaging.from_ranker.product_projections` of them, if the ranker is
                `projected`.

        Raises:
            ScoringError: a table is missing, or of another width or type than the program was made for.
        """
        self.shape = shape
        self._program = program
        self._tables = table_inputs(shape, tables=tables, vectors=vectors, projections=projections)
        self._vector_rows = vectors.rows if vectors else 0
        self._sparse_rows = {
            part: (names, np.array([tables[name].rows for name in names], np.uint32))
            for part, names in (
                ("request_sparse", shape.request_sparse),
                ("candidate_sparse", shape.candidate_sparse),
            )
        }
        self._arrays = array_inputs(shape)

    def score(self, batch: ScoringBatch) -> NDArray[np.float32]:
        """Probabilities of a click [N].

        Raises:
            ScoringError: an array is missing, or of another type or shape than it must be.
            TableError: a row is not in its table.
        """
        counts = {"R": len(batch.request_dense_RF), "N": len(batch.request_of_N)}
        inputs = list(self._tables)
        for name, spec in self._arrays.items():
            array = spec.take(batch, counts)
            if name in self._sparse_rows:
                self._check_sparse(name, array)
            elif name in ("history", "product"):
                check_rows("the product vectors", array, self._vector_rows)
            elif name == "request_of":
                check_rows("the requests", array, counts["R"])
            inputs.append(torch.from_numpy(array))
        if counts["N"] == 0:
            return np.empty(0, np.float32)
        with torch.inference_mode():
            scores_N: NDArray[np.float32] = self._program(inputs).numpy()
        return scores_N

    def with_program(self, program: Program) -> Self:
        """The same tables, scored by another program of the same ranker."""
        other = copy.copy(self)
        other._program = program
        return other

    def warm_up(self, counts: Iterable[int]) -> None:
        """Score nothing in particular, in such numbers: what is made once for each is made now."""
        for count in counts:
            sizes = {"R": 1, "N": count, "H": 1}
            arrays = [
                torch.from_numpy(np.zeros([sizes.get(str(axis), axis) for axis in spec.axes], spec.dtype))
                for spec in self._arrays.values()
            ]
            with torch.inference_mode():
                self._program([*self._tables, *arrays])

    def _check_sparse(self, part: str, rows_XS: NDArray[np.integer]) -> None:
        names, count_S = self._sparse_rows[part]
        if not (rows_XS.view(np.uint32) >= count_S).any():  # without its sign a negative row is beyond all
            return
        for name, count, rows_X in zip(names, count_S.tolist(), rows_XS.T, strict=True):
            check_rows(f"the table of {name!r}", rows_X, count)


def _concatenated(parts: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    """None where no request has any."""
    present = [part for part in parts if part is not None]
    return np.concatenate(present) if present else None


def _padded(histories: Sequence[NDArray[np.int64]]) -> NDArray[np.int64] | None:
    """Histories [1, H] of one request each as [R, H] with the longest one's H."""
    if not histories:
        return None
    padded_RH = np.zeros((len(histories), max(history.shape[1] for history in histories)), np.int64)
    for request, history in enumerate(histories):
        padded_RH[request, : history.shape[1]] = history
    return padded_RH


@dataclass(frozen=True)
class ArrayInput:
    """What an input that is not a table must be: the attribute of `ScoringBatch`, its type and its axes.

    An axis is "R", "N", "H" (at least 1) or a number of columns.
    """

    attribute: str
    dtype: type[np.generic]
    axes: tuple[str | int, ...]

    def take(self, batch: ScoringBatch, counts: Mapping[str, int]) -> NDArray[Any]:
        """The array of a batch of so many requests and candidates, contiguous.

        Raises:
            ScoringError: it is missing, or of another type or shape.
        """
        array = getattr(batch, self.attribute)
        if array is None or array.dtype != self.dtype or array.ndim != len(self.axes):
            raise self._error(array, counts)
        for axis, length in zip(self.axes, array.shape, strict=True):
            if axis != "H" and length != (counts[axis] if isinstance(axis, str) else axis):
                raise self._error(array, counts)
        if self.axes[-1] == "H" and array.shape[1] == 0:
            return np.zeros((len(array), 1), array.dtype)
        return array if array.flags.c_contiguous else np.ascontiguousarray(array)

    def _error(self, array: NDArray[Any] | None, counts: Mapping[str, int]) -> ScoringError:
        came = "None" if array is None else f"{array.dtype} of shape {array.shape}"
        shape = ", ".join(str(counts.get(str(axis), axis)) for axis in self.axes)
        return ScoringError(f"{self.attribute} must be {self.dtype.__name__} of shape ({shape}), got {came}")


def array_inputs(shape: RankerShape) -> dict[str, ArrayInput]:
    """The inputs behind the tables, by name and in the program's order."""
    dim = shape.semantic.dim if shape.semantic else 0
    specs = {
        "request_dense": ArrayInput("request_dense_RF", np.float32, ("R", len(shape.request_dense))),
        "request_sparse": ArrayInput("request_sparse_RS", np.int32, ("R", len(shape.request_sparse))),
        "query": ArrayInput("query_RD", np.float32, ("R", dim)),
        "history": ArrayInput("history_RH", np.int64, ("R", "H")),
        "candidate_dense": ArrayInput("candidate_dense_NF", np.float32, ("N", len(shape.candidate_dense))),
        "candidate_sparse": ArrayInput("candidate_sparse_NS", np.int32, ("N", len(shape.candidate_sparse))),
        "product": ArrayInput("product_N", np.int64, ("N",)),
        "request_of": ArrayInput("request_of_N", np.int64, ("N",)),
    }
    return {name: specs[name] for name in shape.inputs if name in specs}


def table_inputs(
    shape: RankerShape,
    *,
    tables: Mapping[str, ServingTable],
    vectors: ServingTable | None,
    projections: ServingTable | None = None,
) -> list[torch.Tensor]:
    """The inputs that are tables, in the program's order.

    Raises:
        ScoringError: a table is missing, or of another width or type than the program was made for.
    """
    wanted = [
        (f"the table of {name!r}", tables.get(name), shape.table_dims[name], False)
        for name in (*shape.request_sparse, *shape.candidate_sparse)
    ]
    if shape.semantic and shape.reads_products:
        wanted.append(("the table of product vectors", vectors, shape.semantic.dim, shape.quantised))
    if shape.projected:
        wanted.append(("the table of projections", projections, shape.projection_dim, False))
    inputs = []
    for what, table, dim, is_quantised in wanted:
        if table is None or table.dim != dim or (table.dtype == "int8") != is_quantised:
            came = f"{table.dtype}, {table.dim} wide" if table else "none"
            types = "int8" if is_quantised else "float16 or float32"
            raise ScoringError(f"{what} must be {types}, {dim} wide, got {came}")
        inputs += [table.values_MD] if table.scales_M2 is None else [table.values_MD, table.scales_M2]
    if projections and vectors and shape.projected and projections.rows != vectors.rows:
        raise ScoringError(
            f"projections must be those of the {vectors.rows:,} product vectors, got {projections.rows:,}"
        )
    return inputs
