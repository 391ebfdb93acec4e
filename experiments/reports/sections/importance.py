"""Feature importance on the evidence page, from `importance.json`."""

import json
from datetime import UTC, datetime
from pathlib import Path

from experiments.importance.result import ImportanceFileError, ImportanceReport
from experiments.reports.importance.page import (
    FILE,
    PAGE,
    agreement_plots,
    bar_plots,
    origin_of,
    pair_grid,
    slice_plots,
)
from experiments.reports.importance.text import (
    feature_title,
    group_sentences,
    leading_sentences,
    paper_sentence,
    slice_sentences,
    with_titles,
)
from experiments.reports.page import Plot, Section, listed
from experiments.reports.records import EvidenceError
from experiments.statistics.intervals import surely_positive

TITLE = "Feature importance"
QUESTION = "Which features carry it?"


def importance_section(sweep: Path) -> Section | None:
    """Importance of the sweep, or of one of its runs where only such a one was measured; None without any.

    Raises:
        EvidenceError: the file is broken.
    """
    path = next(
        (found for found in (sweep / FILE, *sorted(sweep.glob(f"*/seed-*/{FILE}"))) if found.exists()), None
    )
    if path is None:
        return None
    try:
        report = ImportanceReport.read(path)
    except ImportanceFileError as error:
        raise EvidenceError(str(error)) from error
    paper = paper_sentence(report)
    heat_maps: list[Plot] = slice_plots(report)[:1]
    pairs = pair_grid(report)
    page = path.with_name(PAGE).relative_to(sweep)
    measured = f"{report.variant}, {report.rows:,} {report.split} rows, "
    measured += f"{len(report.runs)} models" if len(report.runs) > 1 else f"one model ({report.runs[0]})"
    return Section(
        anchor="importance",
        title=TITLE,
        question=QUESTION,
        answer=_answer(report),
        origin=origin_of(report),
        sentences=(
            *leading_sentences(report),
            *([paper] if paper else []),
            *group_sentences(report),
            *slice_sentences(report, at_most=3),
            *filter(None, [with_titles(report, report.agreement.sentence)]),
        ),
        plots=(*bar_plots(report, "permutation"), *heat_maps, *agreement_plots(report)),
        grids=(pairs,) if pairs else (),
        notes=(
            *_stale(report, sweep),
            f"Measured: {measured}. Every method and number: {page}.",
        ),
    )


def _stale(report: ImportanceReport, sweep: Path) -> list[str]:
    """A warning if a model of the variant was trained after it was measured."""
    measured = _time(report.created)
    trained = [
        _time(json.loads(run.read_text()).get("created"))
        for run in sweep.glob(f"{report.variant}/*/run.json")
    ]
    if measured is None or not any(time is not None and time > measured for time in trained):
        return []
    return [
        f"Measured before the models that are now in {sweep / report.variant} were trained: measure again."
    ]


def _time(recorded: str | None) -> datetime | None:
    """A recorded time; one without a zone is taken as UTC."""
    if recorded is None:
        return None
    time = datetime.fromisoformat(recorded)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _answer(report: ImportanceReport) -> str:
    ranked = report.ranked()
    sure = sum(surely_positive(entry) for entry in ranked)
    if not sure:
        return "No feature has a permutation importance whose interval lies above zero."
    leaders = [
        f"{feature_title(entry.name)} ({entry.mean:.4f}{'' if surely_positive(entry) else ', not sure'})"
        for entry in ranked[:3]
    ]
    return (
        f"Shuffled among impressions, {listed(leaders)} cost most AUC; {sure} of {len(ranked)} features have "
        "an interval above zero."
    )
