"""Pictures of an encoder before and after training (paper figures 4 and 5): t-SNE by aisle, cosines by grade,
confusion matrices, recall of each class.

Shapes: N points or pairs, D embedding width, C classes.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import matplotlib
import matplotlib.lines
import matplotlib.patheffects
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from embeddings.evaluation.probe_report import ProbeComparison, ProbeReport, ProbeResult, grade_auc
from embeddings.evaluation.probes import ProbeLabels, VectorPair, cosines
from embeddings.relevance.grades import GRADES
from experiments.reports.plot_style import COLOURS, STYLE
from features.artifacts import atomic_write_bytes

FloatArray = npt.NDArray[np.floating]

#: Points of a t-SNE picture: more hide each other, and the time grows faster than they do.
MAX_POINTS = 1_500
#: t-SNE of fewer points says nothing.
LEAST_POINTS = 8
#: Aisles that get a look of their own, the largest; the others are grey.
MAX_AISLES = 28
#: Beyond it the numbers in the cells of a confusion matrix cannot be read.
MAX_MATRIX_CLASSES = 24

#: Neighbours in the list of looks differ in colour and marker.
_MARKERS = ("o", "^", "s", "X")
_GRADE_LOOK: tuple[tuple[str, Literal["-", "--", ":"]], ...] = (
    ("#4d4d4d", ":"),
    ("#E69F00", "--"),
    ("#0072B2", "-"),
)
_OTHER = "#c8c8c8"


def write_pictures(
    folder: Path,
    before: VectorPair,
    after: VectorPair,
    labels: ProbeLabels,
    report: ProbeReport,
    *,
    seed: int,
) -> list[Path]:
    """Pictures of what was probed, as PNG and SVG in `folder`; the paths, PNG and SVG of one in turn.

    Without `LEAST_POINTS` products that have an aisle and vectors there is no t-SNE.
    """
    figures = {}
    if "aisle" in report.probes and _usable(before, after, labels.aisles).sum() >= LEAST_POINTS:
        figures["tsne_by_aisle"] = tsne_by_aisle(before, after, labels.aisles, seed=seed)
    if len(labels.grade_N):
        figures["cosines_by_grade"] = cosines_by_grade(before, after, labels)
    titles = (before.name, after.name)
    for name, found in report.probes.items():
        if len(found.classes) <= MAX_MATRIX_CLASSES:
            figures[f"confusion_{name}"] = confusion_matrices(found, titles=titles)
    if "aisle" in report.probes:
        figures["recall_by_aisle"] = recall_by_class(report.probes["aisle"], titles=titles)
    paths: list[Path] = []
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            paths.append(folder / f"{name}.{kind}")
            atomic_write_bytes(paths[-1], picture_bytes(figure, kind=kind))
    return paths


def picture_bytes(figure: Figure, *, kind: str) -> bytes:
    """A figure as "png" or "svg" without a date: the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        metadata = {"Date": None} if kind == "svg" else None
        # Tight: the layout engine cuts off labels below panels of a fixed aspect.
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata, bbox_inches="tight", pad_inches=0.12)
    return buffer.getvalue()


def tsne_positions(vectors_ND: FloatArray, *, seed: int) -> npt.NDArray[np.float32]:
    """t-SNE of the directions of vectors, [N, 2]; it starts from their PCA, so it is repeatable.

    Raises:
        ValueError: fewer than `LEAST_POINTS`.
    """
    if len(vectors_ND) < LEAST_POINTS:
        raise ValueError(f"t-SNE needs at least {LEAST_POINTS} vectors, got {len(vectors_ND)}")
    length_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit_ND = np.divide(vectors_ND, length_N1, out=np.zeros_like(vectors_ND), where=length_N1 > 0)
    perplexity = min(30.0, (len(vectors_ND) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(unit_ND)


def _usable(before: VectorPair, after: VectorPair, aisles: Sequence[str | None]) -> npt.NDArray[np.bool_]:
    """Products with an aisle and a vector on both sides, (P,)."""
    has_aisle_P = np.array([bool(aisle) for aisle in aisles], bool)
    usable_P: npt.NDArray[np.bool_] = (
        has_aisle_P & before.products_PD.any(axis=1) & after.products_PD.any(axis=1)
    )
    return usable_P


def tsne_by_aisle(
    before: VectorPair, after: VectorPair, aisles: Sequence[str | None], *, seed: int
) -> Figure:
    """Products in the plane, before and after, the same ones in both; names stand where an aisle is densest.

    Products without aisle or with an all-zero vector on either side are left out; at most MAX_POINTS drawn.
    """
    aisle_P = np.array([aisle or "" for aisle in aisles], dtype=np.str_)
    usable_N = np.flatnonzero(_usable(before, after, aisles))
    chosen_N = np.sort(np.random.default_rng(seed).permutation(usable_N)[:MAX_POINTS])
    names, counts = np.unique(aisle_P[usable_N], return_counts=True)
    shown = sorted(names[np.argsort(-counts, kind="stable")][:MAX_AISLES].tolist())
    with matplotlib.rc_context(STYLE):
        legend_rows = -(-(len(shown) + 1) // 7)
        figure = Figure(figsize=(13.0, 6.4 + 0.25 * legend_rows), layout="constrained")
        for axes, vectors in zip(figure.subplots(1, 2), (before, after), strict=True):
            place_N2 = tsne_positions(vectors.products_PD[chosen_N], seed=seed)
            _scatter(axes, place_N2, aisle_P[chosen_N], shown)
            axes.set_title(vectors.name)
        handles = [
            matplotlib.lines.Line2D([], [], color=colour, marker=marker, linestyle="", label=name)
            for name, (colour, marker) in zip(shown, map(_look, range(len(shown))), strict=True)
        ]
        if len(names) > len(shown):
            label = f"{len(names) - len(shown)} smaller aisles"
            handles.append(
                matplotlib.lines.Line2D([], [], color=_OTHER, marker=".", linestyle="", label=label)
            )
        figure.legend(handles=handles, loc="outside lower center", ncols=7, frameon=False, fontsize=9)
        figure.suptitle(f"Products by aisle, t-SNE of {len(chosen_N):,} of {len(usable_N):,}", fontsize=11)
    return figure


def cosines_by_grade(before: VectorPair, after: VectorPair, labels: ProbeLabels) -> Figure:
    """Distribution of the cosine of product and query for each grade, one panel an encoder, one scale."""
    found = {vectors.name: cosines(vectors, labels.product_N, labels.query_N) for vectors in (before, after)}
    low = min(float(cosine_N.min()) for cosine_N in found.values())
    high = max(float(cosine_N.max()) for cosine_N in found.values())
    edges = np.linspace(low - 1e-6, high + 1e-6, 61)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.0, 4.2), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True)
        for axes, (name, cosine_N) in zip(panels, found.items(), strict=True):
            for grade, (colour, line) in enumerate(_GRADE_LOOK):
                chosen_M = cosine_N[labels.grade_N == grade]
                if not len(chosen_M):
                    continue
                density, _ = np.histogram(chosen_M, bins=edges, density=True)
                axes.stairs(density, edges, color=colour, alpha=0.12, fill=True, zorder=1)
                axes.stairs(density, edges, color=colour, linestyle=line, linewidth=1.8, zorder=2)
            auc = grade_auc(cosine_N, labels.grade_N, high=2, low=0)
            axes.set_title(name if auc is None else f"{name}: AUC of high above irrelevant {auc:.3f}")
            axes.set_xlabel("Cosine of product and query")
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
        panels[0].set_ylabel("Density within the grade")
        handles = [
            matplotlib.lines.Line2D(
                [],
                [],
                color=colour,
                linestyle=line,
                linewidth=1.8,
                label=f"{name} ({int((labels.grade_N == grade).sum()):,} pairs)",
            )
            for grade, (name, (colour, line)) in enumerate(zip(GRADES, _GRADE_LOOK, strict=True))
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False)
    return figure


def confusion_matrices(found: ProbeComparison, *, titles: tuple[str, str]) -> Figure:
    """Where each class went, in percent of its test rows over all seeds; the diagonal is the recall."""
    classes = len(found.classes)
    side = 4.0 if classes <= 6 else max(4.5, 0.36 * classes)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2 * side + 1.6, side + (0.6 if classes <= 6 else 1.4)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, title, result in zip(panels, titles, (found.before, found.after), strict=True):
            _matrix(axes, result, found.classes)
            axes.set_title(f"{title}: macro F1 {result.macro_f1:.3f}")
            axes.set_xlabel("Predicted")
        panels[0].set_ylabel("True, and its share of test rows in %")
    return figure


def recall_by_class(found: ProbeComparison, *, titles: tuple[str, str]) -> Figure:
    """Recall of each class before and after, the rarest class on top: do rare classes lose?"""
    order = np.argsort(-np.array(found.support), kind="stable")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 1.4 + 0.27 * len(order)), layout="constrained")
        axes = figure.subplots()
        heights = np.arange(len(order))
        before_C, after_C = (side.recall_C[order] for side in (found.before, found.after))
        axes.hlines(heights, before_C, after_C, color=_OTHER, linewidth=2, zorder=1)
        for recall_C, colour, marker, title in (
            (before_C, "#E69F00", "s", titles[0]),
            (after_C, "#0072B2", "o", titles[1]),
        ):
            axes.scatter(recall_C, heights, color=colour, marker=marker, s=38, zorder=2, label=title)
        axes.set_yticks(heights, [f"{found.classes[c]} ({found.support[c]:,})" for c in order])
        axes.set_ylim(-0.7, len(order) - 0.3)
        axes.set_xlabel("Recall on test rows, all seeds")
        axes.grid(axis="x", color="#e4e4e4")
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def _scatter(axes: Axes, place_N2: FloatArray, aisle_N: npt.NDArray[np.str_], shown: Sequence[str]) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    other_N = ~np.isin(aisle_N, shown)
    axes.scatter(
        place_N2[other_N, 0],
        place_N2[other_N, 1],
        color=_OTHER,
        marker=".",
        s=8,
        linewidths=0,
        rasterized=True,
    )
    halo = [matplotlib.patheffects.withStroke(linewidth=2.5, foreground="white")]
    for number, name in enumerate(shown):
        points_M2 = place_N2[aisle_N == name]
        if not len(points_M2):
            continue
        colour, marker = _look(number)
        axes.scatter(
            points_M2[:, 0],
            points_M2[:, 1],
            color=colour,
            marker=marker,
            s=11,
            linewidths=0,
            alpha=0.8,
            rasterized=True,
        )
        x, y = _densest(points_M2)
        axes.text(x, y, name, fontsize=7.5, ha="center", va="center", path_effects=halo, zorder=3)


def _densest(points_M2: FloatArray) -> npt.NDArray[np.floating]:
    """The point with the nearest tenth of the others closest by: a median may lie where no point is."""
    squared_M1 = (points_M2**2).sum(axis=1, keepdims=True)
    distance_MM = squared_M1 + squared_M1.T - 2 * points_M2 @ points_M2.T
    nearest = max(1, len(points_M2) // 10)
    return points_M2[np.sort(distance_MM, axis=1)[:, : nearest + 1].sum(axis=1).argmin()]


def _matrix(axes: Axes, result: ProbeResult, classes: Sequence[str]) -> None:
    confusion_CC = result.confusion_CC
    rows_C = confusion_CC.sum(axis=1)
    share_CC = confusion_CC / np.maximum(rows_C, 1)[:, None]
    axes.imshow(share_CC, cmap="Blues", vmin=0, vmax=1)
    large = len(classes) <= 6
    for true, predicted in zip(*np.nonzero(share_CC >= 0.005), strict=True):
        value = share_CC[true, predicted]
        axes.text(
            predicted,
            true,
            f"{100 * value:.0f}",
            ha="center",
            va="center",
            fontsize=11 if large else 7,
            color="white" if value > 0.65 else "#222222",
        )
    ticks = np.arange(len(classes))
    shares = 100 * rows_C / rows_C.sum()
    axes.set_yticks(ticks, [f"{name} ({share:.0f})" for name, share in zip(classes, shares, strict=True)])
    axes.set_xticks(ticks, classes, rotation=0 if large else 90)
    axes.tick_params(length=0, labelsize=10 if large else 8)
    axes.spines[["left", "bottom"]].set_visible(False)


def _look(number: int) -> tuple[str, str]:
    marker = _MARKERS[(number + 2 * (number // len(COLOURS))) % len(_MARKERS)]
    return COLOURS[number % len(COLOURS)], marker
