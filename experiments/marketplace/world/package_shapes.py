"""Silhouettes of packages as anti-aliased masks, one per shape, drawn once and reused for every product.

Coordinates are fractions of the image's width, origin at the top left.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageChops, ImageDraw, ImageFilter

Box = tuple[float, float, float, float]
Points = list[tuple[float, float]]
#: Masks are drawn this many times larger, then reduced: smooth edges.
_OVERSAMPLING = 4


@dataclass(frozen=True)
class Package:
    """Masks (mode L) to paint with the package's colour, its trim's colour and its label's colour."""

    body: Image.Image
    trim: Image.Image
    label: Image.Image
    shade: Image.Image
    gloss: Image.Image
    shadow: Image.Image
    #: Where the brand is written, and where variety and noun are.
    brand_box: Box
    text_box: Box


class _Pen:
    """Draws fractions onto one oversampled mask."""

    def __init__(self, pixels: int) -> None:
        self._width = pixels * _OVERSAMPLING
        self._pixels = pixels
        self.mask = Image.new("L", (self._width, self._width), 0)
        self._draw = ImageDraw.Draw(self.mask)

    def rounded(self, box: Box, radius: float) -> None:
        self._draw.rounded_rectangle([v * self._width for v in box], radius * self._width, fill=255)

    def oval(self, box: Box) -> None:
        self._draw.ellipse([v * self._width for v in box], fill=255)

    def polygon(self, points: Points) -> None:
        self._draw.polygon([(x * self._width, y * self._width) for x, y in points], fill=255)

    def done(self) -> Image.Image:
        return self.mask.resize((self._pixels, self._pixels), Image.Resampling.BOX)


_Draw = Callable[[_Pen, _Pen, _Pen], tuple[Box, Box]]


def _box(body: _Pen, trim: _Pen, label: _Pen) -> tuple[Box, Box]:
    body.rounded((0.19, 0.09, 0.78, 0.95), 0.02)
    trim.polygon([(0.78, 0.11), (0.86, 0.16), (0.86, 0.90), (0.78, 0.94)])
    label.rounded((0.19, 0.40, 0.78, 0.80), 0.0)
    return (0.22, 0.15, 0.75, 0.37), (0.22, 0.42, 0.75, 0.78)


def _bag(body: _Pen, trim: _Pen, label: _Pen) -> tuple[Box, Box]:
    left = [(0.20, 0.13), (0.16, 0.30), (0.15, 0.60), (0.17, 0.95)]
    body.polygon(left + [(1 - x, y) for x, y in reversed(left)])
    notches = [(0.19 + 0.62 * step / 14, 0.06 if step % 2 else 0.085) for step in range(15)]
    trim.polygon([(0.19, 0.14), *notches, (0.81, 0.14)])
    label.oval((0.18, 0.38, 0.82, 0.84))
    return (0.22, 0.17, 0.78, 0.37), (0.25, 0.45, 0.75, 0.77)


def _pouch(body: _Pen, trim: _Pen, label: _Pen) -> tuple[Box, Box]:
    body.polygon([(0.24, 0.10), (0.76, 0.10), (0.83, 0.88), (0.76, 0.95), (0.24, 0.95), (0.17, 0.88)])
    trim.rounded((0.23, 0.07, 0.77, 0.14), 0.015)
    label.polygon([(0.205, 0.48), (0.80, 0.36), (0.826, 0.84), (0.174, 0.84)])
    return (0.25, 0.17, 0.75, 0.36), (0.22, 0.49, 0.78, 0.82)


def _bottle(body: _Pen, trim: _Pen, label: _Pen) -> tuple[Box, Box]:
    body.rounded((0.25, 0.28, 0.75, 0.96), 0.09)
    body.polygon([(0.42, 0.12), (0.58, 0.12), (0.60, 0.22), (0.72, 0.36), (0.28, 0.36), (0.40, 0.22)])
    trim.rounded((0.40, 0.03, 0.60, 0.14), 0.02)
    label.rounded((0.25, 0.40, 0.75, 0.85), 0.0)
    return (0.27, 0.41, 0.73, 0.56), (0.27, 0.56, 0.73, 0.84)


def _spray(body: _Pen, trim: _Pen, label: _Pen) -> tuple[Box, Box]:
    body.rounded((0.27, 0.36, 0.73, 0.96), 0.08)
    body.polygon([(0.43, 0.24), (0.57, 0.24), (0.66, 0.44), (0.34, 0.44)])
    trim.polygon([(0.22, 0.06), (0.60, 0.06), (0.62, 0.24), (0.42, 0.24), (0.40, 0.14), (0.22, 0.13)])
    trim.polygon([(0.34, 0.14), (0.40, 0.14), (0.36, 0.27), (0.32, 0.27)])
    label.rounded((0.27, 0.46, 0.73, 0.87), 0.0)
    return (0.28, 0.47, 0.72, 0.61), (0.28, 0.61, 0.72, 0.86)


def _can(body: _Pen, trim: _Pen, label: _Pen) -> tuple[Box, Box]:
    body.rounded((0.22, 0.13, 0.78, 0.90), 0.03)
    body.oval((0.22, 0.83, 0.78, 0.97))
    trim.oval((0.22, 0.05, 0.78, 0.20))
    label.rounded((0.22, 0.44, 0.78, 0.80), 0.0)
    return (0.25, 0.22, 0.75, 0.42), (0.25, 0.46, 0.75, 0.79)


def _jar(body: _Pen, trim: _Pen, label: _Pen) -> tuple[Box, Box]:
    body.rounded((0.19, 0.22, 0.81, 0.95), 0.10)
    trim.rounded((0.25, 0.08, 0.75, 0.24), 0.03)
    label.rounded((0.19, 0.36, 0.81, 0.82), 0.0)
    return (0.22, 0.37, 0.78, 0.53), (0.22, 0.53, 0.78, 0.81)


def _carton(body: _Pen, trim: _Pen, label: _Pen) -> tuple[Box, Box]:
    body.polygon([(0.24, 0.28), (0.36, 0.11), (0.64, 0.11), (0.76, 0.28), (0.76, 0.96), (0.24, 0.96)])
    trim.rounded((0.34, 0.05, 0.66, 0.13), 0.01)
    label.polygon([(0.24, 0.50), (0.76, 0.44), (0.76, 0.84), (0.24, 0.84)])
    return (0.26, 0.28, 0.74, 0.46), (0.26, 0.52, 0.74, 0.83)


def _tub(body: _Pen, trim: _Pen, label: _Pen) -> tuple[Box, Box]:
    body.polygon([(0.14, 0.26), (0.86, 0.26), (0.77, 0.90), (0.23, 0.90)])
    trim.rounded((0.10, 0.16, 0.90, 0.28), 0.03)
    label.polygon([(0.18, 0.50), (0.82, 0.50), (0.783, 0.81), (0.217, 0.81)])
    return (0.18, 0.29, 0.82, 0.49), (0.23, 0.51, 0.77, 0.80)


def _tube(body: _Pen, trim: _Pen, label: _Pen) -> tuple[Box, Box]:
    body.polygon([(0.26, 0.05), (0.74, 0.05), (0.67, 0.82), (0.33, 0.82)])
    trim.rounded((0.37, 0.81, 0.63, 0.96), 0.02)
    label.polygon([(0.284, 0.34), (0.716, 0.34), (0.68, 0.72), (0.32, 0.72)])
    return (0.28, 0.11, 0.72, 0.32), (0.30, 0.36, 0.70, 0.71)


def _tray(body: _Pen, trim: _Pen, label: _Pen) -> tuple[Box, Box]:
    trim.rounded((0.06, 0.22, 0.94, 0.86), 0.07)
    body.rounded((0.10, 0.26, 0.90, 0.82), 0.05)
    label.rounded((0.17, 0.46, 0.83, 0.77), 0.03)
    return (0.16, 0.28, 0.84, 0.45), (0.19, 0.47, 0.81, 0.76)


def _roll(body: _Pen, trim: _Pen, label: _Pen) -> tuple[Box, Box]:
    body.rounded((0.12, 0.18, 0.88, 0.95), 0.10)
    trim.oval((0.16, 0.08, 0.50, 0.26))
    trim.oval((0.50, 0.08, 0.84, 0.26))
    label.rounded((0.12, 0.46, 0.88, 0.82), 0.0)
    return (0.17, 0.27, 0.83, 0.45), (0.17, 0.48, 0.83, 0.81)


_SHAPES: dict[str, _Draw] = {
    "bag": _bag,
    "bottle": _bottle,
    "box": _box,
    "can": _can,
    "carton": _carton,
    "jar": _jar,
    "pouch": _pouch,
    "roll": _roll,
    "spray": _spray,
    "tray": _tray,
    "tub": _tub,
    "tube": _tube,
}


@cache
def package_of(shape: str, pixels: int) -> Package:
    """The masks of a shape at `pixels` x `pixels`; label, shade and gloss stay inside the package."""
    body, trim, label = (_Pen(pixels) for _ in range(3))
    brand_box, text_box = _SHAPES[shape](body, trim, label)
    body_mask, trim_mask = body.done(), trim.done()
    outline = ImageChops.lighter(body_mask, trim_mask)
    ramp = Image.linear_gradient("L").rotate(90).resize((pixels, pixels))
    shade = ImageChops.multiply(ramp.point(lambda v: int(0.35 * abs(v - 100))), outline)
    gloss = _Pen(pixels)
    gloss.rounded((0.28, 0.0, 0.34, 1.0), 0.0)
    blurred = gloss.done().filter(ImageFilter.GaussianBlur(pixels / 40))
    shadow = _Pen(pixels)
    shadow.oval((0.14, 0.88, 0.86, 0.98))
    return Package(
        body=body_mask,
        trim=trim_mask,
        label=ImageChops.multiply(label.done(), body_mask),
        shade=shade,
        gloss=ImageChops.multiply(blurred.point(lambda v: int(0.4 * v)), outline),
        shadow=shadow.done().filter(ImageFilter.GaussianBlur(pixels / 32)).point(lambda v: int(0.4 * v)),
        brand_box=brand_box,
        text_box=text_box,
    )
