"""Drawing the positives and negatives of one product (paper section 3.2.2); `relevance` runs it over all.

Shapes: J queries graded for the product, R positives of one grade, K negatives of each, D donor products.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from embeddings.relevance.grades import HIGH, IRRELEVANT, MODERATE
from features.artifacts import StrictModel

#: Stands in place of a grade: a highly relevant query of a product of another aisle.
PROXY = -1
#: Random proxies looked at for one tuple before all that there are get listed.
PROXY_TRIES = 64
#: Random proxies drawn in one call.
PROXY_BLOCK = 128


class TupleConfig(StrictModel):
    """The sampling of section 3.2.2.

    `high_per_moderate` = 2 means 73 HR and 37 MR of 110 positives when there are enough of both. When MR
    queries run out, HR queries take their places. When HR queries run out there are two readings:
    "keep_ratio" takes one MR query for every two HR queries, rounded up and at least one, so that a product
    with MR queries alone has one positive (the paper's average of 50 positives is far below its 110, and HR
    queries are its rare kind); "fill" takes MR queries up to the maximum.
    """

    #: Most positive queries of a product.
    max_positives: Annotated[int, Field(ge=1)] = 110
    #: Highly relevant queries for each moderately relevant one.
    high_per_moderate: Annotated[int, Field(ge=1)] = 2
    #: What follows when highly relevant queries run out: "keep_ratio" or "fill" with moderate ones.
    short_of_high: Literal["keep_ratio", "fill"] = "keep_ratio"
    #: Negative queries beside each positive one.
    negatives: Annotated[int, Field(ge=1)] = 10
    #: Whether products short of irrelevant queries borrow good queries of other aisles.
    proxy_negatives: bool = True
    #: Beyond the paper: grades of a model are drawn from its probabilities instead of its most fitting ones.
    draw_grades: bool = False


def positive_counts(high: int, moderate: int, config: TupleConfig) -> tuple[int, int]:
    """How many of a product's `high` HR and `moderate` MR queries become positives; see `TupleConfig`."""
    most, ratio = config.max_positives, config.high_per_moderate
    chosen_high = min(high, max(1, most * ratio // (ratio + 1)))
    allowed = most if config.short_of_high == "fill" else max(1, -(-chosen_high // ratio))
    chosen_moderate = min(moderate, allowed, most - chosen_high)
    return min(high, most - chosen_moderate), chosen_moderate


@dataclass(frozen=True, eq=False)
class Donors:
    """Highly relevant queries of all products that may lend them as proxies, grouped by aisle.

    `query_start_D1` cuts `query` into one part for each donor; donors of aisle a stand at
    `aisle_start[a] : aisle_start[a + 1]`.
    """

    query: npt.NDArray[np.int64]
    query_start_D1: npt.NDArray[np.int64]
    aisle_start: npt.NDArray[np.int64]

    @classmethod
    def of(
        cls,
        high_queries: Sequence[npt.NDArray[np.integer]],
        aisle_D: npt.NDArray[np.int64],
        *,
        aisle_count: int,
    ) -> "Donors":
        """Donors with their HR queries and aisle numbers; those of one aisle keep their order."""
        order = np.argsort(aisle_D, kind="stable")
        parts = [high_queries[donor] for donor in order]
        return cls(
            query=np.concatenate([*parts, np.empty(0, np.int64)]).astype(np.int64),
            query_start_D1=np.cumsum([0, *(len(part) for part in parts)]),
            aisle_start=np.searchsorted(aisle_D[order], np.arange(aisle_count + 1)),
        )


@dataclass(eq=False)
class ProxyQueries:
    """Proxies for one product: of a random donor outside its aisle a random HR query.

    Queries that have a grade with the product itself, in this or another spelling, are never proxies: an HR
    or MR one would be a false negative, and an IR one is a negative of its own right. `aisle` None excludes
    no aisle.
    """

    donors: Donors
    aisle: int | None
    #: Groups of the queries graded for the product.
    graded: frozenset[int]
    generator: np.random.Generator
    #: Spellings of one query have one group; None where each query is its own.
    group_Q: npt.NDArray[np.int64] | None = None
    _stream: Iterator[int] = field(init=False)
    _all: npt.NDArray[np.int64] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._stream = self._random_queries()

    def draw(self, count: int) -> list[int]:
        """`count` proxies, no two of one group, or as many as there are."""
        found: dict[int, int] = {}
        for query in islice(self._stream, PROXY_TRIES + 2 * count):
            group = int(self._groups(query))
            if group not in self.graded:
                found.setdefault(group, query)
                if len(found) == count:
                    return list(found.values())
        every = self._every_query()
        others = every[~np.isin(self._groups(every), list(found))]
        for query in self.generator.permutation(others).tolist():
            if len(found) == count:
                break
            found.setdefault(int(self._groups(query)), query)
        return list(found.values())

    def _groups(self, query: Any) -> Any:
        """Group of a query, or of each of an array."""
        return query if self.group_Q is None else self.group_Q[query]

    def _excluded(self) -> tuple[int, int]:
        if self.aisle is None:
            return 0, 0
        return int(self.donors.aisle_start[self.aisle]), int(self.donors.aisle_start[self.aisle + 1])

    def _random_queries(self) -> Iterator[int]:
        first, end = self._excluded()
        start = self.donors.query_start_D1
        outside = len(start) - 1 - (end - first)
        while outside:
            donor = self.generator.integers(outside, size=PROXY_BLOCK)
            donor = np.where(donor >= first, donor + end - first, donor)
            yield from self.donors.query[self.generator.integers(start[donor], start[donor + 1])].tolist()

    def _every_query(self) -> npt.NDArray[np.int64]:
        if self._all is None:
            first, end = self.donors.query_start_D1[list(self._excluded())]
            outside = np.unique(np.concatenate([self.donors.query[:first], self.donors.query[end:]]))
            self._all = outside[~np.isin(self._groups(outside), list(self.graded))]
        return self._all


@dataclass(eq=False)
class NegativeCounts:
    """What drawing negatives met, summed over products."""

    #: Products without any positive, for which none are drawn.
    without_positives: int = 0
    #: Tuples with K irrelevant negatives of which a proxy replaced one; and where no proxy exists.
    swapped: int = 0
    not_swapped: int = 0
    #: Tuples that proxies completed.
    filled: int = 0
    #: Negatives that repeat one of their tuple, as nothing else exists.
    repeated: int = 0
    #: Positives without a single negative.
    left_out: int = 0


def draw_tuples(
    query_J: npt.NDArray[np.integer],
    grade_J: npt.NDArray[np.integer],
    *,
    config: TupleConfig,
    proxies: ProxyQueries | None,
    generator: np.random.Generator,
    counts: NegativeCounts,
    group_J: npt.NDArray[np.integer] | None = None,
) -> tuple[list[list[int]], list[list[int]]]:
    """Tuples of one product, HR positives first: [R, 1 + K] query indices, positive first, and their grades.

    Negatives of an HR positive are the product's MR and IR queries, those of an MR positive its IR queries,
    drawn without repetition. `group_J` joins the spellings of one query: its best grade decides what it is a
    negative of, and a tuple has one of its spellings at most. `proxies` None leaves proxies out. Positives
    without any negative are left out.
    """
    wanted = positive_counts(int((grade_J == HIGH).sum()), int((grade_J == MODERATE).sum()), config)
    _, group_J = np.unique(query_J if group_J is None else group_J, return_inverse=True)
    best_G = np.full(len(query_J), IRRELEVANT, grade_J.dtype)
    np.maximum.at(best_G, group_J, grade_J)
    rows: list[list[int]] = []
    grades: list[list[int]] = []
    for positive_grade, number in zip((HIGH, MODERATE), wanted, strict=True):
        if not number:
            continue
        positives = generator.choice(query_J[grade_J == positive_grade], number, replace=False)
        pool = np.flatnonzero(best_G[group_J] < positive_grade)
        noise_RL = _least_of_each_group(generator.random((number, len(pool))), group_J[pool])
        drawn_RL = np.argsort(noise_RL, axis=1)[:, : min(config.negatives, len(np.unique(group_J[pool])))]
        drawn_RL = pool[drawn_RL]
        drawn = zip(positives.tolist(), query_J[drawn_RL].tolist(), grade_J[drawn_RL].tolist(), strict=True)
        for positive, row, grade in drawn:
            _complete(row, grade, config.negatives, proxies, generator, counts)
            if row:
                rows.append([positive, *row])
                grades.append([positive_grade, *grade])
    return rows, grades


def _least_of_each_group(
    noise_RL: npt.NDArray[np.float64], group_L: npt.NDArray[np.integer]
) -> npt.NDArray[np.float64]:
    """The same numbers with infinity in place of all but the least of each group, row by row."""
    order_L = np.argsort(group_L, kind="stable")
    _, start_G, place_L = np.unique(group_L[order_L], return_index=True, return_inverse=True)
    if len(start_G) == len(group_L):
        return noise_RL
    sorted_RL = noise_RL[:, order_L]
    least_RG = np.minimum.reduceat(sorted_RL, start_G, axis=1)
    noise_RL[:, order_L] = np.where(sorted_RL == least_RG[:, place_L], sorted_RL, np.inf)
    return noise_RL


def _complete(
    row: list[int],
    grade: list[int],
    size: int,
    proxies: ProxyQueries | None,
    generator: np.random.Generator,
    counts: NegativeCounts,
) -> None:
    """Bring negatives and their grades to `size` in place, proxies first; empty if there are none."""
    if proxies is not None and len(row) < size:
        found = proxies.draw(size - len(row))
        row += found
        grade += [PROXY] * len(found)
        counts.filled += len(row) == size
    elif proxies is not None and not any(grade):
        found = proxies.draw(1)
        counts.swapped += len(found)
        counts.not_swapped += not found
        for query in found:
            place = int(generator.integers(size))
            row[place], grade[place] = query, PROXY
    lacking = size - len(row)
    if not row:
        counts.left_out += 1
    elif lacking:
        counts.repeated += lacking
        # Each is repeated as often as any other, give or take one.
        order = generator.permutation(len(row)).tolist() * (lacking // len(row) + 1)
        row += [row[place] for place in order[:lacking]]
        grade += [grade[place] for place in order[:lacking]]
