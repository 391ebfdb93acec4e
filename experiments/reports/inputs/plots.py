"""Plots of the page of a data folder, as SVG: the log by day, users by purchases."""

import datetime as dt
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from experiments.reports.inputs.facts import PURCHASE_STEPS
from experiments.reports.plot_style import COLOURS, STYLE, WIDTH_INCHES, note, svg_of

#: Bars that fit; a longer log is drawn by weeks, a very long one by years of 52 weeks.
MOST_BARS = 120
#: What a bar may stand for, by its days.
BARS = {1: "day", 7: "week", 28: "four weeks", 364: "52 weeks"}
_Z = 1.959964  # of 95 %


class Period(NamedTuple):
    """Impressions and clicks of a day, or of the days of a bar that begins with it."""

    start: dt.date
    impressions: int
    clicks: int


def bar_days(days: int) -> int:
    """Days that a bar stands for, in a log of so many."""
    return next((width for width in BARS if days <= MOST_BARS * width), max(BARS))


def periods(first_day: str, days: Sequence[tuple[int, int]]) -> list[Period]:
    """The days of a log, or its weeks from the first day on where there are too many days to draw."""
    width = bar_days(len(days))
    first = dt.date.fromisoformat(first_day)
    return [
        Period(
            first + dt.timedelta(days=start),
            *(sum(day[part] for day in days[start : start + width]) for part in (0, 1)),
        )
        for start in range(0, len(days), width)
    ]


def wilson(clicks: int, impressions: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927), which stays inside 0 and 1; 0 of 10 gives 0 to 0.278."""
    share, square = clicks / impressions, _Z**2 / impressions
    middle = (share + square / 2) / (1 + square)
    half = _Z / (1 + square) * np.sqrt(share * (1 - share) / impressions + square / (4 * impressions))
    return max(0.0, middle - half), min(1.0, middle + half)


def log_by_day(found: Sequence[Period]) -> str:
    """Impressions and clicks as bars, and the CTR with its interval below them."""
    days = [period.start for period in found]
    width = (days[1] - days[0]).days if len(days) > 1 else 1
    shown = [period for period in found if period.impressions]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 4.6), layout="constrained")
        counts, rates = figure.subplots(2, 1, sharex=True)
        for values, colour, name in (
            ([period.impressions for period in found], "#c3d4e0", "impressions"),
            ([period.clicks for period in found], COLOURS[0], "of these clicked"),
        ):
            counts.bar(days, values, width=0.86 * width, align="edge", color=colour, label=name)
        counts.set_title(f"Impressions and clicks by {BARS[width]}")
        counts.yaxis.set_major_formatter("{x:,.0f}")
        counts.legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
        middles = [dt.datetime(*p.start.timetuple()[:3]) + dt.timedelta(days=width / 2) for p in shown]
        limits = 100 * np.array([wilson(period.clicks, period.impressions) for period in shown])
        rate = [100 * period.clicks / period.impressions for period in shown]
        rates.fill_between(middles, *limits.T, color=COLOURS[0], alpha=0.2, linewidth=0)
        rates.plot(middles, rate, "o-", color=COLOURS[0], markersize=3, linewidth=1.3)
        rates.set_title("CTR in percent, with its 95 % interval")
        rates.set_ylim(bottom=0)
        for axes in (counts, rates):
            axes.grid(axis="y", color="#e4e4e4")
            axes.set_axisbelow(True)
        locator = AutoDateLocator(maxticks=9)
        rates.xaxis.set_major_locator(locator)
        rates.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        return svg_of(figure)


def users_by_purchases(groups: Sequence[int], without: int) -> str:
    """A bar for the users who saw impressions and bought nothing, and one for each group of buyers."""
    names = ["none", *group_names()]
    counts = [without, *groups]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES * 0.62, 2.9), layout="constrained")
        axes = figure.subplots()
        axes.bar(names, counts, color=["#9aa3ae", *[COLOURS[0]] * len(groups)], width=0.72)
        for place, count in enumerate(counts):
            note(axes, f"{count:,}", (place, count), (0, 7), ha="center", fontsize=8.5)
        axes.set_xlabel("Purchases of a user")
        axes.set_ylabel("Users")
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.margins(y=0.14)
        axes.grid(axis="y", color="#e4e4e4")
        axes.set_axisbelow(True)
        return svg_of(figure)


def group_names() -> list[str]:
    """As "1", "2–3", "64+"."""
    ends = [*(step - 1 for step in PURCHASE_STEPS[1:]), None]
    return [
        f"{low}+" if high is None else f"{low}" if low == high else f"{low}–{high}"
        for low, high in zip(PURCHASE_STEPS, ends, strict=True)
    ]
