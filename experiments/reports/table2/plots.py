"""The report's plots as SVG: differences with intervals, slices, calibration, learning curves."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments.reports.plot_style import (
    COLOURS,
    MARKERS,
    STYLE,
    WIDTH_INCHES,
    broken,
    interval_line,
    svg_of,
)
from experiments.sweeps.table2 import Table2

#: The first, of the baseline, is grey. None is red or green, which say loss and gain in the tables beside.
_COLOURS = (
    *(COLOURS[number] for number in (-1, 0, 5, 3, 4)),
    *("#6A3D9A", "#8C6D31", "#F0E442", "#17A2B8", "#D8B4A0"),
)


def forest(table: Table2) -> str:
    """AUC difference to the baseline, one panel a slice: thick over seeds, thin over users."""
    names = [name for name in table.variants if name != table.baseline]
    panels = list(table.slices)
    columns = 4 if len(panels) > 5 else max(1, min(3, len(panels)))
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, rows * (0.95 + 0.36 * len(names)) + 0.5), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
        for axes, key in zip(grid.flat, panels, strict=False):
            axes.axvline(0, color="#555555", linewidth=1)
            for height, name in enumerate(reversed(names)):
                difference = table.variants[name].slices[key].difference
                if difference is None:
                    axes.text(0, height, " undefined", va="center", fontsize=8, color="#555555")
                    continue
                colour, marker = _look(table, name)
                interval_line(axes, difference.auc_users, height, colour, width=1.3, ends=True)
                interval_line(axes, difference.auc, height, colour, width=5)
                # A dark edge: within a thick line of its own colour a white one looks like another shape.
                look = {"markersize": 6, "markeredgecolor": "black", "markeredgewidth": 0.7}
                axes.plot(difference.auc.mean, height, marker, color=colour, **look)
            axes.set_yticks([])
            axes.set_ylim(-0.6, len(names) - 0.4)
            axes.set_title(_wrapped(table, key))
            axes.grid(axis="x", color="#e4e4e4")
            axes.spines["left"].set_visible(False)
            axes.tick_params(labelbottom=True)
            axes.locator_params(axis="x", nbins=5)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        figure.supxlabel(f"AUC difference to {_title(table, table.baseline)}", fontsize=10)
        _legend(figure, table, names)
        return svg_of(figure)


def slice_bars(table: Table2) -> str:
    """AUC of each variant on each slice, from chance (0.5) up, ± sd over seeds; a black line marks the best
    reachable AUC where it is known."""
    names, panels = list(table.variants), list(table.slices)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 4.0), layout="constrained")
        axes = figure.subplots()
        width = 0.8 / len(names)
        for place, key in enumerate(panels):
            for number, name in enumerate(names):
                found = table.variants[name].slices[key]
                if found.auc_mean is None:
                    continue
                x = place + (number - (len(names) - 1) / 2) * width
                axes.bar(x, found.auc_mean - 0.5, width * 0.92, bottom=0.5, color=_look(table, name)[0])
                if found.auc_sd is not None:
                    axes.errorbar(x, found.auc_mean, found.auc_sd, color="#999999", capsize=2, linewidth=1)
            best = table.slices[key].best_auc
            if best is not None:
                axes.hlines(best, place - 0.42, place + 0.42, color="black", linewidth=2)
                axes.text(place, best, f"best {best:.3f}", ha="center", va="bottom", fontsize=8)
        axes.set_xticks(range(len(panels)), [_wrapped(table, key) for key in panels], fontsize=9)
        axes.set_ylabel("AUC (0.5 is chance)")
        axes.set_ylim(bottom=0.5)
        axes.grid(axis="y", color="#e4e4e4")
        axes.set_axisbelow(True)
        _legend(figure, table, names)
        return svg_of(figure)


def calibration(table: Table2) -> str:
    """Observed against predicted CTR in bins of equal row count, seeds pooled; one panel a variant."""
    names = list(table.variants)
    columns = 4  # also for fewer variants: a panel keeps its size
    rows = -(-len(names) // columns)
    curves = {name: table.variants[name].calibration for name in names}
    top = 1.05 * max(float(max(c.predicted_K.max(), c.observed_K.max())) for c in curves.values())
    with matplotlib.rc_context(STYLE):
        title_lines = max(broken(_title(table, name)).count("\n") + 1 for name in names)
        figure = Figure(figsize=(WIDTH_INCHES, (2.9 + 0.2 * title_lines) * rows), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, name in zip(grid.flat, names, strict=False):
            colour, marker = _look(table, name)
            axes.plot([0, top], [0, top], color="#888888", linewidth=1, linestyle="--")
            axes.plot(
                curves[name].predicted_K, curves[name].observed_K, color=colour, marker=marker, markersize=5
            )
            axes.set_title(broken(_title(table, name)), fontsize=9)
            axes.set_xlim(0, top)
            axes.set_ylim(0, top)
            axes.set_aspect("equal")
            axes.grid(color="#e4e4e4")
            axes.set_xlabel("Predicted CTR")
        for axes in grid[:, 0]:
            axes.set_ylabel("Observed CTR")
        for axes in list(grid.flat)[len(names) :]:
            axes.set_visible(False)
        return svg_of(figure)


def learning_curves(table: Table2) -> str | None:
    """Validation AUC against training rows seen: each seed thin, their mean thick. None without any curve."""
    names = [
        name for name, found in table.variants.items() if any(x for x, _ in found.learning_curves.values())
    ]
    if not names:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 4.2), layout="constrained")
        axes = figure.subplots()
        for name in names:
            colour, marker = _look(table, name)
            curves = [curve for curve in table.variants[name].learning_curves.values() if curve[0]]
            for rows, aucs in curves:
                axes.plot(rows, aucs, color=colour, linewidth=0.8, alpha=0.35)
            rows, aucs = _mean_curve(curves)
            axes.plot(rows, aucs, color=colour, linewidth=2.2, marker=marker, markersize=5)
        axes.set_xlabel("Training rows seen")
        axes.set_ylabel("Validation AUC")
        axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        axes.grid(color="#e4e4e4")
        _legend(figure, table, names)
        return svg_of(figure)


def _mean_curve(curves: Sequence[tuple[list[float], list[float]]]) -> tuple[list[float], list[float]]:
    """Mean over seeds at the points that every seed reached: a mean over fewer would jump where one stops."""
    common = sorted(set.intersection(*(set(rows) for rows, _ in curves)))
    by_rows = [dict(zip(rows, aucs, strict=True)) for rows, aucs in curves]
    return common, [float(np.mean([curve[point] for curve in by_rows])) for point in common]


def _look(table: Table2, name: str) -> tuple[str, str]:
    number = list(table.variants).index(name)
    return _COLOURS[number % len(_COLOURS)], MARKERS[number % len(MARKERS)]


def _title(table: Table2, name: str) -> str:
    found = table.variants.get(name)
    return found.title if found else name


def _wrapped(table: Table2, key: str) -> str:
    return broken(table.slices[key].name, 18)


def _legend(figure: Figure, table: Table2, names: Sequence[str]) -> None:
    handles = [
        matplotlib.lines.Line2D(
            [], [], color=colour, marker=marker, linewidth=2.2, label=broken(_title(table, name), 44)
        )
        for name in names
        for colour, marker in [_look(table, name)]
    ]
    figure.legend(
        handles=handles, loc="outside upper left", ncols=min(3, len(names)), frameon=False, fontsize=9
    )
