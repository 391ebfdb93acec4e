"""Plots of an online experiment, as SVG: lifts, their days, slices, latency. Lifts are in percent."""

import datetime as dt
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import date2num
from matplotlib.figure import Figure

from experiments.abtest.result import Limited, Trend
from experiments.reports.plot_style import (
    COLOURS,
    STYLE,
    WIDTH_INCHES,
    broken,
    interval_line,
    rows_look,
    svg_of,
)
from experiments.statistics.intervals import Interval

#: One look, all looks, what is true, and the line at no lift.
_ONE, _ALL, _TRUE, _ZERO = COLOURS[0], "#b9d3e6", COLOURS[1], "#555555"
_COLUMNS = 3
#: Days that have room for their names in a panel.
_DAYS_NAMED = 5


class LiftRow(NamedTuple):
    """A lift by name, with its limits for all looks and the true lift, where there are any."""

    title: str
    lift: Limited
    wider: Limited | None = None
    true_lift: float | None = None


class DayLine(NamedTuple):
    """A metric day by day."""

    title: str
    days: tuple[dt.date, ...]
    lifts: tuple[Limited, ...]
    wider: tuple[Limited, ...] = ()
    true_lift: float | None = None
    trend: Trend | None = None


def lifts(rows: Sequence[LiftRow], *, names: tuple[str, str], marker: str = "D") -> str:
    """A row for each lift: dark its limits for one look (or shrunk), light those for all looks (or as seen).

    Args:
        names: of the dark and of the light line, for the legend.
    """
    shown = [row for row in rows if row.lift.lift is not None][::-1]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 1.1 + 0.36 * max(len(shown), 1)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=_ZERO, linewidth=1)
        for height, row in enumerate(shown):
            if row.wider is not None:
                interval_line(axes, _percent(row.wider), height, _ALL, width=7)
            interval_line(axes, _percent(row.lift), height, _ONE, width=2.2, ends=True)
            axes.plot(100 * float(row.lift.lift or 0), height, marker, color=_ONE, markersize=6, zorder=3)
            if row.true_lift is not None:
                axes.plot(100 * row.true_lift, height, "*", color=_TRUE, markersize=11, zorder=4)
        axes.plot([], [], f"{marker}-", color=_ONE, label=names[0])
        if any(row.wider is not None for row in shown):
            axes.plot([], [], "-", color=_ALL, linewidth=7, label=names[1])
        if any(row.true_lift is not None for row in shown):
            axes.plot([], [], "*", color=_TRUE, markersize=11, label="true lift (simulated)")
        axes.set_yticks(range(len(shown)), [broken(row.title, 40) for row in shown])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.set_xlabel("Lift of the challenger over the control in percent")
        rows_look(axes)
        axes.legend(frameon=False, fontsize=9, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
        return svg_of(figure)


def day_by_day(lines: Sequence[DayLine]) -> str:
    """A panel for each metric: the lift over all days so far, with limits for one look and for all looks."""
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(len(lines))
        for axes, line in zip(panels, lines, strict=True):
            known = [place for place, lift in enumerate(line.lifts) if lift.low is not None]
            days = _numbers([line.days[place] for place in known])
            for found, colour, name in (
                (line.wider, _ALL, "95 % at all looks together"),
                (line.lifts, _ONE, "95 % at one look"),
            ):
                limits = np.array([_band(found[place]) for place in known if found])
                if len(limits):
                    alpha = 0.9 if colour == _ALL else 0.45
                    axes.fill_between(days, *limits.T, color=colour, alpha=alpha, linewidth=0, label=name)
            axes.plot(
                days,
                [100 * float(line.lifts[place].lift or 0) for place in known],
                "o-",
                color=_ONE,
                markersize=3.5,
            )
            if line.true_lift is not None:
                axes.axhline(
                    100 * line.true_lift, color=_TRUE, linestyle="--", linewidth=1.3, label="true lift"
                )
            _day_look(axes, line, [line.lifts[place] for place in known])
        _shared_legend(figure, panels)
        return svg_of(figure)


def single_days(lines: Sequence[DayLine]) -> str:
    """A panel for each metric: the lift of each day alone, and the line through them."""
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(len(lines))
        for axes, line in zip(panels, lines, strict=True):
            known = [
                (day, lift) for day, lift in zip(line.days, line.lifts, strict=True) if lift.lift is not None
            ]
            for day, lift in known:
                low, high = _ends(lift)
                axes.plot(_numbers([day, day]), [low, high], "-", color=_ONE, linewidth=1.8)
            axes.plot(
                _numbers([day for day, _ in known]),
                [100 * float(lift.lift or 0) for _, lift in known],
                "o",
                color=_ONE,
                markersize=4.5,
            )
            axes.plot([], [], "o-", color=_ONE, markersize=4.5, linewidth=1.8, label="a day alone, 95 %")
            if line.trend is not None and known:
                numbers = np.array(_numbers([day for day, _ in known]))
                logs = np.log1p([float(lift.lift or 0) for _, lift in known])
                fitted = logs.mean() + line.trend.slope * (numbers - numbers.mean())
                axes.plot(
                    _numbers([day for day, _ in known]),
                    100 * np.expm1(fitted),
                    "-",
                    color=_TRUE,
                    linewidth=1.3,
                    label="line through the days",
                )
            _day_look(axes, line, [lift for _, lift in known])
        _shared_legend(figure, panels)
        return svg_of(figure)


def latency(days: Sequence[dt.date], control: Sequence[float], treatment: Sequence[float]) -> str:
    """The 99th percentile of both variants by day, in milliseconds."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.68 * WIDTH_INCHES, 2.8), layout="constrained")
        axes = figure.subplots()
        for values, colour, marker, name in (
            (control, COLOURS[6], "s", "control"),
            (treatment, COLOURS[0], "o", "challenger"),
        ):
            axes.plot(_numbers(days), list(values), f"{marker}-", color=colour, markersize=4.5, label=name)
        axes.set_ylim(0, 1.12 * max(*control, *treatment))
        axes.set_ylabel("99th percentile, ms")
        axes.grid(axis="y", color="#e4e4e4")
        axes.set_axisbelow(True)
        _day_axis(axes, days)
        axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
        return svg_of(figure)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH_INCHES, 0.5 + 2.5 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, sharex=True).flat)
    for unused in grid[count:]:
        unused.set_visible(False)
    return figure, grid[:count]


def _day_look(axes: Axes, line: DayLine, drawn: Sequence[Limited]) -> None:
    """Room for all limits for one look but those of the first quarter, whose width would hide the rest."""
    axes.axhline(0, color=_ZERO, linewidth=1)
    late = [end for lift in drawn[len(drawn) // 4 :] for end in _ends(lift) if np.isfinite(end)]
    if late:
        low, high = min(0.0, *late), max(0.0, *late)
        room = 0.35 * (high - low) or 1.0
        axes.set_ylim(low - room, high + room)
    axes.set_title(line.title)
    axes.grid(axis="y", color="#e4e4e4")
    axes.set_axisbelow(True)
    axes.xaxis.set_tick_params(labelbottom=True)
    _day_axis(axes, line.days)


def _day_axis(axes: Axes, days: Sequence[dt.date]) -> None:
    """Some of the days by name, the last one always."""
    named = days[:: -max(1, -(-len(days) // _DAYS_NAMED))]
    axes.set_xticks(_numbers(named), [f"{day.day} {day:%b}" for day in named])


def _numbers(days: Sequence[dt.date]) -> list[float]:
    """Days as Matplotlib counts them."""
    return [float(date2num(day)) for day in days]


def _shared_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, ncols=3, loc="outside upper right")


def _ends(found: Limited) -> tuple[float, float]:
    """Both limits in percent; NaN where there are none."""
    if found.low is None or found.high is None:
        return float("nan"), float("nan")
    return 100 * found.low, 100 * found.high


def _band(found: Limited) -> tuple[float, float]:
    """The same, beyond any panel where there are none: every lift is possible then."""
    return (-1e6, 1e6) if found.low is None or found.high is None else _ends(found)


def _percent(found: Limited) -> Interval:
    low, high = _ends(found)
    known = found.low is not None and found.high is not None
    return Interval(100 * float(found.lift or 0), low if known else None, high if known else None)
