"""Products that people graded below the one a query is trained to find: the hardest negatives there are.

Shapes: G graded pairs, Q queries, P products of the catalogue, B positive pairs of a batch.
"""

from typing import Self

import numpy as np
import numpy.typing as npt

from embeddings.relevance.grades import Grades


class LowerGraded:
    """The graded products of each query; spellings of one query share theirs, and the best grade counts."""

    def __init__(
        self,
        product_G: npt.NDArray[np.integer],
        group_G: npt.NDArray[np.integer],
        grade_G: npt.NDArray[np.integer],
        group_Q: npt.NDArray[np.integer],
    ) -> None:
        """Distinct pairs of a product and a group of queries, with their grades."""
        order_G = np.lexsort((product_G, group_G))
        self._product_G, self._grade_G = product_G[order_G], grade_G[order_G]
        self._group_G, self._group_Q = group_G[order_G], group_Q

    @classmethod
    def of(cls, grades: Grades, group_Q: npt.NDArray[np.integer], train_P: npt.NDArray[np.bool_]) -> Self:
        """Those among the products that may be trained on.

        Args:
            group_Q: group of each query of `grades`.
        """
        product_G, group_G, grade_G = best_of_spellings(grades, group_Q)
        kept_G = train_P[product_G]
        return cls(product_G[kept_G], group_G[kept_G], grade_G[kept_G], group_Q)

    @property
    def products(self) -> npt.NDArray[np.int64]:
        """All products that can be drawn."""
        return np.unique(self._product_G).astype(np.int64)

    def draw(
        self,
        query_B: npt.NDArray[np.integer],
        grade_B: npt.NDArray[np.integer],
        count: int,
        *,
        seed: tuple[int, ...],
    ) -> npt.NDArray[np.int64]:
        """For each pair up to `count` products with a lower grade for its query, all together once.

        A pair's draw depends on `seed` and its query alone, not on the pairs beside it.
        """
        found: list[npt.NDArray[np.integer]] = []
        for query, grade in zip(query_B.tolist(), grade_B.tolist(), strict=True):
            group = self._group_Q[query]
            start, end = np.searchsorted(self._group_G, (group, group + 1))
            lower = self._product_G[start:end][self._grade_G[start:end] < grade]
            if len(lower) > count:
                lower = np.random.default_rng((*seed, query)).choice(lower, count, replace=False)
            found.append(lower)
        return np.unique(np.concatenate([*found, np.empty(0, np.int64)])).astype(np.int64)


def best_of_spellings(
    grades: Grades, group_Q: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.integer], npt.NDArray[np.integer]]:
    """Product, group of queries and grade of each graded pair; of several spellings the best grade counts."""
    group_G = group_Q[grades.query_G]
    order_G = np.lexsort((grades.grade_G, group_G, grades.product_G))
    product_G, group_G, grade_G = grades.product_G[order_G], group_G[order_G], grades.grade_G[order_G]
    last_G = (np.diff(product_G, append=-1) != 0) | (np.diff(group_G, append=-1) != 0)
    return product_G[last_G], group_G[last_G], grade_G[last_G]
