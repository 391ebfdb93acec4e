"""Hard negatives of one product: which of its nearest queries may serve, and where they go in a tuple.

Beyond the paper, whose negatives are random. A near neighbour is often a relevant query that nobody graded,
so each one has to earn its place by the grades; `mining` runs this over all products.

Shapes: J queries graded for the product, M neighbours of it, N its tuples, K negatives of each; A aisles,
Q queries, G graded pairs.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from embeddings.grades import HIGH, IRRELEVANT, MODERATE, Count, Grades, IntArray
from embeddings.tuple_sampling import PROXY


class MiningConfig(BaseModel):
    """How hard negatives are found, and when in training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Nearest queries of a product that are looked at.
    neighbours: Annotated[int, Field(ge=1)] = 100
    #: Share of a tuple's negatives that the hardest usable neighbours become.
    mined_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    #: How neighbours are searched: "hnsw" is approximate, for catalogues too large for "exact".
    index: Literal["exact", "hnsw"] = "exact"
    #: Share of the epochs with random negatives, before anything is mined.
    after_share: Annotated[float, Field(gt=0, lt=1)] = 0.5

    def first_epochs(self, epochs: int) -> int:
        """Epochs before mining; at least one on either side of it.

        Raises:
            ValueError: there are fewer than two epochs to share.
        """
        if epochs < 2:
            raise ValueError(f"mining needs at least 2 epochs, one before it and one after, got {epochs}")
        return min(max(1, round(self.after_share * epochs)), epochs - 1)


class MiningReport(BaseModel):
    """What mining met. Every neighbour is one of irrelevant, moderate, proxy, relevant, unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: MiningConfig
    seed: int
    #: Products with tuples, and those of them without a vector, for which nothing can be mined.
    products: Count
    products_without_vector: Count
    #: Queries that were searched, and those that may be used but have no vector.
    queries: Count
    queries_without_vector: Count
    neighbours: Count
    #: Graded for the product: IR serves any positive, MR those that are HR.
    irrelevant_neighbours: Count
    moderate_neighbours: Count
    #: Not graded for the product, but far enough from all that its aisle offers.
    proxy_neighbours: Count
    #: Dropped: HR for the product; and not graded, with nothing that says it is irrelevant.
    dropped_as_relevant: Count
    dropped_as_unknown: Count
    #: Negatives that mining put in place of others, by kind; and hard ones that the tuples had already.
    mined_irrelevant: Count
    mined_moderate: Count
    mined_proxy: Count
    already_there: Count
    mean_mined_per_tuple: float
    #: Tuples for which there were fewer usable neighbours than places.
    tuples_short: Count
    tuples_unchanged: Count


class HardNegatives(NamedTuple):
    """Usable neighbours of one product, hardest first: query, and its grade or -1 for a proxy."""

    query_M: IntArray
    kind_M: npt.NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class AisleRelevance:
    """Which queries are relevant in which aisle: what may serve a product without a grade of its own."""

    #: Sorted `aisle * queries + query` of all pairs with a grade above 0.
    key: npt.NDArray[np.int64]
    #: Whether a product of a known aisle has this query as HR.
    wanted_Q: npt.NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        grades: Grades,
        aisle_P: npt.NDArray[np.int64],
        product_mask: npt.NDArray[np.bool_],
    ) -> Self:
        """From the grades of the masked-in products; `aisle_P` is -1 where an aisle is unknown."""
        aisle_G = aisle_P[grades.product_G]
        known_G = product_mask[grades.product_G] & (aisle_G >= 0)
        relevant_G = known_G & (grades.grade_G >= MODERATE)
        wanted_Q = np.zeros(len(grades.queries), np.bool_)
        wanted_Q[grades.query_G[known_G & (grades.grade_G == HIGH)]] = True
        key = aisle_G[relevant_G] * len(grades.queries) + grades.query_G[relevant_G]
        return cls(np.unique(key), wanted_Q)

    def cannot_be_relevant(self, query_M: IntArray, aisle: int) -> npt.NDArray[np.bool_]:
        """HR for a product of another aisle, and neither HR nor MR for any of this one.

        The paper's proxies may be relevant to other products of the aisle: rare for random queries, but the
        rule among near neighbours. Nothing is known to be irrelevant for a product of unknown aisle (-1).
        """
        if aisle < 0:
            return np.zeros(len(query_M), np.bool_)
        wanted_key_M = aisle * len(self.wanted_Q) + query_M.astype(np.int64)
        place_M = np.searchsorted(self.key, wanted_key_M)
        here_M = place_M < len(self.key)
        here_M[here_M] = self.key[place_M[here_M]] == wanted_key_M[here_M]
        # HR somewhere and not here: then in another aisle.
        return self.wanted_Q[query_M] & ~here_M


@dataclass(eq=False)
class MiningCounts:
    """What mining met, summed over products; names as in `MiningReport`."""

    neighbours: int = 0
    irrelevant_neighbours: int = 0
    moderate_neighbours: int = 0
    proxy_neighbours: int = 0
    dropped_as_relevant: int = 0
    dropped_as_unknown: int = 0
    mined_irrelevant: int = 0
    mined_moderate: int = 0
    mined_proxy: int = 0
    already_there: int = 0
    tuples_short: int = 0
    tuples_unchanged: int = 0


def label_neighbours(
    neighbour_M: IntArray,
    query_J: IntArray,
    grade_J: npt.NDArray[np.int8],
    *,
    aisles: AisleRelevance,
    aisle: int,
    counts: MiningCounts,
) -> HardNegatives:
    """The neighbours of a product that may be negatives, in their order.

    Args:
        query_J: the product's graded queries, ascending.
    """
    place_M = np.searchsorted(query_J, neighbour_M)
    graded_M = place_M < len(query_J)
    graded_M[graded_M] = query_J[place_M[graded_M]] == neighbour_M[graded_M]
    kind_M = np.full(len(neighbour_M), PROXY, np.int8)
    kind_M[graded_M] = grade_J[place_M[graded_M]]
    proxy_M = ~graded_M & aisles.cannot_be_relevant(neighbour_M, aisle)
    usable_M = proxy_M | (graded_M & (kind_M < HIGH))

    counts.neighbours += len(neighbour_M)
    counts.irrelevant_neighbours += int((kind_M == IRRELEVANT).sum())
    counts.moderate_neighbours += int((kind_M == MODERATE).sum())
    counts.proxy_neighbours += int(proxy_M.sum())
    counts.dropped_as_relevant += int((kind_M == HIGH).sum())
    counts.dropped_as_unknown += int((~graded_M & ~proxy_M).sum())
    return HardNegatives(neighbour_M[usable_M], kind_M[usable_M])


def place_hard_negatives(
    tuples_NC: npt.NDArray[np.int32],
    grades_NC: npt.NDArray[np.int8],
    hard: HardNegatives,
    *,
    mined_share: float,
    generator: np.random.Generator,
    counts: MiningCounts,
) -> None:
    """Make the hardest usable neighbours negatives of each tuple of a product, in place.

    Of K negatives `mined_share` become the hardest that the positive's grade allows: IR and proxies for any,
    MR for an HR positive alone. Those that a tuple has already stay where they are; the others go to random
    places among the rest. So no query comes twice that did not before.
    """
    most = round(mined_share * (tuples_NC.shape[1] - 2))
    # Plain lists: a tuple is too short for array functions to pay.
    every = list(zip(hard.query_M.tolist(), hard.kind_M.tolist(), strict=True))
    hardest = {
        grade: [(query, kind) for query, kind in every if kind < grade][:most] for grade in (MODERATE, HIGH)
    }
    for row, (negatives, grade) in enumerate(
        zip(tuples_NC[:, 2:].tolist(), grades_NC[:, 0].tolist(), strict=True)
    ):
        there = set(negatives)
        mined = [(query, kind) for query, kind in hardest[grade] if query not in there]
        counts.tuples_short += len(hardest[grade]) < most
        counts.already_there += len(hardest[grade]) - len(mined)
        counts.tuples_unchanged += not mined
        if not mined:
            continue
        staying = {query for query, _ in hardest[grade]} & there
        free = []
        for place, query in enumerate(negatives):
            if query in staying:
                staying.remove(query)  # a repetition of it is a free place, too
            else:
                free.append(place)
        for choice, (query, kind) in zip(generator.permutation(len(free)).tolist(), mined, strict=False):
            tuples_NC[row, 2 + free[choice]] = query
            grades_NC[row, 1 + free[choice]] = kind
            counts.mined_irrelevant += kind == IRRELEVANT
            counts.mined_moderate += kind == MODERATE
            counts.mined_proxy += kind == PROXY
