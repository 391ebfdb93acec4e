"""How far a grader agrees with people, and how easily it is fooled.

Every figure is computed under weights of queries, so that resamples of whole queries give intervals.

Shapes: N pairs, C = 3 grades, G queries, R resamples.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from embeddings.catalog.titles import normalise_text
from embeddings.evaluation.linear_probe import GroupedHits
from embeddings.grading.graders import Grader
from embeddings.grading.pairs import Catalogue
from embeddings.grading.stuffing import STUFFINGS, foreign_pairs
from embeddings.relevance.grades import GRADES, HIGH, MODERATE
from features.inputs.tables import open_table

FloatArray = npt.NDArray[np.float64]

#: Bins of confidence of the expected calibration error.
BINS = 10


@dataclass(frozen=True, eq=False)
class Graded:
    """What people and a grader say of N pairs."""

    grade_N: npt.NDArray[np.int64]
    predicted_N: npt.NDArray[np.int8]
    probability_NC: FloatArray
    group_N: npt.NDArray[np.int64]

    def take(self, rows: npt.NDArray[np.bool_]) -> "Graded":
        """The rows of a mask; groups keep their numbers."""
        return Graded(
            self.grade_N[rows], self.predicted_N[rows], self.probability_NC[rows], self.group_N[rows]
        )


def figures(graded: Graded, weights_RG: FloatArray) -> dict[str, FloatArray]:
    """Every figure [R] by name, when each pair weighs what its query does."""
    groups = weights_RG.shape[1]
    hits = GroupedHits(graded.grade_N, graded.predicted_N, graded.group_N)
    weights_RH = weights_RG[:, : hits.groups]
    f1_RC = hits.f1(weights_RH)
    found = {"macro_f1": hits.macro_f1(weights_RH), "accuracy": hits.accuracy(weights_RH)}
    found |= {f"f1_{name}": f1_RC[:, grade] for grade, name in enumerate(GRADES) if grade < hits.classes}
    found["kappa"] = hits.kappa(weights_RH, quadratic=False)
    found["qwk"] = hits.kappa(weights_RH, quadratic=True)
    truth_NC = np.eye(len(GRADES))[graded.grade_N]
    squares_N = ((graded.probability_NC - truth_NC) ** 2).sum(axis=1)
    count_G = np.bincount(graded.group_N, minlength=groups).astype(np.float64)
    pairs_R = weights_RG @ count_G
    found["brier"] = weights_RG @ np.bincount(graded.group_N, squares_N, groups) / pairs_R
    found["calibration_error"] = _calibration_error(graded, weights_RG) / pairs_R
    return found


def _calibration_error(graded: Graded, weights_RG: FloatArray) -> FloatArray:
    """Sum over bins of confidence of |hits - confidence|, of the most probable grade."""
    confidence_N = graded.probability_NC.max(axis=1)
    hit_N = graded.probability_NC.argmax(axis=1) == graded.grade_N
    bin_N = np.minimum((confidence_N * BINS).astype(np.int64), BINS - 1)
    groups = weights_RG.shape[1]
    cells = np.bincount(bin_N * groups + graded.group_N, hit_N - confidence_N, BINS * groups)
    return np.abs(weights_RG @ cells.reshape(BINS, groups).T).sum(axis=1)


def segments_of(queries: list[str]) -> dict[str, npt.NDArray[np.bool_]]:
    """Which pairs [N] belong to each segment of queries, by words and numbers of the query."""
    words_N = np.array([len(normalise_text(query).split()) for query in queries], np.int64)
    number_N = np.array([any(letter.isdigit() for letter in query) for query in queries], bool)
    return {
        "1 or 2 words": words_N <= 2,
        "3 words": words_N == 3,
        "4 words or more": words_N >= 4,
        "with a number": number_N,
        "without a number": ~number_N,
    }


def length_strata(texts: list[str]) -> dict[str, npt.NDArray[np.bool_]]:
    """Which pairs [N] have a text of each third of lengths, in words; a third without any is left out.

    >>> {name: rows.tolist() for name, rows in length_strata(["oak", "oak door", "red oak door"]).items()}
    {'1 word': [True, False, False], '2 words': [False, True, False], '3 words or more': [False, False, True]}
    """
    words_N = np.array([len(normalise_text(text).split()) for text in texts], np.int64)
    low, high = (int(limit) for limit in np.quantile(words_N, [1 / 3, 2 / 3], method="lower"))
    found = {_words(int(words_N.min()), low): words_N <= low}
    if high > low:
        found[_words(low + 1, high)] = (words_N > low) & (words_N <= high)
    if words_N.max() > high:
        found[f"{high + 1} words or more"] = words_N > high
    return found


def _words(least: int, most: int) -> str:
    count = f"{most}" if least >= most else f"{least} to {most}"
    return f"{count} word{'s' if most != 1 else ''}"


def signed_error(graded: Graded, weights_RG: FloatArray) -> FloatArray:
    """Mean of the grader's grade - people's [R]: above 0 it is too kind. NaN where nothing weighs."""
    groups = weights_RG.shape[1]
    error_N = graded.predicted_N.astype(np.float64) - graded.grade_N
    pairs_R = weights_RG @ np.bincount(graded.group_N, minlength=groups).astype(np.float64)
    sum_R = weights_RG @ np.bincount(graded.group_N, error_N, groups)
    return np.divide(sum_R, pairs_R, out=np.full(len(pairs_R), np.nan), where=pairs_R > 0)


def gullibility(
    grader: Grader,
    queries: list[str],
    catalogue: Catalogue,
    *,
    graded: frozenset[tuple[str, object]] = frozenset(),
    seed: int = 0,
) -> dict[str, float | None]:
    """Share of foreign products that are graded moderate or high, by where the query's words are put.

    None where the grader answers fewer than half of them, as a run does that never met such titles. An
    embedding table still has the vector of the title as it was, so its cosine is not fooled unless the grader
    has what made the table at hand (`FeatureGrader.reading`).
    """
    found: dict[str, float | None] = {}
    for stuffing in STUFFINGS:
        generator = np.random.default_rng(seed)
        pairs = foreign_pairs(queries, catalogue, stuffing=stuffing, generator=generator, graded=graded)
        probability_NC = grader.probabilities(pairs)
        answered_N = ~np.isnan(probability_NC).any(axis=1)
        found[stuffing] = None
        if 2 * answered_N.sum() >= len(pairs):
            found[stuffing] = float((grader.grades(probability_NC[answered_N]) >= MODERATE).mean())
    return found


def human_ceiling(data: Path) -> dict[str, float] | None:
    """How far two people agree on a pair that several graded, None where nobody's pair was graded twice.

    Of each such pair the first two grades of source "human" are compared, in the order of the table, each as
    label and as prediction.
    """
    table = open_table(data, "relevance", ["query", "product_id", "grade", "source"])
    content = table.to_table(columns=["query", "product_id", "grade", "source"])
    rows = content.filter(pc.equal(content.column("source"), "human"))
    first: dict[tuple[object, object], int] = {}
    second: dict[tuple[object, object], int] = {}
    columns = (rows.column(name).to_pylist() for name in ("query", "product_id", "grade"))
    for query, product, grade in zip(*columns, strict=True):
        if grade is None or not 0 <= grade <= HIGH:
            continue
        if (query, product) not in first:
            first[query, product] = grade
        else:
            second.setdefault((query, product), grade)
    if not second:
        return None
    one = [first[pair] for pair in second]
    other = list(second.values())
    hits = GroupedHits(one + other, other + one, np.zeros(2 * len(one), np.int64))
    whole = np.ones((1, 1))
    return {
        "pairs": float(len(one)),
        "macro_f1": float(hits.macro_f1(whole)[0]),
        "kappa": float(hits.kappa(whole, quadratic=False)[0]),
        "qwk": float(hits.kappa(whole, quadratic=True)[0]),
    }
