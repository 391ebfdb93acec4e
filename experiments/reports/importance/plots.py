"""Pictures of an importance report: bars by method, agreement of methods and seeds, importance by slice."""

from collections.abc import Sequence

import matplotlib
import matplotlib.colors
import matplotlib.lines
import matplotlib.patches
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.importance.model_features import SIMILARITY_GROUP, TOWER_GROUP
from experiments.importance.result import (
    ALL,
    METHOD_TITLES,
    FeatureImportance,
    ImportanceReport,
    Method,
    MethodAgreement,
    SeedAgreement,
)
from experiments.reports.importance.text import (
    agreement_title,
    feature_title,
    methods_of,
    slices_of,
)
from experiments.reports.plot_style import (
    COLOURS,
    MARKERS,
    STYLE,
    WIDTH_INCHES,
    broken,
    interval_line,
    note,
    rows_look,
)
from experiments.statistics.intervals import Interval, excludes_zero

#: Features a picture shows; the table has them all.
MAX_BARS, MAX_HEAT_ROWS = 20, 16
#: Places of each method that the agreement plot follows, and the last place that is drawn as itself.
_FOLLOWED, _LAST_PLACE = 8, 20

# Okabe and Ito (2008): told apart with every common colour vision; fill and hatch differ as well.
_SEMANTIC, _OTHER, _WARM = "#0072B2", "#7a7a7a", "#D55E00"
_HEAT = matplotlib.colors.LinearSegmentedColormap.from_list("heat", ["#B35806", "#ffffff", "#08519c"])
_AXIS_TITLES: dict[Method, str] = {
    "permutation": "AUC lost when shuffled among impressions",
    "ablation": "AUC lost when replaced by a constant",
    "integrated_gradients": "Mean absolute attribution, logits",
}


def bars(report: ImportanceReport, method: Method) -> Figure | None:
    """Features sorted, groups apart; None without this method. Hollow: the interval reaches zero."""
    features = report.ranked(method=method)
    groups = report.ranked(method=method, kind="group")
    if not features:
        return None
    semantic = semantic_names(report)
    shown = features[:MAX_BARS]
    with matplotlib.rc_context(STYLE):
        height = 1.5 + 0.27 * max(len(shown), len(groups), 4)
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        ratios = (1.25, 1) if groups else (1,)
        panels = figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
        _bars(panels[0], shown, [entry.name in semantic for entry in shown])
        more = f", the first {len(shown)} of {len(features)}" if len(features) > len(shown) else ""
        panels[0].set_title(f"Features{more}")
        if groups:
            inside = [set(entry.members) <= semantic for entry in groups]
            _bars(panels[1], groups, inside)
            panels[1].set_title("Groups, each shuffled as one" if method == "permutation" else "Groups")
        figure.supxlabel(_AXIS_TITLES[method], fontsize="medium")
        # Whatever is not shown, both panels have bars of one thickness.
        rows = max(len(shown), len(groups))
        for axes in panels:
            axes.set_ylim(rows - 0.4, -0.6)
        handles = _bar_legend(semantic, hollow=not all(excludes_zero(entry) for entry in [*shown, *groups]))
        figure.legend(handles=handles, loc="outside upper left", ncols=4, frameon=False, fontsize=9)
        return figure


def agreement(report: ImportanceReport) -> Figure | None:
    """Left the places that each method gives to the leaders of all; right rank correlations with intervals.

    None if there is neither a second method nor any correlation.
    """
    methods = methods_of(report)
    correlations = _correlations(report)
    if len(methods) < 2 and not correlations:
        return None
    with matplotlib.rc_context(STYLE):
        shown = [name for name, there in (("places", len(methods) > 1), ("rank", correlations)) if there]
        figure = Figure(figsize=(WIDTH_INCHES, 4.8), layout="constrained")
        ratios = (2.1, 1) if len(shown) == 2 else (1,)
        panels = dict(
            zip(shown, np.atleast_1d(figure.subplots(1, len(shown), width_ratios=ratios)), strict=True)
        )
        if "places" in panels:
            _places(panels["places"], report, methods)
        if "rank" in panels:
            _dots(panels["rank"], correlations)
        return figure


def slice_heat(report: ImportanceReport, *, aisles: bool = False) -> Figure | None:
    """Permutation importance of the leaders in each slice, in thousandths of AUC; None without slices."""
    slices = slices_of(report, aisles=aisles)
    rows = report.ranked()[:MAX_HEAT_ROWS]
    if not slices or not rows:
        return None
    columns = [ALL, *slices]
    found = {(entry.slice, entry.name): entry for slice in columns for entry in report.ranked(slice=slice)}
    # What cannot be told from zero stays white, whatever its mean.
    value_RC = np.array(
        [[_surely(found.get((slice, row.name))) for slice in columns] for row in rows], dtype=np.float64
    )
    limit = float(np.abs(value_RC).max()) or max(abs(row.mean) for row in rows) or 1.0
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, 1.6 + 0.32 * len(rows) + 0.9 * aisles), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(
            1000 * value_RC,
            cmap=_HEAT,
            norm=_root_scale(1000 * limit),
            aspect="auto",
            interpolation="nearest",
        )
        for place, row in enumerate(rows):
            for column, slice in enumerate(columns):
                entry = found.get((slice, row.name))
                if entry is not None:
                    _cell(axes, column, place, entry, limit, small=len(columns) > 12)
        axes.set_yticks(range(len(rows)), [feature_title(row.name) for row in rows])
        labels = [_slice_label(report, slice, aisles=aisles) for slice in columns]
        axes.set_xticks(
            range(len(columns)), labels, rotation=60 if aisles else 0, ha="right" if aisles else "center"
        )
        if aisles:
            for label in axes.get_xticklabels():
                label.set_rotation_mode("anchor")
        axes.tick_params(length=0, labelsize=9)
        axes.axvline(0.5, color="white", linewidth=5)
        axes.spines[["left", "bottom"]].set_visible(False)
        bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.025)
        bar.set_label("AUC lost, thousandths")
        bar.outline.set_visible(False)
        lowest = min(0.0, 1000 * float(value_RC.min()))
        bar.ax.set_ylim(lowest, 1000 * limit)
        bar.set_ticks(
            [tick for share in (0, 0.04, 0.2, 0.5, 1) if (tick := round(1000 * limit * share, 1)) >= 0]
        )
        return figure


def semantic_names(report: ImportanceReport) -> set[str]:
    """Features that come from embedding tables."""
    groups = [
        entry
        for entry in report.features
        if entry.kind == "group" and entry.name in (TOWER_GROUP, SIMILARITY_GROUP)
    ]
    return {member for entry in groups for member in entry.members}


def _bars(axes: Axes, entries: Sequence[FeatureImportance], semantic: Sequence[bool]) -> None:
    ends = [max(entry.mean, entry.high or entry.mean, 0.0) for entry in entries]
    for place, (entry, inside) in enumerate(zip(entries, semantic, strict=True)):
        colour = _SEMANTIC if inside else _OTHER
        axes.barh(
            place,
            entry.mean,
            height=0.66,
            facecolor=colour if excludes_zero(entry) else "white",
            edgecolor=colour,
            linewidth=1.1,
        )
        if entry.low is not None and entry.high is not None:
            axes.plot([entry.low, entry.high], [place] * 2, "|-", color="black", linewidth=1.3, markersize=5)
        mean = f"{entry.mean:.4f}".replace("-0.0000", "0.0000")
        note(axes, mean, (ends[place], place), (4, 0), fontsize=8, color="#333333")
    axes.axvline(0, color="#555555", linewidth=1)
    left = min([0.0, *(entry.mean if entry.low is None else entry.low for entry in entries)])
    right = max([*ends, 1e-9])
    axes.set_xlim(1.05 * left - 0.02 * right, 1.2 * right)
    axes.set_yticks(range(len(entries)), [feature_title(entry.name) for entry in entries])
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=5)
    rows_look(axes)


def _bar_legend(semantic: set[str], *, hollow: bool) -> list[matplotlib.patches.Patch]:
    kinds = [(_SEMANTIC, "Embeddings, similarities, purchase history")] if semantic else []
    kinds.append((_OTHER, "Other features" if semantic else "Features"))
    handles = [
        matplotlib.patches.Patch(facecolor=colour, edgecolor=colour, label=title) for colour, title in kinds
    ]
    if hollow:
        title = "Hollow: the interval reaches zero"
        handles.append(matplotlib.patches.Patch(facecolor="white", edgecolor="#333333", label=title))
    return handles


def _surely(entry: FeatureImportance | None) -> float:
    return entry.mean if entry is not None and excludes_zero(entry) else 0.0


def _places(axes: Axes, report: ImportanceReport, methods: Sequence[Method]) -> None:
    place_of = {
        method: {entry.name: place for place, entry in enumerate(report.ranked(method=method), start=1)}
        for method in methods
    }
    first = place_of[methods[0]]
    followed = {name for places in place_of.values() for name, place in places.items() if place <= _FOLLOWED}
    ordered = sorted(followed, key=lambda name: first.get(name, len(first)))
    deepest = max(place_of[method].get(name, _LAST_PLACE + 1) for method in methods for name in followed)
    bottom = min(_LAST_PLACE, deepest) + 1
    beyond: dict[Method, list[str]] = {method: [] for method in methods}
    for number, name in enumerate(ordered):
        colour = COLOURS[number % len(COLOURS)]
        marker = MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]
        heights = []
        for method in methods:
            place = place_of[method].get(name, bottom)
            if place >= bottom:
                beyond[method].append(name)
            heights.append(min(place, bottom))
        axes.plot(range(len(methods)), heights, marker=marker, color=colour, linewidth=1.8, markersize=6.5)
        title = broken(feature_title(name), 20)
        if heights[0] < bottom:
            note(axes, f"{title}  {heights[0]}", (0, heights[0]), (-9, 0), ha="right", fontsize=8.5)
        if heights[-1] < bottom:
            note(axes, f"{heights[-1]}  {title}", (len(methods) - 1, heights[-1]), (9, 0), fontsize=8.5)
    for end, side in ((0, -1), (len(methods) - 1, 1)):
        names = beyond[methods[end]]
        if names:
            text = broken(f"beyond {_LAST_PLACE}: {', '.join(feature_title(name) for name in names)}", 30)
            look = {"ha": "right" if side < 0 else "left", "va": "top", "fontsize": 8, "color": "#555555"}
            note(axes, text, (end, bottom), (9 * side, 0), **look)
    axes.set_xlim(-0.95, len(methods) - 1 + 0.95)
    axes.set_ylim(bottom + (1.4 if any(beyond.values()) else 0), 0.2)
    axes.set_xticks(range(len(methods)), [METHOD_TITLES[method] for method in methods])
    axes.xaxis.tick_top()
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_title("Place that each method gives to the features", pad=10)


def _correlations(report: ImportanceReport) -> list[tuple[str, Interval]]:
    """Title, Spearman's correlation and its interval: pairs of methods, then pairs of seeds by method."""
    found: list[tuple[str, MethodAgreement | SeedAgreement]] = [
        *((agreement_title(pair), pair) for pair in report.agreement.methods),
        *((f"Two seeds, {METHOD_TITLES[m].lower()}", seeds) for m, seeds in report.agreement.seeds.items()),
    ]
    return [(title, Interval(of.spearman, of.low, of.high)) for title, of in found]


def _dots(axes: Axes, rows: Sequence[tuple[str, Interval]]) -> None:
    for place, (_, found) in enumerate(rows):
        interval_line(axes, found, place, _SEMANTIC)
        axes.plot(found.mean, place, "o", color=_SEMANTIC, markersize=7, markeredgecolor="white")
        look = {"ha": "center", "va": "baseline", "fontsize": 8.5}
        note(axes, f"{found.mean:.2f}", (found.mean, place), (0, 7), **look)
    lowest = min((found.mean if found.low is None else found.low for _, found in rows), default=0.0)
    axes.set_xlim(min(0.0, lowest) - 0.04, 1.04)
    axes.axvline(0, color="#555555", linewidth=1)
    axes.set_yticks(range(len(rows)), [broken(title, 22) for title, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.7)
    axes.set_xlabel("1: same order, 0: none")
    axes.set_title("Rank correlation")
    rows_look(axes)


def _root_scale(limit: float) -> matplotlib.colors.FuncNorm:
    """Colours by the root of the distance to zero, so that small importances show beside the largest."""
    return matplotlib.colors.FuncNorm(
        (lambda value: np.sign(value) * np.sqrt(np.abs(value)), lambda root: np.sign(root) * root**2),
        vmin=-limit,
        vmax=limit,
    )


def _cell(axes: Axes, column: int, row: int, entry: FeatureImportance, limit: float, *, small: bool) -> None:
    sure = excludes_zero(entry)
    dark = abs(entry.mean) > 0.4 * limit
    text = f"{1000 * entry.mean:.{0 if small and abs(entry.mean) >= 0.1 else 1}f}"
    text = "0.0" if text == "-0.0" else text
    axes.text(
        column,
        row,
        text if sure else f"({text})",
        ha="center",
        va="center",
        fontsize=7 if small else 8.5,
        color="#6a6a6a" if not sure else "white" if dark else "#111111",
    )


def _slice_label(report: ImportanceReport, slice: str, *, aisles: bool) -> str:
    title = "All rows" if slice == ALL else slice.removeprefix("aisle: ")
    found = report.slices.get(slice)
    size = found.rows if found else report.rows if slice == ALL else None
    if aisles:
        return title if size is None else f"{title} ({size:,})"
    title = broken(title[:1].upper() + title[1:], 15)
    return title if size is None else f"{title}\n({size:,})"
