"""The section on slices: for whom, and for which queries or aisles, a challenger is better."""

from collections.abc import Sequence

from experiments.abtest.decision import lift_text
from experiments.abtest.metrics import METRICS
from experiments.abtest.result import AbtestResult, Heterogeneity, SliceResult
from experiments.reports.abtest import plots
from experiments.reports.abtest.text import LEVEL, p_text
from experiments.reports.page import Absent, Grid, Plot, Section, svg_source


def slices_section(result: AbtestResult) -> Section | Absent:
    """Lifts of slices, alone and shrunk, and whether they differ at all."""
    heading = ("slices", "Slices", "For whom, and for what, is the challenger better?")
    if not result.slices:
        reason = "The log has neither segments of users nor slices of searches."
        if result.heterogeneity:
            reason = "In every slice too few users clicked."
        return Absent(*heading, reason, None)
    metric = result.primary if any(row.metric == result.primary for row in result.slices) else "ctr"
    rows = [row for row in result.slices if row.metric == metric]
    found = [row for row in rows if row.p_adjusted is not None and row.p_adjusted < LEVEL]
    gains = sum((row.lift or 0) > 0 for row in found)
    title = METRICS[metric].title
    answer = (
        f"{len(found)} of {len(rows)} slices differ from the control in {title} by more than chance: {gains} "
        f"gain, {len(found) - gains} lose."
        if found
        else f"None of {len(rows)} slices differs from the control in {title} by more than chance."
    )
    sentences = [_spread_sentence(spread) for spread in result.heterogeneity if spread.metric == metric]
    grids, shown = [], []
    for kind in dict.fromkeys(row.kind for row in rows):
        of_kind = [row for row in rows if row.kind == kind]
        grids.append(_slice_grid(kind, of_kind))
        shown.append(
            Plot(
                f"{_kind(kind)}: lift of {METRICS[metric].title}",
                "Light: the lift of the slice alone. Dark: drawn towards the mean of all slices by as much "
                "as chance would spread them; it is the better guess for what to expect there.",
                svg_source(
                    plots.lifts(
                        [plots.LiftRow(row.name, row.shrunk, row) for row in of_kind],
                        names=("shrunk, 95 %", "alone, 95 %"),
                    )
                ),
            )
        )
    return Section(
        *heading,
        answer=answer,
        origin=None,
        sentences=tuple(sentences),
        grids=tuple(grids),
        plots=tuple(shown),
        notes=(
            "Of queries and aisles, those with most impressions are shown. p is adjusted for the number of "
            "slices of a kind. Conversions and revenue of each slice are in result.json.",
        ),
    )


def _spread_sentence(spread: Heterogeneity) -> str:
    left_out = (
        f" {spread.left_out} of {spread.left_out + spread.slices} are left out: too few users clicked there."
        if spread.left_out
        else ""
    )
    if spread.p is None or spread.deviation is None:
        return f"{_kind(spread.kind)}: too few slices to compare.{left_out}"
    says = (
        "have different lifts"
        if spread.p < LEVEL
        else "may all have one lift: they differ no more than chance would make them"
    )
    return (
        f"{_kind(spread.kind)}: the {spread.slices} slices {says} (Q test, p = {p_text(spread.p)}; the true "
        f"lifts are estimated to differ by {100 * spread.deviation:.1f} % of the control).{left_out}"
    )


def _slice_grid(kind: str, rows: Sequence[SliceResult]) -> Grid:
    return Grid(
        f"{_kind(kind)}.",
        ("Slice", "Impressions", "Lift alone (95 %)", "p adjusted", "Shrunk (95 %)"),
        tuple(
            (row.name, f"{row.impressions:,}", lift_text(row), p_text(row.p_adjusted), lift_text(row.shrunk))
            for row in rows
        ),
        bold=frozenset(
            (place, 3)
            for place, row in enumerate(rows)
            if row.p_adjusted is not None and row.p_adjusted < LEVEL
        ),
    )


def _kind(kind: str) -> str:
    return {"query": "Queries", "aisle": "Aisles"}.get(kind, kind.replace("_", " ").capitalize())
