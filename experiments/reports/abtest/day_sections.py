"""The sections on days: what one would have seen on each of them, and whether the lift fades."""

from experiments.abtest.decision import lift_text
from experiments.abtest.metrics import METRICS
from experiments.abtest.result import AbtestResult
from experiments.reports.abtest import plots
from experiments.reports.abtest.text import limits_text, p_text, percent_text, slope_text
from experiments.reports.page import Absent, Grid, Plot, Section, svg_source
from experiments.statistics.intervals import excludes_zero, surely_negative, surely_positive


def days_section(result: AbtestResult) -> Section | Absent:
    """What one would have seen, looking every day."""
    heading = ("days", "Day by day", "What would one have seen on each day, looking at all days so far?")
    rows = [row for row in result.daily if row.metric == result.primary]
    if result.days < 2:
        return Absent(*heading, "The log has one day.", None)
    title = METRICS[result.primary].title
    early = next(
        (row for row in rows if excludes_zero(row.so_far_sequential)),
        None,
    )
    answer = (
        f"On no day was {title} told apart from the control by the limits for all looks."
        if early is None
        else f"From {early.day} on {title} was told apart by the limits for all looks: "
        f"{lift_text(early.so_far_sequential)}."
    )
    return Section(
        *heading,
        answer=answer,
        origin=None,
        grids=(
            Grid(
                f"{title}, all days so far.",
                ("Day", "Lift", "95 % at one look", "95 %, all looks"),
                tuple(
                    (
                        row.day.isoformat(),
                        percent_text(row.so_far.lift),
                        limits_text(row.so_far.low, row.so_far.high),
                        limits_text(row.so_far_sequential.low, row.so_far_sequential.high),
                    )
                    for row in rows
                ),
            ),
        ),
        plots=(
            Plot(
                "Lift over all days so far, in percent",
                "Who stops as soon as the dark band leaves 0 errs far more often than in 5 % of experiments; "
                "who waits for the light band does not. What lies beyond a panel is cut.",
                svg_source(plots.day_by_day(_lines(result, alone=False))),
                tabulated=False,
            ),
        ),
    )


def novelty_section(result: AbtestResult) -> Section | Absent:
    """Whether the lift changes from day to day."""
    heading = ("novelty", "Novelty", "Does the lift fade, or does it grow?")
    if not result.trends:
        return Absent(*heading, "It takes at least three days to tell.", None)
    trend = result.trends.get(result.primary)
    title = METRICS[result.primary].title
    if trend is None:
        answer = f"It cannot be told for {title}: too few days have clicks of both variants."
    elif surely_negative(trend):
        answer = f"The lift of {title} fades: {slope_text(trend.slope)} a day; less than its mean may remain."
    elif surely_positive(trend):
        answer = f"The lift of {title} grows: {slope_text(trend.slope)} a day."
    else:
        answer = f"The lift of {title} neither fades nor grows by more than chance."
    rows = tuple(
        (
            METRICS[name].title,
            slope_text(found.slope),
            f"{100 * found.low:+.2f} … {100 * found.high:+.2f}",
            p_text(found.p),
        )
        for name, found in result.trends.items()
    )
    return Section(
        *heading,
        answer=answer,
        origin=None,
        grids=(
            Grid(
                "Change of the lift from day to day (of its logarithm, in percent): a line through the days. "
                "p is not adjusted for the number of metrics.",
                ("Metric", "A day", "95 %", "p"),
                rows,
            ),
        ),
        plots=(
            Plot(
                "Lift of each day alone, in percent",
                "On each day, of the users who came that day.",
                svg_source(plots.single_days(_lines(result, alone=True))),
                tabulated=False,
            ),
        ),
    )


def _lines(result: AbtestResult, *, alone: bool) -> list[plots.DayLine]:
    found = []
    for name, metric in result.metrics.items():
        rows = [row for row in result.daily if row.metric == name]
        found.append(
            plots.DayLine(
                METRICS[name].title,
                tuple(row.day for row in rows),
                tuple(row.alone if alone else row.so_far for row in rows),
                wider=() if alone else tuple(row.so_far_sequential for row in rows),
                true_lift=metric.true_lift,
                trend=result.trends.get(name) if alone else None,
            )
        )
    return found
