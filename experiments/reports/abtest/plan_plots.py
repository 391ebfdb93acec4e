"""Plots of the plan of an experiment, as SVG: power, what each duration shows, p-values of A/A tests."""

from collections.abc import Mapping, Sequence
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from experiments.abtest.aa_check import AaCheck
from experiments.abtest.metrics import METRICS
from experiments.abtest.planning import MetricPlan
from experiments.reports.plot_style import COLOURS, MARKERS, STYLE, WIDTH_INCHES, svg_of


def power_curves(metrics: Mapping[str, MetricPlan], *, lift: float, power: float) -> str:
    """Power over the lift, for the duration that each metric was planned for."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.68 * WIDTH_INCHES, 3.4), layout="constrained")
        axes = figure.subplots()
        for (name, found), colour, marker in zip(metrics.items(), COLOURS, MARKERS, strict=False):
            lifts, powers = zip(*found.power_curve, strict=True)
            axes.plot(
                [100 * one for one in lifts],
                [100 * one for one in powers],
                f"{marker}-",
                color=colour,
                markersize=4,
                markevery=3,
                label=f"{METRICS[name].title}, {found.chosen.days} days",
            )
        axes.axhline(100 * power, color="#888888", linestyle=":", linewidth=1.2)
        axes.axvline(100 * lift, color="#888888", linestyle=":", linewidth=1.2)
        axes.set_ylim(0, 102)
        axes.set_xlim(left=0)
        axes.set_xlabel("True lift in percent")
        axes.set_ylabel("Power in percent")
        _look(axes, columns=1, place="upper left", anchor=(1.0, 1.0))
        return svg_of(figure)


def durations(found: MetricPlan) -> str:
    """For each duration the users that come, and how many the lift takes; then the least lift that shows."""
    days = [one.days for one in found.durations]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 3.0), layout="constrained")
        users, lifts = figure.subplots(1, 2)
        for values, colour, marker, name in (
            ([one.users for one in found.durations], COLOURS[0], "o", "come"),
            ([one.needed for one in found.durations], COLOURS[1], "s", "are needed"),
            ([one.needed_without_cuped for one in found.durations], COLOURS[6], "x", "without CUPED"),
        ):
            users.plot(days, values, f"{marker}-", color=colour, markersize=4, linewidth=1.3, label=name)
        users.set_title("Users")
        users.set_yscale("log")
        users.yaxis.set_major_formatter("{x:,.0f}")
        users.yaxis.set_minor_formatter("{x:,.0f}")
        lifts.plot(
            days, [100 * one.detectable for one in found.durations], "o-", color=COLOURS[0], markersize=4
        )
        lifts.set_title("Least lift that shows, in percent")
        lifts.set_ylim(bottom=0)
        for axes in (users, lifts):
            axes.set_xlabel("Days of the experiment")
            axes.xaxis.get_major_locator().set_params(integer=True)
        _look(users, columns=3, place="lower right", anchor=(1.0, 1.0))
        lifts.grid(axis="y", color="#e4e4e4")
        return svg_of(figure)


def aa_histograms(checks: Sequence[tuple[str, AaCheck]]) -> str:
    """p-values of each metric in bins: level bars are what there should be, within the band of chance."""
    with matplotlib.rc_context(STYLE):
        width = WIDTH_INCHES * max(len(checks), 2) / max(len(checks), 3)
        figure = Figure(figsize=(width, 2.6), layout="constrained")
        grid = figure.subplots(1, len(checks), sharey=True, squeeze=False)
        for axes, (title, check) in zip(grid.flat, checks, strict=True):
            bins = len(check.histogram)
            starts = [place / bins for place in range(bins)]
            low, high = stats.binom.interval(0.95, check.rerandomisations, 1 / bins)
            axes.axhspan(low, high, color=COLOURS[1], alpha=0.13, linewidth=0)
            axes.bar(
                starts, check.histogram, width=1 / bins, align="edge", color="#8fb8d6", edgecolor="white"
            )
            axes.axhline(check.rerandomisations / bins, color=COLOURS[1], linestyle="--", linewidth=1.2)
            axes.set_title(title)
            axes.set_xlim(0, 1)
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
            axes.grid(axis="y", color="#e4e4e4")
            axes.set_axisbelow(True)
            axes.set_xlabel("p-value")
        grid[0, 0].set_ylabel("A/A tests")
        return svg_of(figure)


def _look(
    axes: Axes, *, columns: int, place: Literal["upper left", "lower right"], anchor: tuple[float, float]
) -> None:
    axes.grid(axis="y", color="#e4e4e4")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=9, ncols=columns, loc=place, bbox_to_anchor=anchor)
