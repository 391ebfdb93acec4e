"""How a grader compares with people: chosen on validation queries, reported on test queries.

`grading.json` holds a row for each grader; an interval has its `_low` and `_high` beside it.

Intervals draw whole queries again, and every grader sees the same draws, so that differences are paired.

Shapes: N pairs, G queries, R resamples.
"""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field

from embeddings.catalog.holdout import TEST, VALIDATION, HoldoutConfig
from embeddings.evaluation.linear_probe import GroupedHits, group_resamples
from embeddings.grading.agreement import (
    Graded,
    figures,
    gullibility,
    human_ceiling,
    length_strata,
    segments_of,
    signed_error,
)
from embeddings.grading.answers import RunAnswers
from embeddings.grading.features import TextReader, refuse_idle_readers, with_vectors
from embeddings.grading.graders import Grader
from embeddings.grading.pairs import Catalogue, GradedPairs, GradingError
from embeddings.grading.trained import TrainedGrader
from embeddings.relevance.grades import GRADES
from experiments.grading.graded_run import PAPER_PAIRS, GradedRun, measure_run, money_for_paper_pairs
from experiments.grading.panel import panel_ceiling
from experiments.statistics.cells import FlatRow, Intervals, interval_of
from experiments.statistics.intervals import Interval, UserWeightedAuc
from features.artifacts import ResultFile
from features.progress import Progress, silent

#: Figures that stand in the comparison of graders.
COMPARED = ("macro_f1", "qwk", "brier")
_ROLES = {VALIDATION: "validation", TEST: "test"}


class SegmentFigures(FlatRow):
    """What a grader reaches on a segment of queries; it may have no pair."""

    pairs: int
    macro_f1: Interval | None


class LengthFigures(FlatRow):
    """What a grader reaches on texts of some lengths."""

    pairs: int
    #: Share of pairs with people's grade, and mean of the grader's grade - people's.
    agreement: Interval
    signed_error: Interval


class GraderFigures(FlatRow):
    """What one grader reaches on the pairs of one role of queries; None where a figure cannot be had."""

    macro_f1: Interval
    #: Quadratic kappa.
    qwk: Interval | None
    #: High against irrelevant, by probability of high - of irrelevant.
    auc: Interval | None
    #: Share of foreign products graded moderate or high, with the words of the query after their titles.
    gullibility: float | None
    #: Of one core, without the start, and hours of one core for 32 million pairs; unknown of a run.
    pairs_per_core_minute: float | None
    core_hours_for_32m_pairs: float | None
    #: Of a grader that costs money; at the price given, None without one.
    tokens_per_pair: float
    money_for_32m_pairs: float | None
    kappa: Interval | None
    accuracy: Interval
    f1_irrelevant: Interval | None
    f1_moderate: Interval | None
    f1_high: Interval | None
    brier: Interval
    calibration_error: Interval
    #: Rows are people's grades, columns the grader's.
    confusion: list[list[int]]
    by_segment: dict[str, SegmentFigures]
    by_length: dict[str, LengthFigures]
    #: As `gullibility`, by where the words of the query are put.
    gullibility_by_place: dict[str, float | None]
    unanswered: int


class GradingReport(ResultFile):
    """`grading.json`: graders by name on the same pairs."""

    queries_of: str
    queries: int
    pairs: int
    graders: dict[str, GraderFigures]
    #: "later - earlier".
    differences: dict[str, Intervals]
    chosen: str | None
    human_ceiling: dict[str, float] | None
    #: Products that foreign ones were drawn from: those with a vector in every table that a grader reads.
    foreign_products: int | None = None
    #: Tables whose encoder read the stuffed titles; others kept the vectors of the titles as they were.
    read_anew: list[str] = Field(default_factory=list)
    #: A run of one of the graders, or of another.
    run: GradedRun | None
    holdout: HoldoutConfig


def measure_graders(
    data: Path,
    graders: Mapping[str, Grader],
    graded: GradedPairs,
    catalogue: Catalogue,
    *,
    role: int,
    holdout: HoldoutConfig,
    chosen: str | None = None,
    run: Path | None = None,
    readers: Mapping[str, TextReader] | None = None,
    price_per_million_tokens: float = 0.0,
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
) -> GradingReport:
    """Compare graders with people on the pairs whose queries have a role.

    Without `chosen` the best macro F1 is chosen, of equal ones the least gullible, on validation queries.

    Args:
        graders: a run's answers (`RunAnswers`) count where it has some, and cost what they cost the run.
        run: a folder of `grade run`, whose shares of grades are compared with people's.
        readers: what made the tables of these names, so that a stuffed title has a vector of its own.

    Raises:
        GradingError: no such query has a graded pair, a grader answers none of them, `run` does not fit, or
            no product has a vector in every table.
    """
    readers = readers or {}
    graders = {name: _reading(grader, readers) for name, grader in graders.items()}
    foreign = _with_vectors(graders, catalogue, readers)
    kept = graded.of_role(role)
    if not len(kept):
        raise GradingError(f"no {_ROLES[role]} query of {data} has a pair graded by people; give more grades")
    queries = int(kept.group_N.max()) + 1
    weights_RG = np.vstack(
        [np.ones((1, queries)), group_resamples(queries, resamples, np.random.default_rng(seed))]
    )
    known = frozenset(zip(graded.pairs.queries, graded.pairs.product_ids.to_pylist(), strict=True))
    found: dict[str, GraderFigures] = {}
    values: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
    said: dict[str, npt.NDArray[np.float64]] = {}
    segments, lengths = segments_of(kept.pairs.queries), length_strata(kept.pairs.texts)
    for done, (name, grader) in enumerate(graders.items()):
        progress("measuring graders", done, len(graders))
        began_s, tokens_before = time.process_time(), grader.tokens
        probability_NC = said[grader.name] = grader.probabilities(kept.pairs)
        spent_s = time.process_time() - began_s
        tokens_per_pair = (grader.tokens - tokens_before) / len(kept)
        speed: float | None = len(kept) / max(spent_s, 1e-9) * 60
        if isinstance(grader, RunAnswers):
            speed, tokens_per_pair = None, grader.tokens_per_pair
        answered_N = ~np.isnan(probability_NC).any(axis=1)
        if not answered_N.any():
            raise GradingError(f"{name} answers not one of {len(kept):,} pairs. {grader.remarks}")
        all_of = Graded(
            kept.grade_N[answered_N],
            grader.grades(probability_NC[answered_N]),
            probability_NC[answered_N],
            kept.group_N[answered_N],
        )
        values[name] = figures(all_of, weights_RG) | {"auc": _auc(all_of, weights_RG)}
        by_segment, by_length = {}, {}
        for segment, rows in segments.items():
            rows = rows[answered_N]
            macro_f1 = None
            if rows.any():
                part = all_of.take(rows)
                hits = GroupedHits(part.grade_N, part.predicted_N, part.group_N)
                macro_f1 = interval_of(hits.macro_f1(weights_RG[:, : hits.groups]))
            by_segment[segment] = SegmentFigures(pairs=int(rows.sum()), macro_f1=macro_f1)
        for length, rows in lengths.items():
            rows = rows[answered_N]
            if rows.any():
                part = all_of.take(rows)
                hits = GroupedHits(part.grade_N, part.predicted_N, part.group_N)
                by_length[length] = LengthFigures(
                    pairs=int(rows.sum()),
                    agreement=interval_of(hits.accuracy(weights_RG[:, : hits.groups])),
                    signed_error=interval_of(signed_error(part, weights_RG)),
                )
        fooled = gullibility(grader, sorted({*kept.pairs.queries}), foreign, graded=known, seed=seed)
        of = values[name]
        found[name] = GraderFigures(
            macro_f1=interval_of(of["macro_f1"]),
            qwk=_interval(of["qwk"]),
            auc=_interval(of["auc"]),
            kappa=_interval(of["kappa"]),
            accuracy=interval_of(of["accuracy"]),
            f1_irrelevant=_interval(of.get("f1_irrelevant")),
            f1_moderate=_interval(of.get("f1_moderate")),
            f1_high=_interval(of.get("f1_high")),
            brier=interval_of(of["brier"]),
            calibration_error=interval_of(of["calibration_error"]),
            gullibility=fooled["appended"],
            gullibility_by_place=fooled,
            pairs_per_core_minute=speed,
            core_hours_for_32m_pairs=None if speed is None else PAPER_PAIRS / speed / 60,
            tokens_per_pair=tokens_per_pair,
            money_for_32m_pairs=money_for_paper_pairs(tokens_per_pair, price_per_million_tokens),
            confusion=_confusion(all_of),
            by_segment=by_segment,
            by_length=by_length,
            unanswered=int((~answered_N).sum()),
        )
    progress("measuring graders", len(graders), len(graders))
    if chosen is None and role == VALIDATION:
        chosen = max(found, key=lambda name: (found[name].macro_f1.mean, -_known(found[name].gullibility)))
    names = list(values)
    return GradingReport(
        queries_of=_ROLES[role],
        queries=queries,
        pairs=len(kept),
        graders=found,
        differences={
            f"{later} - {earlier}": {
                figure: interval_of(values[later][figure] - values[earlier][figure])
                for figure in COMPARED
                if not np.isnan(values[later][figure][0] - values[earlier][figure][0])
            }
            for place, later in enumerate(names)
            for earlier in names[:place]
        },
        chosen=chosen,
        human_ceiling=human_ceiling(data) or panel_ceiling(data),
        foreign_products=len(foreign.texts),
        read_anew=sorted(readers),
        run=None
        if run is None
        else measure_run(run, kept, known, said, price_per_million_tokens=price_per_million_tokens),
        holdout=holdout,
    )


def _reading(grader: Grader, readers: Mapping[str, TextReader]) -> Grader:
    return grader.reading(readers) if isinstance(grader, TrainedGrader) else grader


def _with_vectors(
    graders: Mapping[str, Grader], catalogue: Catalogue, readers: Mapping[str, TextReader]
) -> Catalogue:
    """The products that every grader can read: where a table lacks one, its cosine would be 0 for no reason.

    Raises:
        GradingError: there are none, or a reader is of a table that no grader reads.
    """
    lacking_P = np.zeros(len(catalogue.texts), bool)
    tables: set[str] = set()
    for grader in graders.values():
        if isinstance(grader, TrainedGrader):
            tables |= grader.tables.keys()
            lacking_P |= grader.without_vector(catalogue.product_ids)
    refuse_idle_readers(readers, tables)
    return with_vectors(catalogue, lacking_P)


def _known(gullibility: float | None) -> float:
    """As much as can be where it is not known."""
    return 1.0 if gullibility is None else gullibility


def _interval(value_R: npt.NDArray[np.float64] | None) -> Interval | None:
    """None where there is no value."""
    return None if value_R is None or np.isnan(value_R[0]) else interval_of(value_R)


def _confusion(graded: Graded) -> list[list[int]]:
    cells = np.zeros((len(GRADES), len(GRADES)), np.int64)
    np.add.at(cells, (graded.grade_N, graded.predicted_N.astype(np.int64)), 1)
    return [[int(count) for count in row] for row in cells]


def _auc(graded: Graded, weights_RG: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """High against irrelevant, by the expected grade: that is 1 + probability of high - of irrelevant."""
    clear_N = graded.grade_N != GRADES.index("moderate")
    score_N = graded.probability_NC @ np.arange(len(GRADES))
    high_N = graded.grade_N[clear_N] == GRADES.index("high")
    auc = UserWeightedAuc(high_N, score_N[clear_N], graded.group_N[clear_N])
    return np.array([auc(weights_G) for weights_G in weights_RG])
