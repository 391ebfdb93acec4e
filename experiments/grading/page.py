"""The report on graders as a page."""

from collections.abc import Mapping, Sequence

from embeddings.relevance.grades import GRADES
from experiments.grading.graded_run import PAPER_PAIRS, GradedRun
from experiments.grading.report import COMPARED, GraderFigures, GradingReport
from experiments.statistics.cells import NONE, markdown_table, with_limits

_SHOWN = ("macro_f1", "qwk", "kappa", "auc", "brier", "calibration_error")


def to_markdown(report: GradingReport) -> str:
    """The report as a page."""
    lines = [
        "# Graders beside people",
        "",
        f"{report.pairs:,} pairs of {report.queries:,} {report.queries_of} queries, graded by people. "
        "In brackets 95 % intervals from resamples of whole queries.",
        "",
    ]
    heading = ["Grader", *(_title(name) for name in _SHOWN), "pairs a core-minute"]
    lines += markdown_table(
        heading,
        (
            [
                f"**{name}**" if name == report.chosen else name,
                *(with_limits(getattr(row, figure), 3) for figure in _SHOWN),
                _rounded(row.pairs_per_core_minute),
            ]
            for name, row in report.graders.items()
        ),
    )
    lines += [
        "",
        "Share of foreign products graded moderate or high, by where the query's words were put:",
        "",
    ]
    stuffings = list(next(iter(report.graders.values())).gullibility_by_place)
    lines += markdown_table(
        ["Grader", *stuffings],
        (
            [name, *(_percent(row.gullibility_by_place[stuffing]) for stuffing in stuffings)]
            for name, row in report.graders.items()
        ),
    )
    lines += ["", *_foreign(report)]
    for name, row in report.graders.items():
        lines += ["", f"## {name}", "", "People's grade (row) and the grader's (column):", ""]
        lines += markdown_table(
            ["", *GRADES, "F1"],
            (
                [grade, *(f"{count:,}" for count in counts), with_limits(getattr(row, f"f1_{grade}"), 3)]
                for grade, counts in zip(GRADES, row.confusion, strict=True)
            ),
        )
        lines += [
            "",
            *_segments(row),
            "",
            "By length of the text; an error above 0 is too kind:",
            "",
            *_lengths(row),
        ]
        if row.unanswered:
            lines += ["", f"{row.unanswered:,} pairs got no answer and count nowhere."]
    if report.differences:
        lines += ["", "## Paired differences", ""]
        lines += markdown_table(
            ["Difference", *(_title(name) for name in COMPARED)],
            (
                [name, *(with_limits(row.get(figure), 3, sign=True) for figure in COMPARED)]
                for name, row in report.differences.items()
            ),
        )
    lines += ["", _ceiling(report.human_ceiling), "", *_costs(report)]
    if report.run is not None:
        lines += ["", "## The run", "", *_run(report.run)]
    lines.append("")
    return "\n".join(lines)


def _foreign(report: GradingReport) -> Sequence[str]:
    if report.foreign_products is None:
        return []
    said = [
        f"Foreign products were drawn from {report.foreign_products:,}, which have vectors in every table."
    ]
    if report.read_anew:
        said.append(
            f"Stuffed titles have vectors of their own in {', '.join(report.read_anew)}; in any other table "
            "those of the titles as they were."
        )
    return [" ".join(said)]


def _segments(row: GraderFigures) -> Sequence[str]:
    return markdown_table(
        ["Queries", "pairs", "macro F1"],
        (
            [segment, f"{part.pairs:,}", with_limits(part.macro_f1, 3)]
            for segment, part in row.by_segment.items()
        ),
    )


def _lengths(row: GraderFigures) -> Sequence[str]:
    return markdown_table(
        ["Text", "pairs", "agreement", "signed error"],
        (
            [
                length,
                f"{part.pairs:,}",
                with_limits(part.agreement, 3),
                with_limits(part.signed_error, 3, sign=True),
            ]
            for length, part in row.by_length.items()
        ),
    )


def _costs(report: GradingReport) -> Sequence[str]:
    """32 million pairs, as many as the paper has graded."""
    return [
        "32 million pairs would take:",
        "",
        *markdown_table(
            ["Grader", "core-hours", "tokens a pair", "money"],
            (
                [
                    name,
                    _rounded(row.core_hours_for_32m_pairs),
                    f"{row.tokens_per_pair:,.0f}",
                    _rounded(row.money_for_32m_pairs),
                ]
                for name, row in report.graders.items()
            ),
        ),
    ]


def _run(run: GradedRun) -> Sequence[str]:
    lines = [
        f"{run.grader} graded {run.graded_pairs:,} pairs that people did not. Shares of grades: of people on "
        f"{run.people_pairs:,} pairs of test queries, of the grader on its own, and of both together "
        "(prediction-powered, PPI++).",
        "",
        *markdown_table(
            [
                "Grade",
                "people",
                "grader",
                "both",
                "weight of predictions",
                "grader on its pairs - on people's",
            ],
            (
                [
                    grade,
                    with_limits(run.people_shares[grade], 3),
                    f"{run.grader_shares[grade]:.3f}",
                    with_limits(run.powered_shares[grade], 3),
                    f"{run.tuning[grade]:.2f}",
                    with_limits(run.shift[grade], 3, sign=True),
                ]
                for grade in GRADES
            ),
        ),
        "",
    ]
    if not run.of_one_kind:
        lines += [
            "The last column excludes 0: the run's pairs are of another kind than people's, so **the shares "
            "of people, and of both, do not hold for the run**. Let people grade a random part of its pairs.",
            "",
        ]
    if run.tokens_per_pair:
        cost = "" if run.money_for_32m_pairs is None else f", {run.money_for_32m_pairs:,.0f} in money"
        tokens = run.tokens_per_pair * PAPER_PAIRS / 1e9
        lines.append(
            f"It took {run.tokens_per_pair:,.0f} tokens a pair: {tokens:,.1f} billion for 32 million pairs"
            f"{cost}."
        )
    return lines


def _rounded(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{share:.1%}"


def _title(figure: str) -> str:
    return "quadratic kappa" if figure == "qwk" else figure.replace("_", " ")


def _ceiling(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "No pair has grades of several people, so how far people agree is not known."
    if found.get("modelled"):
        return (
            f"A second panel of {found['raters']:.0f} people would agree with the first by macro F1 "
            f"{found['macro_f1']:.3f}, quadratic kappa {found['qwk']:.3f}: a grader's ceiling, by a "
            f"beta-binomial model of the mean grades of {found['pairs']:,.0f} pairs."
        )
    return (
        f"Two people who graded the same of {found['pairs']:,.0f} pairs agree by macro F1 "
        f"{found['macro_f1']:.3f}, quadratic kappa {found['qwk']:.3f}: a grader's ceiling."
    )
