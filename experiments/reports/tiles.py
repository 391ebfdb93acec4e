"""A product as a tile of a page: a small picture and a few lines."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from experiments.reports.page import Tile, jpeg_source
from features.inputs.images import ImageUnreadable, decode_image

#: Longer side of a picture on a page, in pixels: sharp at 112 on screens of twice the resolution would be
#: 224, but a page of hundreds of products has to stay small.
SIDE = 128
_LINE = 64


def product_tile(image: Path | None, lines: Sequence[str]) -> Tile:
    """The tile; without a picture where the file is missing or cannot be read."""
    return Tile(thumbnail(image) if image is not None else None, tuple(cut(line) for line in lines if line))


def thumbnail(path: Path) -> str | None:
    """Source of an image element with the picture made small, on white; None if it cannot be read."""
    try:
        image = decode_image(path, side=SIDE)
    except ImageUnreadable:
        return None
    image.thumbnail((SIDE, SIDE))
    page = Image.new("RGB", image.size, "white")
    page.paste(image, mask=image if image.mode == "RGBA" else None)
    buffer = io.BytesIO()
    page.save(buffer, "JPEG", quality=82, optimize=True)
    return jpeg_source(buffer.getvalue())


def cut(text: str) -> str:
    """One line of at most 64 characters."""
    text = " ".join(text.split())
    return text if len(text) <= _LINE else f"{text[: _LINE - 1]}…"


def price_text(price: float | None) -> str:
    """As "price 12.50"; nothing for none. Tables do not say the currency."""
    return "" if price is None else f"price {price:,.2f}"
