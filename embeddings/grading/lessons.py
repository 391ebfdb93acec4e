"""What a grader learns from: people's pairs of train queries, and stuffed titles beside them.

Shapes: N pairs.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embeddings.catalog.holdout import TRAIN, VALIDATION
from embeddings.grading.classifiers import refuse_missing_grades
from embeddings.grading.pairs import Catalogue, GradedPairs, GradingError, Pairs
from embeddings.grading.stuffing import STUFFINGS, foreign_pairs
from embeddings.grading.trained import TrainingConfig
from embeddings.relevance.grades import IRRELEVANT


@dataclass(frozen=True, eq=False)
class Lessons:
    """Pairs with grade and weight, those of people first; and people's pairs of validation queries."""

    pairs: Pairs
    grade_N: npt.NDArray[np.int64]
    weight_N: npt.NDArray[np.float64]
    #: Of people; the others are stuffed.
    people: int
    validation: GradedPairs

    @property
    def stuffed(self) -> int:
        """Pairs with a stuffed title."""
        return len(self.pairs) - self.people


def lessons_of(
    graded: GradedPairs, catalogue: Catalogue, config: TrainingConfig, *, most_pairs: int | None = None
) -> Lessons:
    """The lessons of people's grades; those of test queries are not looked at.

    Args:
        most_pairs: of people to learn from; where there are more, whole queries are drawn by the seed, the
            last one in part. So stuffed titles stay as rare beside them as they are in all.

    Raises:
        GradingError: a grade does not occur among the train queries' pairs.
    """
    train = graded.of_role(TRAIN)
    if most_pairs is not None and most_pairs < len(train):
        place_G = np.random.default_rng((config.seed, most_pairs)).permutation(int(train.group_N.max()) + 1)
        drawn = np.argsort(place_G[train.group_N], kind="stable")[:most_pairs]
        train = train.take(np.sort(drawn))
    try:
        refuse_missing_grades(train.grade_N)
    except ValueError as error:
        raise GradingError(f"{error}; the train queries have {len(train):,} graded pairs") from None
    stuffed = stuffed_pairs(graded, train, catalogue, config)
    return Lessons(
        pairs=train.pairs + stuffed,
        grade_N=np.concatenate([train.grade_N, np.full(len(stuffed), IRRELEVANT)]),
        weight_N=np.repeat([1.0, config.stuffed_weight], [len(train), len(stuffed)]),
        people=len(train),
        validation=graded.of_role(VALIDATION),
    )


def stuffed_pairs(
    graded: GradedPairs, part: GradedPairs, catalogue: Catalogue, config: TrainingConfig
) -> Pairs:
    """Foreign titles for the queries of a part, stuffed in each way in turn and not at all.

    No pair of `graded` is among them.
    """
    known = frozenset(zip(graded.pairs.queries, graded.pairs.product_ids.to_pylist(), strict=True))
    queries = sorted({*part.pairs.queries}) * config.stuffed_per_query
    generator = np.random.default_rng(config.seed)
    order = generator.permutation(len(queries)).tolist()
    found = part.pairs.take(np.array([], np.int64))
    for place, stuffing in enumerate(STUFFINGS):
        asked = [queries[row] for row in order[place :: len(STUFFINGS)]]
        found += foreign_pairs(asked, catalogue, stuffing=stuffing, generator=generator, graded=known)
    return found
