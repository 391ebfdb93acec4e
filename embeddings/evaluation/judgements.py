"""What is known of queries and products: grades of pairs.

Grades: 2 highly relevant (HR), 1 moderately relevant, 0 irrelevant.

Shapes: P products, Q queries, K places, J judged pairs.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.integer]
BoolArray = npt.NDArray[np.bool_]

HIGHLY_RELEVANT = 2


@dataclass(frozen=True, eq=False)
class Judgements:
    """Grades of (query, product) pairs: query q has the pairs `start_Q[q]` to `start_Q[q + 1]`.

    `products` are the ids of the whole catalogue; `product_J` are rows of it, ascending for each query, and
    each pair appears once. `complete` says that every pair left out is known to have grade 0.
    """

    queries: pa.Array
    products: pa.Array
    start_Q: IntArray
    product_J: IntArray
    grade_J: IntArray
    complete: bool

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def query_J(self) -> IntArray:
        """Query of each pair."""
        return np.repeat(np.arange(len(self)), np.diff(self.start_Q))

    @classmethod
    def from_pairs(
        cls,
        *,
        queries: pa.Array,
        products: pa.Array,
        query_J: IntArray,
        product_J: IntArray,
        grade_J: IntArray,
        complete: bool = False,
    ) -> Self:
        """Judgements from pairs in any order: `query_J` and `product_J` index `queries` and `products`.

        Raises:
            ValueError: an index is out of range, a grade is not 0, 1 or 2, or a pair is there twice.
        """
        query_J, product_J = np.asarray(query_J, np.int64), np.asarray(product_J, np.int64)
        grade_J = np.asarray(grade_J)
        if not len(query_J) == len(product_J) == len(grade_J):
            raise ValueError(
                "query_J, product_J and grade_J must have one entry for each pair, "
                f"got {len(query_J)}, {len(product_J)} and {len(grade_J)}"
            )
        for name, index_J, size in (
            ("query_J", query_J, len(queries)),
            ("product_J", product_J, len(products)),
        ):
            if len(index_J) and (index_J.min() < 0 or index_J.max() >= size):
                raise ValueError(
                    f"{name} must lie in 0 ... {size - 1}, got {index_J.min()} ... {index_J.max()}"
                )
        if len(grade_J) and not np.isin(grade_J, (0, 1, 2)).all():
            raise ValueError(f"grades must be 0, 1 or 2, got {np.unique(grade_J).tolist()}")
        key_J = query_J * max(len(products), 1) + product_J
        order_J = np.argsort(key_J, kind="stable")
        repeated = np.flatnonzero(np.diff(key_J[order_J]) == 0)
        if len(repeated):
            pair = order_J[repeated[0]]
            raise ValueError(
                f"each pair must have one grade, but query {queries[query_J[pair]].as_py()!r} and product "
                f"{products[product_J[pair]].as_py()!r} have several ({len(repeated):,} repetitions); "
                "settle conflicting labels first"
            )
        return cls(
            queries=queries,
            products=products,
            start_Q=np.searchsorted(query_J[order_J], np.arange(len(queries) + 1)),
            product_J=product_J[order_J].astype(np.int32),
            grade_J=grade_J[order_J].astype(np.int8),
            complete=complete,
        )

    def select_queries(self, mask_Q: BoolArray) -> Self:
        """The same judgements for the masked queries only."""
        return self._select(mask_Q, np.ones(len(self.products), bool))

    def select_products(self, mask_P: BoolArray) -> Self:
        """A smaller catalogue of the masked products only; the queries stay, some perhaps without any HR."""
        return self._select(np.ones(len(self), bool), mask_P)

    def _select(self, mask_Q: BoolArray, mask_P: BoolArray) -> Self:
        for mask, size in ((mask_Q, len(self)), (mask_P, len(self.products))):
            if mask.dtype != bool or mask.shape != (size,):
                raise ValueError(f"a mask must have {size:,} booleans, got {mask.dtype} of {mask.shape}")
        query_J = self.query_J
        kept_J = mask_Q[query_J] & mask_P[self.product_J]
        return self.from_pairs(
            queries=self.queries.filter(pa.array(mask_Q)),
            products=self.products.filter(pa.array(mask_P)),
            query_J=(np.cumsum(mask_Q) - 1)[query_J[kept_J]],
            product_J=(np.cumsum(mask_P) - 1)[self.product_J[kept_J]],
            grade_J=self.grade_J[kept_J],
            complete=self.complete,
        )

    def grades_of(self, rows_QK: IntArray) -> npt.NDArray[np.int8]:
        """Grade of each ranked product; 0 where there is none (pair not judged, or place left empty)."""
        if not len(self.product_J):
            return np.zeros(rows_QK.shape, np.int8)
        stride = len(self.products)
        key_J = self.query_J * stride + self.product_J
        key_QK = np.arange(len(self))[:, None] * stride + rows_QK
        place_QK = np.minimum(np.searchsorted(key_J, key_QK), len(key_J) - 1)
        found_QK = (key_J[place_QK] == key_QK) & (rows_QK >= 0)
        return np.where(found_QK, self.grade_J[place_QK], 0).astype(np.int8)
