"""Plots of the evidence page as SVG: table 1, its slices, latency."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from experiments.encoders.table1 import Table1
from experiments.reports.plot_style import STYLE, WIDTH_INCHES, broken, interval_line, note, rows_look, svg_of
from experiments.reports.records import Measured
from experiments.reports.table1_text import row_title
from experiments.statistics.cells import OptionalIntervals

# Okabe and Ito (2008): told apart with every common colour vision; shapes differ as well.
_CANDIDATE, _OTHER, _THIRD = "#0072B2", "#6e6e6e", "#D55E00"


def retrieval(record: Table1, metrics: Mapping[str, str]) -> str:
    """Each metric a panel, each row a dot with its interval; the dotted line is the best possible order."""
    names = list(record.rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 1.1 + 0.34 * len(names)), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(metrics), sharey=True))
        for axes, (key, title) in zip(panels, metrics.items(), strict=True):
            _dots(axes, record.rows, key, record.candidate, record.best_possible.get(key))
            axes.set_title(title)
        panels[0].set_yticks(range(len(names)), [row_title(name) for name in reversed(names)])
        return svg_of(figure)


def retrieval_slices(record: Table1) -> str:
    """Graded relevance of each row in each slice."""
    names = list(record.rows)
    columns = min(3, len(record.slices))
    rows = -(-len(record.slices) // columns)
    with matplotlib.rc_context(STYLE):
        # Room between the rows: a title stands close below the ticks of the panel above it.
        layout = ConstrainedLayoutEngine(hspace=0.1)
        figure = Figure(figsize=(WIDTH_INCHES, rows * (1.15 + 0.3 * len(names))), layout=layout)
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes, (title, found) in zip(grid.flat, record.slices.items(), strict=False):
            _dots(axes, found.rows, "graded_rel", record.candidate, found.best_possible.get("graded_rel"))
            axes.set_title(f"{title[:1].upper()}{title[1:]} ({found.queries:,} queries)")
        for axes in grid[:, 0]:
            axes.set_yticks(range(len(names)), [row_title(name) for name in reversed(names)])
        for axes in list(grid.flat)[len(record.slices) :]:
            axes.set_visible(False)
        figure.supxlabel("Graded relevance", fontsize=10)
        return svg_of(figure)


def latency(model: Mapping[str, float], added: Mapping[str, float], ladder: Sequence[Measured]) -> str:
    """Milliseconds by number of candidates, beside the ways to serve one request."""
    curves = [
        (points, look)
        for points, look in (
            (_points(model), (_CANDIDATE, "o", "Model alone, p50")),
            (_points(added), (_THIRD, "D", "Embeddings add, p99")),
        )
        if points
    ]
    with matplotlib.rc_context(STYLE):
        height = max(3.0, 1.0 + 0.36 * len(ladder))
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        shown = [kind for kind, there in (("curves", curves), ("ladder", ladder)) if there]
        panels = dict(zip(shown, np.atleast_1d(figure.subplots(1, len(shown))), strict=True))
        if curves:
            axes = panels["curves"]
            counts = sorted({x for points, _ in curves for x, _ in points})
            for points, (colour, marker, title) in curves:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, marker=marker, color=colour, linewidth=2, label=title)
            axes.set_xscale("log")
            axes.set_xticks(counts, [f"{count:,}" for count in counts])
            axes.minorticks_off()
            axes.set_xlabel("Candidates of a request")
            axes.set_ylabel("Milliseconds")
            axes.set_ylim(bottom=min(0.0, *(y for points, _ in curves for _, y in points)))
            axes.margins(x=0.08, y=0.1)
            axes.grid(axis="y", color="#e4e4e4")
            axes.legend(frameon=False, fontsize=9, loc="upper left")
        if ladder:
            axes = panels["ladder"]
            heights = range(len(ladder))[::-1]
            colours = [_THIRD if found.title.endswith("p99") else _CANDIDATE for found in ladder]
            axes.barh(heights, [found.value_ms for found in ladder], height=0.62, color=colours)
            for place, found in zip(heights, ladder, strict=True):
                note(axes, f"{found.value_ms:.2f}", (max(found.value_ms, 0), place), (4, 0), fontsize=9)
            axes.set_yticks(heights, [broken(found.title, 24) for found in ladder])
            axes.set_xlabel("Milliseconds")
            axes.margins(x=0.12)
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0)
        return svg_of(figure)


def _dots(
    axes: Axes,
    rows: Mapping[str, OptionalIntervals],
    key: str,
    candidate: str,
    best_possible: float | None,
) -> None:
    for height, (name, row) in enumerate(reversed(list(rows.items()))):
        found = row.get(key)
        colour, marker = (_CANDIDATE, "D") if name == candidate else (_OTHER, "o")
        if found is None:
            axes.text(0, height, "no value", va="center", fontsize=8, color="#555555")
            continue
        interval_line(axes, found, height, colour)
        axes.plot(found.mean, height, marker, color=colour, markersize=6.5, markeredgecolor="white")
    if best_possible is not None:
        axes.axvline(best_possible, color="black", linewidth=1.1, linestyle=":")
    shown = [found for row in rows.values() if (found := row.get(key))]
    right = max([0.0, best_possible or 0.0, *(max(one.mean, one.high or one.mean) for one in shown)]) or 1.0
    axes.set_xlim(-0.04 * right, 1.06 * right)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.locator_params(axis="x", nbins=5)
    rows_look(axes)


def _points(by_candidates: Mapping[str, float]) -> list[tuple[int, float]]:
    """Sorted by the number of candidates; a key that is no number has no place on the axis."""
    return sorted((int(key), value) for key, value in by_candidates.items() if key.isdigit())


class TrainingCurve(NamedTuple):
    """Evaluation loss of one stage by step, the step that was kept, and what chance gives."""

    stage: str
    points: Sequence[tuple[int, float]]
    best_step: int
    chance: float | None


def training(curves: Sequence[TrainingCurve]) -> str:
    """A panel for each stage, each with a scale of its own."""
    columns = min(4, len(curves))
    rows = -(-len(curves) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 2.5 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, curve in zip(grid.flat, curves, strict=False):
            steps, losses = zip(*curve.points, strict=True)
            axes.plot(steps, losses, "o-", color=_CANDIDATE, markersize=3.5, linewidth=1.4)
            best = dict(curve.points)[curve.best_step]
            axes.plot(curve.best_step, best, "D", color=_CANDIDATE, markersize=7.5, markeredgecolor="white")
            if curve.chance is not None:
                axes.axhline(curve.chance, color="black", linewidth=1.1, linestyle=":")
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)
            axes.set_title(curve.stage)
            axes.locator_params(axis="x", nbins=4, integer=True)
            axes.grid(axis="y", color="#e4e4e4")
        for axes in list(grid.flat)[len(curves) :]:
            axes.set_visible(False)
        figure.supxlabel("Step", fontsize=10)
        figure.supylabel("Loss (nats)", fontsize=10)
        return svg_of(figure)
