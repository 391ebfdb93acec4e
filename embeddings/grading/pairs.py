"""Pairs of a query and a product's text, and the pairs that people have graded.

Shapes: N pairs, P products of the catalogue.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embeddings.catalog.holdout import HoldoutConfig
from embeddings.catalog.inputs import read_product_texts
from embeddings.relevance.grades import RelevanceError, read_grades

#: What a person reads of a product, unless told otherwise.
TEXT_COLUMNS = ("title",)


class GradingError(ValueError):
    """Grading that cannot be done; the message says what is wrong, where, and what to do."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """N pairs. A text need not be that of its product: that is how a grader's gullibility is measured."""

    queries: list[str]
    texts: list[str]
    product_ids: pa.Array

    def __post_init__(self) -> None:
        if not len(self.queries) == len(self.texts) == len(self.product_ids):
            raise GradingError(
                "pairs must have one query, one text and one product each, "
                f"got {len(self.queries):,}, {len(self.texts):,} and {len(self.product_ids):,}"
            )

    def __len__(self) -> int:
        return len(self.queries)

    def take(self, rows: npt.NDArray[np.integer]) -> "Pairs":
        """The pairs at these positions, in that order."""
        places = rows.tolist()
        return Pairs(
            [self.queries[row] for row in places],
            [self.texts[row] for row in places],
            self.product_ids.take(pa.array(places, pa.int64())),
        )

    def __add__(self, other: "Pairs") -> "Pairs":
        ids = pa.concat_arrays([self.product_ids, other.product_ids])
        return Pairs(self.queries + other.queries, self.texts + other.texts, ids)


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Ids and texts of all products."""

    product_ids: pa.Array
    texts: list[str]

    @classmethod
    def read(cls, data: Path, columns: tuple[str, ...] = TEXT_COLUMNS) -> "Catalogue":
        """The products of a data folder.

        Raises:
            InputError: there are no products, or not with these columns.
        """
        ids, texts = read_product_texts(data, columns)
        return cls(ids.cast(pa.int64() if pa.types.is_integer(ids.type) else pa.string()), texts)

    def take(self, rows: npt.NDArray[np.integer]) -> "Catalogue":
        """The products at these positions, in that order."""
        return Catalogue(
            self.product_ids.take(pa.array(rows, pa.int64())), [self.texts[row] for row in rows.tolist()]
        )


@dataclass(frozen=True, eq=False)
class GradedPairs:
    """Pairs with the grades of people; `group_N` numbers their queries, `role_N` is that of stage 2.

    Queries that ask for the same thing have one number of `intent_N`.
    """

    pairs: Pairs
    grade_N: npt.NDArray[np.int64]
    group_N: npt.NDArray[np.int64]
    role_N: npt.NDArray[np.int8]
    intent_N: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.grade_N)

    def of_role(self, role: int) -> "GradedPairs":
        """The pairs whose queries have a role, groups numbered anew without gaps."""
        return self.take(np.flatnonzero(self.role_N == role))

    def take(self, rows: npt.NDArray[np.integer]) -> "GradedPairs":
        """The pairs at these positions, groups numbered anew without gaps."""
        group_N = np.unique(self.group_N[rows], return_inverse=True)[1].astype(np.int64)
        return GradedPairs(
            self.pairs.take(rows), self.grade_N[rows], group_N, self.role_N[rows], self.intent_N[rows]
        )


def read_graded_pairs(
    data: Path, holdout: HoldoutConfig, *, catalogue: Catalogue, sources: tuple[str, ...] = ("human",)
) -> GradedPairs:
    """What people say of pairs, with the split of queries that the encoders have.

    Raises:
        InputError: a table is missing.
        RelevanceError: a grade or id cannot be used, or nobody has graded anything.
    """
    grades = read_grades(data, sources=sources)
    if not len(grades):
        found = " or ".join(sources)
        raise RelevanceError(
            f"relevance of {data} has no grade of source {found}; a grader learns from people"
        )
    queries = grades.queries.to_pylist()
    return GradedPairs(
        pairs=Pairs(
            [queries[place] for place in grades.query_G.tolist()],
            [catalogue.texts[place] for place in grades.product_G.tolist()],
            grades.product_ids.take(pa.array(grades.product_G)),
        ),
        grade_N=grades.grade_G.astype(np.int64),
        group_N=grades.query_G.astype(np.int64),
        role_N=grades.query_roles(holdout)[grades.query_G],
        intent_N=grades.intent_groups()[grades.query_G],
    )
