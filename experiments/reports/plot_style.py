"""How the plots of all reports look, and a figure as bytes: the same figure gives the same bytes."""

import io
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.statistics.intervals import Limits

# Okabe and Ito (2008) without yellow, which is too light for white paper: told apart with every common
# colour vision. Markers, lines or hatches differ as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#4d4d4d")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
WIDTH_INCHES = 11.0
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "svg.hashsalt": "dashclip",  # the same numbers give the same bytes
}


def broken(title: str, width: int = 32) -> str:
    """The words of a title on lines of at most `width` characters; a longer word stays whole."""
    lines = [""]
    for word in title.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def note(axes: Axes, text: str, point: tuple[float, float], offset: tuple[float, float], **look: Any) -> None:
    """A text beside a point of a plot.

    Args:
        offset: from the point, in points of print.
        look: how Matplotlib draws the text.
    """
    axes.annotate(text, point, offset, textcoords="offset points", **{"va": "center"} | look)


def interval_line(
    axes: Axes, interval: Limits, height: float, colour: str, *, width: float = 2.2, ends: bool = False
) -> None:
    """From limit to limit, with strokes at the `ends`; nothing where there are none."""
    if interval.low is not None and interval.high is not None:
        axes.plot(
            [interval.low, interval.high],
            [height, height],
            "|-" if ends else "-",
            color=colour,
            linewidth=width,
            solid_capstyle="butt",
        )


def rows_look(axes: Axes) -> None:
    """Of a plot with one row a name: lines to read values by, no axis line and no ticks at the names."""
    axes.grid(axis="x", color="#e4e4e4")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def svg_of(figure: Figure) -> str:
    """A figure as SVG, without a date."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def png_of(figure: Figure) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
