"""Which of people's grades are suspicious: confident learning on out-of-fold probabilities.

A grader with the features of `stack` is fitted on all folds but one and says what it thinks of that one.
Folds hold whole intents, so no grade speaks for itself, nor for another product of its query. A pair is
suspicious where another grade is more probable than the given one, and as probable as it is on average where
people gave it (Northcutt, Jiang and Chuang 2021, https://doi.org/10.1613/jair.1.12125, section 3.1):

    threshold of grade j = mean of p_j over the pairs graded j

Shapes: N pairs, F features, C = 3 grades.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embeddings.grading.classifiers import Classifier, fit, probabilities
from embeddings.grading.pairs import GradedPairs, GradingError
from embeddings.relevance.grades import GRADES
from features.artifacts import replaced_file
from features.progress import Progress, silent

FloatArray = npt.NDArray[np.float64]

#: Columns of the file; `dashclip grade import` takes its answers in place of the given grades.
COLUMNS = ("query", "product_id", "text", "given", "suggested", "probability", "grade")


@dataclass(frozen=True, eq=False)
class Audit:
    """What the folds say of N graded pairs."""

    probability_NC: FloatArray
    #: The grade that stands against the given one, -1 where nothing does.
    suggested_N: npt.NDArray[np.int64]
    #: Positions of the suspicious pairs, the most suspicious first.
    rows: npt.NDArray[np.int64]


def audit_grades(
    graded: GradedPairs,
    features_NF: npt.NDArray[np.floating],
    *,
    folds: int = 5,
    classifier: Classifier = "boosting",
    seed: int = 0,
    progress: Progress = silent,
) -> Audit:
    """Look at every grade, whatever the role of its query: each is in one fold.

    Raises:
        GradingError: there are fewer intents than folds, or the others of a fold lack a grade.
    """
    fold_N = folds_of(graded.intent_N, folds=folds, seed=seed)
    probability_NC = np.empty((len(graded), len(GRADES)))
    for fold in range(folds):
        progress("folds", fold, folds)
        held = fold_N == fold
        try:
            arrays = fit(classifier, features_NF[~held], graded.grade_N[~held], seed=seed)
        except ValueError as error:
            raise GradingError(f"{error}; the folds but one have {int((~held).sum()):,} pairs") from None
        probability_NC[held] = probabilities(arrays, features_NF[held])
    progress("folds", folds, folds)
    suggested_N = suspected(probability_NC, graded.grade_N)
    rows = np.flatnonzero(suggested_N >= 0)
    margin = probability_NC[rows, suggested_N[rows]] - probability_NC[rows, graded.grade_N[rows]]
    return Audit(probability_NC, suggested_N, rows[np.argsort(-margin, kind="stable")])


def folds_of(intent_N: npt.NDArray[np.integer], *, folds: int, seed: int) -> npt.NDArray[np.int64]:
    """The fold [N] of each pair, that of its intent; folds have equally many intents, but for one.

    Raises:
        GradingError: there are fewer than two folds, or fewer intents than folds.
    """
    intents, place_N = np.unique(intent_N, return_inverse=True)
    if not 2 <= folds <= len(intents):
        raise GradingError(
            f"folds must be at least 2 and at most the {len(intents):,} intents of the graded queries, "
            f"got {folds}"
        )
    return (np.random.default_rng(seed).permutation(len(intents)) % folds)[place_N]


def suspected(probability_NC: FloatArray, grade_N: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """The grade [N] that stands against the given one, -1 where none does.

    Of the grades that reach their thresholds the most probable one counts.

    >>> suspected(np.array([[0.2, 0.2, 0.6], [0.1, 0.2, 0.7], [0.7, 0.2, 0.1]]), np.array([2, 0, 0])).tolist()
    [-1, 2, -1]
    """
    given_NC = np.eye(len(GRADES), dtype=bool)[grade_N]
    count_C = given_NC.sum(axis=0)
    threshold_C = np.where(count_C > 0, (probability_NC * given_NC).sum(axis=0) / count_C.clip(1), np.inf)
    confident_NC = np.where(probability_NC >= threshold_C, probability_NC, -1.0)
    best_N = confident_NC.argmax(axis=1)
    rows = np.arange(len(grade_N))
    beaten_N = confident_NC[rows, best_N] > probability_NC[rows, grade_N]
    return np.where(beaten_N, best_N, -1)


def write_audit(audit: Audit, graded: GradedPairs, out: Path, *, count: int) -> int:
    """Write the `count` most suspicious pairs for people to grade again; how many there are."""
    rows = audit.rows[:count]
    pairs = graded.pairs.take(rows)
    with replaced_file(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row, query, product, text in zip(
            rows.tolist(), pairs.queries, pairs.product_ids.to_pylist(), pairs.texts, strict=True
        ):
            given, suggested = int(graded.grade_N[row]), int(audit.suggested_N[row])
            probability = f"{audit.probability_NC[row, suggested]:.3f}"
            writer.writerow([query, product, text, given, suggested, probability, ""])
    return len(rows)
