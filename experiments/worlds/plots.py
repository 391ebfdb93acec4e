"""The difference to the baseline over worlds as a picture: a dot a world, the mean with its interval."""

import matplotlib
from matplotlib.figure import Figure

from experiments.reports.plot_style import (
    COLOURS,
    STYLE,
    WIDTH_INCHES,
    broken,
    interval_line,
    png_of,
    rows_look,
)
from experiments.worlds.table2 import Table2OverWorlds

#: Worlds stand above the line of a row, each a little higher than the one before, so that equal ones show.
_ABOVE, _STEP = 0.16, 0.05


def differences_png(table: Table2OverWorlds) -> bytes:
    """Two panels, minus the baseline and minus the second baseline if there is one; ceilings are grey."""
    panels = [(table.baseline, "auc_diff")]
    if table.second_baseline in table.variants:
        panels.append((str(table.second_baseline), "second_diff"))
    shown = [(name, variant) for name, variant in table.variants.items() if name != table.baseline][::-1]
    with matplotlib.rc_context(STYLE):
        height = 1.5 + 0.55 * len(shown)
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)
        for axes, (against, key) in zip(grid.flat, panels, strict=True):
            axes.axvline(0, color="#555555", linewidth=1)
            for row, (name, variant) in enumerate(shown):
                found = getattr(variant, key)
                if found is None:
                    continue
                colour = COLOURS[-1] if name in table.ceilings else COLOURS[0]
                interval_line(axes, found, row, colour, width=2.2, ends=True)
                axes.plot(found.mean, row, "D", color=colour, markersize=6, markeredgecolor="black", zorder=3)
                places = range(len(found.by_world))
                heights = [row + _ABOVE + _STEP * place for place in places]
                axes.plot(
                    list(found.by_world.values()), heights, "o", color=COLOURS[5], markersize=4, alpha=0.85
                )
            axes.set_yticks(range(len(shown)), [broken(variant.title) for _, variant in shown])
            axes.set_ylim(-0.5, len(shown) - 0.3)
            axes.locator_params(axis="x", nbins=6)
            axes.set_title(broken(f"minus {table.variants[against].title}", 48))
            rows_look(axes)
        figure.suptitle(
            f"Difference in AUC, {len(table.worlds)} simulated worlds of preset {table.preset}: "
            "a dot a world, diamond and line their mean and its 95 % interval",
            fontsize=10,
        )
        return png_of(figure)
