"""Plot of a closed loop, as SVG or PNG: each arm week by week."""

from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.figure import Figure

from experiments.abtest.loop.measures import OWN, UNIFORM
from experiments.abtest.loop.result import LoopResult, Week
from experiments.reports.plot_style import COLOURS, MARKERS, STYLE, WIDTH_INCHES

#: Title of a panel and what it shows of a week.
PANELS: tuple[tuple[str, Callable[[Week], float]], ...] = (
    ("True CTR, %", lambda week: 100 * week.measured.value.ctr),
    ("True revenue a search", lambda week: week.measured.value.revenue),
    ("AUC on uniform slates", lambda week: week.measured.traffic[UNIFORM].auc),
    ("AUC on own traffic", lambda week: week.measured.traffic[OWN].auc),
    ("Promised / true clicks, own", lambda week: week.measured.traffic[OWN].calibration),
    ("Products shown, %", lambda week: 100 * week.exposure.shown),
)


def weeks_figure(result: LoopResult, arms: Sequence[tuple[str, str]]) -> Figure:
    """A panel for each measure, a line for each arm.

    Args:
        arms: names of arms and what to call them.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.82 * WIDTH_INCHES, 4.9), layout="constrained")
        panels = figure.subplots(2, 3).flat
        for axes, (title, value_of) in zip(panels, PANELS, strict=True):
            for (arm, name), colour, marker in zip(arms, COLOURS, MARKERS, strict=False):
                weeks = result.of(arm)
                axes.plot(
                    [week.week for week in weeks],
                    [value_of(week) for week in weeks],
                    f"{marker}-",
                    color=colour,
                    markersize=5,
                    label=name,
                )
            axes.set_title(title)
            axes.set_xticks([week.week for week in result.of(arms[0][0])])
            axes.set_xlabel("Week", labelpad=1)
            axes.grid(axis="y", color="#e4e4e4")
            axes.set_axisbelow(True)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, fontsize=9, ncols=3, loc="outside upper right")
        return figure
