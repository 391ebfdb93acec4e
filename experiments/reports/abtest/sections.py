"""The sections of the page of an online experiment, from what to do to the evidence for it."""

from experiments.abtest.decision import SRM_LEVEL, lift_text
from experiments.abtest.metrics import METRICS
from experiments.abtest.result import AbtestResult
from experiments.reports.abtest import plots
from experiments.reports.abtest.day_sections import days_section, novelty_section
from experiments.reports.abtest.guardrails import guardrails_section
from experiments.reports.abtest.slices import slices_section
from experiments.reports.abtest.text import LEVEL, limits_text, p_text, value_text
from experiments.reports.page import Absent, Grid, Plot, Section, listed, svg_source
from experiments.statistics.cells import NONE


def abtest_sections(result: AbtestResult) -> list[Section | Absent]:
    """All sections in the order of the page; what was not logged is said where it would stand."""
    return [
        _decision(result),
        _validity(result),
        _metrics(result),
        days_section(result),
        novelty_section(result),
        slices_section(result),
        guardrails_section(result),
    ]


def _decision(result: AbtestResult) -> Section:
    decision = result.decision
    return Section(
        "decision",
        "What to do",
        "Should the challenger be shipped?",
        answer=f"{decision.verdict.capitalize()}. {decision.sentence}",
        origin=None,
        sentences=decision.notes,
        notes=(
            f"The metric that decides is {METRICS[result.primary].title}. Read were the limits for "
            f"{decision.limits}: those for one look hold at the planned end alone, those for all looks on "
            "any day.",
        ),
    )


def _validity(result: AbtestResult) -> Section:
    compared = (result.control, result.treatment)
    total = sum(result.planned_shares[name] for name in compared)
    rows = [
        (
            name,
            f"{result.units[name]:,}",
            f"{100 * result.units[name] / result.consumers:.2f} %",
            f"{100 * result.planned_shares[name] / total:.2f} %",
        )
        for name in compared
    ]
    rows += [
        (f"{name} (not compared)", f"{units:,}", "", "")
        for name, units in result.units.items()
        if name not in compared
    ]
    if result.srm_p < SRM_LEVEL:
        answer = f"No: the shares of users are not the planned ones (p = {result.srm_p:.1g})."
    elif result.misrouted:
        answer = f"No: {result.misrouted:,} users saw another variant than planned."
    else:
        answer = f"Yes: the shares of users are those that were planned (p = {result.srm_p:.2g})."
    routed = {
        None: "No salt is known, so whether each user saw the variant of its hash was not checked.",
        0: "Each user saw the variant that the hash of its name and the salt gives.",
    }.get(result.misrouted, f"{result.misrouted or 0:,} users saw another variant than their hash gives.")
    return Section(
        "validity",
        "Validity",
        "Was the experiment what it was meant to be?",
        answer=answer,
        origin=None,
        sentences=(routed,),
        grids=(Grid("", ("Variant", "Users", "Share", "Planned"), tuple(rows)),),
        notes=(
            f"An alarm is raised below p = {SRM_LEVEL:g} (sample ratio mismatch): low, because it is looked "
            "at each day. After an alarm nothing else on this page can be trusted.",
        ),
    )


def _metrics(result: AbtestResult) -> Section:
    truth = any(found.true_lift is not None for found in result.metrics.values())
    rows, bold = [], set()
    better: list[str] = []
    worse: list[str] = []
    for place, (name, found) in enumerate(result.metrics.items()):
        if found.p_adjusted is not None and found.p_adjusted < LEVEL:
            bold.add((place, 3))
            (better if (found.lift or 0) > 0 else worse).append(METRICS[name].title)
        rows.append(
            (
                METRICS[name].title,
                value_text(found.control),
                value_text(found.treatment),
                lift_text(found),
                limits_text(found.sequential_low, found.sequential_high),
                p_text(found.p_adjusted),
                *(
                    (f"{100 * found.true_lift:+.1f} %" if found.true_lift is not None else NONE,)
                    if truth
                    else ()
                ),
                f"{found.cuped_narrowing:.2f}" if found.cuped_narrowing is not None else NONE,
            )
        )
    sentences = [f"Better: {listed(better)}."] if better else []
    sentences += [f"Worse: {listed(worse)}."] if worse else []
    sentences += [] if better or worse else ["No metric is told apart from the control."]
    if truth:
        sentences.append(_truth_sentence(result))
    if (coverage := coverage_sentence(result)) is not None:
        sentences.append(coverage)
    primary = result.metrics[result.primary]
    return Section(
        "metrics",
        "Metrics",
        "Is the challenger better?",
        answer=f"{METRICS[result.primary].title}: {lift_text(primary)}.",
        origin=None,
        sentences=tuple(sentences),
        grids=(
            Grid(
                f"{result.consumers:,} users, {result.days} days. Lift: relative, with 95 % limits at one "
                "look (Fieller's). p: of the metric that decides as it is, of the others adjusted for their "
                "number; bold below 0.05. Width: of the limits, over that without what users did before "
                "(CUPED).",
                (
                    "Metric",
                    "Control",
                    "Challenger",
                    "Lift (95 %)",
                    "95 %, all looks",
                    "p",
                    *(("True lift",) if truth else ()),
                    "Width",
                ),
                tuple(rows),
                bold=frozenset(bold),
            ),
        ),
        plots=(
            Plot(
                "Lifts",
                "Dark: where the lift lies with 95 % at one look. Light: at all looks together.",
                svg_source(
                    plots.lifts(
                        [
                            plots.LiftRow(METRICS[name].title, found, found.sequential, found.true_lift)
                            for name, found in result.metrics.items()
                        ],
                        names=("95 % at one look", "95 % at all looks together"),
                    )
                ),
            ),
        ),
        notes=(" ".join(f"{METRICS[name].title}: {METRICS[name].meaning}." for name in result.metrics),),
    )


def coverage_sentence(result: AbtestResult) -> str | None:
    """How often intervals hold the true lift, if somebody measured it."""
    found = {
        METRICS[name].title: metric.coverage
        for name, metric in result.metrics.items()
        if metric.coverage is not None
    }
    if not found:
        return None
    shares = listed([f"{100 * share:.1f} % ({title})" for title, share in found.items()])
    return (
        f"Of this experiment, simulated again and again, the 95 % intervals hold the true lift in {shares}."
    )


def _truth_sentence(result: AbtestResult) -> str:
    known = {name: found for name, found in result.metrics.items() if found.true_lift is not None}
    held = [
        name
        for name, found in known.items()
        if found.low is not None
        and found.high is not None
        and found.low <= (found.true_lift or 0) <= found.high
    ]
    return (
        f"The true lifts are known, as this world is simulated: {len(held)} of {len(known)} lie within the "
        "limits of one look."
    )
