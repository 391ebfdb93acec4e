"""How a grader compares with people: chosen on validation queries, reported on test queries.

Intervals draw whole queries again, and every grader sees the same draws, so that differences are paired.

Shapes: N pairs, G queries, R resamples.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embeddings.catalog.holdout import TEST, VALIDATION, HoldoutConfig
from embeddings.evaluation.linear_probe import GroupedHits, group_resamples
from embeddings.grading.agreement import Graded, figures, gullibility, human_ceiling, segments_of
from embeddings.grading.graders import Grader
from embeddings.grading.pairs import Catalogue, GradedPairs, GradingError
from embeddings.relevance.grades import GRADES
from experiments.statistics.cells import Intervals, interval_of, markdown_table, with_limits
from experiments.statistics.intervals import UserWeightedAuc
from features.artifacts import ResultFile
from features.progress import Progress, silent

#: Figures that stand in the comparison of graders.
COMPARED = ("macro_f1", "quadratic_kappa", "brier")
_ROLES = {VALIDATION: "validation", TEST: "test"}


class GraderFigures(ResultFile):
    """What one grader reaches on the pairs of one role of queries."""

    figures: Intervals
    #: Rows are people's grades, columns the grader's.
    confusion: list[list[int]]
    macro_f1_by_segment: Intervals
    pairs_by_segment: dict[str, int]
    #: Share of foreign products graded moderate or high, by where the words of the query are put.
    gullibility: dict[str, float]
    #: Of one core, without the start.
    pairs_per_core_minute: float
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
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
) -> GradingReport:
    """Compare graders with people on the pairs whose queries have a role.

    Without `chosen` the one of the best macro F1 is; say so on validation queries only.

    Raises:
        GradingError: no such query has a graded pair, or a grader answers none of them.
    """
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
    for done, (name, grader) in enumerate(graders.items()):
        progress("measuring graders", done, len(graders))
        began_s = time.process_time()
        probability_NC = grader.probabilities(kept.pairs)
        spent_s = time.process_time() - began_s
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
        by_segment, sizes = {}, {}
        for segment, rows in segments_of(kept.pairs.queries).items():
            rows = rows[answered_N]
            sizes[segment] = int(rows.sum())
            if rows.any():
                part = all_of.take(rows)
                hits = GroupedHits(part.grade_N, part.predicted_N, part.group_N)
                by_segment[segment] = interval_of(hits.macro_f1(weights_RG[:, : hits.groups]))
        found[name] = GraderFigures(
            figures={
                figure: interval_of(value_R)
                for figure, value_R in values[name].items()
                if not np.isnan(value_R[0])
            },
            confusion=_confusion(all_of),
            macro_f1_by_segment=by_segment,
            pairs_by_segment=sizes,
            gullibility=gullibility(
                grader, sorted({*kept.pairs.queries}), catalogue, graded=known, seed=seed
            ),
            pairs_per_core_minute=len(kept) / max(spent_s, 1e-9) * 60,
            unanswered=int((~answered_N).sum()),
        )
    progress("measuring graders", len(graders), len(graders))
    if chosen is None and role == VALIDATION:
        chosen = max(found, key=lambda name: values[name]["macro_f1"][0])
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
        human_ceiling=human_ceiling(data),
        holdout=holdout,
    )


def to_markdown(report: GradingReport) -> str:
    """The report as a page."""
    lines = [
        "# Graders beside people",
        "",
        f"{report.pairs:,} pairs of {report.queries:,} {report.queries_of} queries, graded by people. "
        "In brackets 95 % intervals from resamples of whole queries.",
        "",
    ]
    shown = ("macro_f1", "quadratic_kappa", "kappa", "auc", "brier", "calibration_error")
    heading = ["Grader", *(name.replace("_", " ") for name in shown), "pairs a core-minute"]
    lines += markdown_table(
        heading,
        (
            [
                f"**{name}**" if name == report.chosen else name,
                *(with_limits(row.figures.get(figure), 3) for figure in shown),
                f"{row.pairs_per_core_minute:,.0f}",
            ]
            for name, row in report.graders.items()
        ),
    )
    lines += [
        "",
        "Share of foreign products graded moderate or high, by where the query's words were put:",
        "",
    ]
    stuffings = list(next(iter(report.graders.values())).gullibility)
    lines += markdown_table(
        ["Grader", *stuffings],
        (
            [name, *(f"{row.gullibility[stuffing]:.1%}" for stuffing in stuffings)]
            for name, row in report.graders.items()
        ),
    )
    for name, row in report.graders.items():
        lines += ["", f"## {name}", "", "People's grade (row) and the grader's (column):", ""]
        lines += markdown_table(
            ["", *GRADES, "F1"],
            (
                [grade, *(f"{count:,}" for count in counts), with_limits(row.figures.get(f"f1_{grade}"), 3)]
                for grade, counts in zip(GRADES, row.confusion, strict=True)
            ),
        )
        lines += ["", *_segments(row)]
        if row.unanswered:
            lines += ["", f"{row.unanswered:,} pairs got no answer and count nowhere."]
    if report.differences:
        lines += ["", "## Paired differences", ""]
        lines += markdown_table(
            ["Difference", *(name.replace("_", " ") for name in COMPARED)],
            (
                [name, *(with_limits(row.get(figure), 3, sign=True) for figure in COMPARED)]
                for name, row in report.differences.items()
            ),
        )
    lines += ["", _ceiling(report.human_ceiling), ""]
    return "\n".join(lines)


def _segments(row: GraderFigures) -> Sequence[str]:
    return markdown_table(
        ["Queries", "pairs", "macro F1"],
        (
            [segment, f"{count:,}", with_limits(row.macro_f1_by_segment.get(segment), 3)]
            for segment, count in row.pairs_by_segment.items()
        ),
    )


def _ceiling(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "No pair has grades of several people, so how far people agree is not known."
    return (
        f"Two people who graded the same of {found['pairs']:,.0f} pairs agree by macro F1 "
        f"{found['macro_f1']:.3f}, quadratic kappa {found['quadratic_kappa']:.3f}: a grader's ceiling."
    )


def _confusion(graded: Graded) -> list[list[int]]:
    cells = np.zeros((len(GRADES), len(GRADES)), np.int64)
    np.add.at(cells, (graded.grade_N, graded.predicted_N.astype(np.int64)), 1)
    return [[int(count) for count in row] for row in cells]


def _auc(graded: Graded, weights_RG: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """High against irrelevant, by the expected grade."""
    clear_N = graded.grade_N != GRADES.index("moderate")
    score_N = graded.probability_NC @ np.arange(len(GRADES))
    high_N = graded.grade_N[clear_N] == GRADES.index("high")
    auc = UserWeightedAuc(high_N, score_N[clear_N], graded.group_N[clear_N])
    return np.array([auc(weights_G) for weights_G in weights_RG])
