"""The section on guardrails: what must not become worse, and how much worse it may be."""

from experiments.abtest.result import AbtestResult, Guardrail
from experiments.reports.abtest import plots
from experiments.reports.abtest.text import value_text
from experiments.reports.page import Absent, Grid, Plot, Section, listed, svg_source
from experiments.statistics.cells import NONE


def guardrails_section(result: AbtestResult) -> Section | Absent:
    """Each guardrail with its limits, and latency by day."""
    heading = ("guardrails", "Guardrails", "Is anything worse that must not be?")
    if not result.guardrails:
        return Absent(*heading, "The log has no revenue, no errors and no latency.", None)
    states = {
        state: [rail.title for rail in result.guardrails if rail.state == state]
        for state in ("broken", "open", "kept")
    }
    words = {"broken": "Broken", "open": "Not settled", "kept": "Kept"}
    answer = (
        "; ".join(f"{words[state]}: {listed(titles)}" for state, titles in states.items() if titles) + "."
    )
    drawn: tuple[Plot, ...] = ()
    if result.latency_p99_ms:
        drawn = (
            Plot(
                "Latency by day",
                "99th percentile of each day. Both variants share the load of a day, so ratios are of days.",
                svg_source(
                    plots.latency(
                        [day.day for day in result.latency_p99_ms],
                        [day.control_ms for day in result.latency_p99_ms],
                        [day.treatment_ms for day in result.latency_p99_ms],
                    )
                ),
                narrow=True,
                tabulated=False,
            ),
        )
    return Section(
        *heading,
        answer=answer,
        origin=None,
        sentences=tuple(f"{rail.sentence[:1].upper()}{rail.sentence[1:]}." for rail in result.guardrails),
        grids=(
            Grid(
                "Worse: how much worse the challenger is than the control, with its limits; of error shares "
                "in percentage points, else in percent of the control. Latency has 99 % limits over days.",
                ("Guardrail", "Control", "Challenger", "Worse by", "Limits", "Allowed", "State"),
                tuple(_rail_row(rail) for rail in result.guardrails),
            ),
        ),
        plots=drawn,
    )


def _rail_row(rail: Guardrail) -> tuple[str, ...]:
    return (
        rail.title,
        value_text(rail.control),
        value_text(rail.treatment),
        f"{100 * rail.worse:+.2f}",
        f"{100 * rail.low:+.2f} … {100 * rail.high:+.2f}"
        if rail.low is not None and rail.high is not None
        else NONE,
        f"{100 * rail.allowed:.2f}",
        {"open": "not settled"}.get(rail.state, rail.state),
    )
