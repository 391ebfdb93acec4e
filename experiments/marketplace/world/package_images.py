"""Package images: shape by type, colours and words by brand and variety, one badge per diet flag.

An image shows every flag and (by its colour) the variety, also those that the title leaves out. It never
shows the size or the price.
"""

import colorsys
import hashlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from experiments.marketplace.world.assortment import FLAGS
from experiments.marketplace.world.catalog import Catalog, FloatArray
from experiments.marketplace.world.package_shapes import Box, package_of
from features.progress import Progress

Colour = tuple[int, int, int]
#: Share of packages that write the variety in words too; all show it as the label's colour.
VARIETY_IN_WORDS = 0.75
_WHITE, _INK = (255, 255, 255), (28, 26, 32)

#: Badge text and colour of each flag, in the order of `assortment.FLAGS`.
_BADGES: tuple[tuple[str, Colour], ...] = (
    ("OG", (46, 125, 50)),
    ("GF", (191, 144, 0)),
    ("SF", (2, 119, 189)),
    ("V", (104, 159, 56)),
    ("LF", (0, 151, 167)),
    ("L0", (92, 107, 192)),
    ("WG", (141, 110, 99)),
    ("HP", (198, 40, 40)),
    ("LS", (84, 110, 122)),
    ("DC", (109, 76, 65)),
    ("FF", (142, 36, 170)),
    ("EC", (0, 121, 107)),
)

_COLOURS = {
    "red": (205, 40, 44),
    "pink": (236, 112, 150),
    "purple": (116, 66, 160),
    "blue": (60, 90, 180),
    "teal": (40, 150, 150),
    "green": (74, 150, 62),
    "lime": (160, 200, 60),
    "yellow": (246, 214, 62),
    "orange": (240, 140, 40),
    "brown": (96, 58, 36),
    "tan": (200, 160, 104),
    "cream": (246, 232, 200),
    "grey": (150, 152, 160),
    "black": (52, 48, 52),
    "lilac": (186, 160, 216),
    "sky": (140, 198, 236),
}
_VARIETY_COLOURS = {
    "red": "tomato strawberry cherry paprika chili beef salami red_lentil vine kidney gala pork pepper",
    "pink": "raspberry salmon peach grapefruit gentle newborn printed lamb fuji smoothie",
    "purple": "grape plum berry argan night brine",
    "blue": "blueberry salted tuna fresh fresh_linen medium pure brine light_roast whitening iron gouda",
    "teal": "mint miso aloe strong power fast clay",
    "green": "basil spinach herb vegetable green peas broccoli romaine rocket pine forest wild kelp volume",
    "lime": "lime lime_juice apple sour plain_green jasmine chamomile soy",
    "yellow": "lemon banana corn butter cheese cheddar mango egg fruity honey sour_cream omega",
    "orange": "orange apricot carrot pumpkin curry caramel cheddar",
    "brown": "chocolate dark cola dark_roast espresso walnut hazelnut cinnamon smoked chipotle wood",
    "tan": "almond oat peanut wheat rye sesame seeded brown granola maple durum crunchy coffee teriyaki",
    "cream": "vanilla coconut plain milk white mozzarella smooth garlic sourdough classic mild soft",
    "lilac": "lavender acacia sensitive overnight",
    "black": "black lungo long_grain balsamic",
}


def write_images(
    folder: Path,
    catalog: Catalog,
    pixels: int,
    seed: np.random.SeedSequence,
    progress: Progress,
) -> list[str | None]:
    """Write `folder/images/<product_id>.png` for each product; the paths relative to `folder`."""
    (folder / "images").mkdir()
    dice_P6 = np.random.default_rng(seed).random((catalog.num_products, 6))
    paths: list[str | None] = []
    for product, product_id in enumerate(catalog.product_id_P.tolist()):
        path = f"images/{product_id}.png"
        draw_package(catalog, product, dice_P6[product], pixels).save(folder / path, compress_level=1)
        paths.append(path)
        if product % 500 == 499 or product + 1 == catalog.num_products:
            progress("images", product + 1, catalog.num_products)
    return paths


def draw_package(catalog: Catalog, product: int, dice: FloatArray, pixels: int) -> Image.Image:
    """The package of one product; `dice` are six uniform numbers that shift, tint and word it."""
    kind = catalog.assortment.types[catalog.type_P[product]]
    package = package_of(kind.shape, pixels)
    variety = catalog.assortment.varieties[catalog.variety_P[product]]
    brand_colour = colour_of_brand(int(catalog.brand_P[product]))
    label_colour = colour_of_variety(variety)

    tint = int(236 + 16 * dice[0])
    image = Image.new("RGB", (pixels, pixels), (tint, tint, int(tint - 6 + 6 * dice[1])))
    shift = (round((dice[2] - 0.5) * 0.06 * pixels), round((dice[3] - 0.5) * 0.04 * pixels))
    image.paste((70, 70, 80), shift, package.shadow)
    image.paste(brand_colour, shift, package.body)
    image.paste(_mix(brand_colour, _INK, 0.35), shift, package.trim)
    image.paste(label_colour, shift, package.label)
    image.paste(_INK, shift, package.shade)
    image.paste(_WHITE, shift, package.gloss)

    on_label = _is_inside(package.brand_box, package.text_box)
    brand_ground = label_colour if on_label else brand_colour
    _write(image, catalog.brands[catalog.brand_P[product]], package.brand_box, brand_ground, shift, bold=True)
    left, top, right, bottom = package.text_box
    middle = (top + bottom) / 2
    if dice[4] < VARIETY_IN_WORDS:
        _write(image, variety, (left, top, right, middle), label_colour, shift)
        _write(image, kind.name, (left, middle, right, bottom), label_colour, shift)
    else:
        _write(image, kind.name, (left, top, right, bottom), label_colour, shift)

    flags = [bit for bit in range(len(FLAGS)) if catalog.flags_P[product] >> bit & 1]
    width = round(0.23 * pixels)
    for place, bit in enumerate(flags):
        badge, mask = _badge(bit, width)
        across = 0.99 * pixels - width if place % 2 == 0 else 0.01 * pixels
        down = 0.99 * pixels - width * (1 + 1.02 * (place // 2))
        image.paste(badge, (round(across), round(down)), mask)
    return image


def colour_of_brand(brand: int) -> Colour:
    """A brand's own colour, the same on all its packages; hues far apart for neighbours."""
    hue = (brand * 0.61803398875) % 1.0
    saturation, value = ((0.65, 0.62), (0.35, 0.86), (0.75, 0.42), (0.55, 0.78))[brand % 4]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


@lru_cache(maxsize=512)
def colour_of_variety(variety: str) -> Colour:
    """The colour that people expect (brown chocolate), else one of its own by hash."""
    word = variety.replace(" ", "_")
    for name, words in _VARIETY_COLOURS.items():
        if word in words.split():
            return _COLOURS[name]
    digest = hashlib.sha256(variety.encode()).digest()
    return tuple(_COLOURS.values())[digest[0] % len(_COLOURS)]


def _mix(colour: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _is_inside(brand_box: Box, text_box: Box) -> bool:
    """Whether the brand stands on the label (bottles and jars) rather than above it."""
    return brand_box[3] >= text_box[1] - 0.005


def _write(
    image: Image.Image, text: str, box: Box, ground: Colour, shift: tuple[int, int], *, bold: bool = False
) -> None:
    pixels = image.width
    room = (round((box[2] - box[0]) * pixels), round((box[3] - box[1]) * pixels))
    mask = _text_mask(text.upper() if bold else text, room, round(0.15 * pixels), bold)
    bright = 0.3 * ground[0] + 0.59 * ground[1] + 0.11 * ground[2]
    corner = (
        round((box[0] + box[2]) / 2 * pixels - mask.width / 2) + shift[0],
        round((box[1] + box[3]) / 2 * pixels - mask.height / 2) + shift[1],
    )
    image.paste(_INK if bright > 125 else _WHITE, corner, mask)


@lru_cache(maxsize=20_000)
def _text_mask(text: str, room: tuple[int, int], most: int, bold: bool) -> Image.Image:
    """White text on black, as large as fits the room, `most` at most; on two lines where that is larger."""
    words = text.split(" ")
    layouts = [text] + [" ".join(words[:i]) + "\n" + " ".join(words[i:]) for i in range(1, len(words))]
    best, best_size = layouts[0], 0
    for layout in layouts:
        size = _largest_size(layout, room, most)
        if size > best_size:
            best, best_size = layout, size
    font = _font(max(best_size, 6))
    stroke = 0.35 if bold and best_size >= 9 else 0
    probe = ImageDraw.Draw(Image.new("L", (1, 1)))
    left, top, right, bottom = probe.multiline_textbbox((0, 0), best, font, spacing=1, stroke_width=stroke)
    mask = Image.new("L", (max(1, int(right - left) + 1), max(1, int(bottom - top) + 1)), 0)
    ImageDraw.Draw(mask).multiline_text(
        (-left, -top), best, fill=255, font=font, spacing=1, align="center", stroke_width=stroke
    )
    return mask


def _largest_size(text: str, room: tuple[int, int], most: int) -> int:
    probe = ImageDraw.Draw(Image.new("L", (1, 1)))
    for size in range(min(most, max(7, room[1])), 5, -1):
        left, top, right, bottom = probe.multiline_textbbox((0, 0), text, _font(size), spacing=1)
        if right - left <= room[0] and bottom - top <= room[1]:
            return size
    return 5


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@lru_cache(maxsize=64)
def _badge(bit: int, width: int) -> tuple[Image.Image, Image.Image]:
    """A round badge and its mask."""
    text, colour = _BADGES[bit]
    large = width * 4
    mask = Image.new("L", (large, large), 0)
    ImageDraw.Draw(mask).ellipse((0, 0, large - 1, large - 1), fill=255)
    badge = Image.new("RGB", (large, large), colour)
    draw = ImageDraw.Draw(badge)
    edge = large // 16
    draw.ellipse((edge, edge, large - edge, large - edge), outline=_WHITE, width=edge)
    label = _text_mask(text, (round(0.72 * large), round(0.6 * large)), large, False)
    draw.bitmap(((large - label.width) // 2, (large - label.height) // 2), label, fill=_WHITE)
    size = (width, width)
    return badge.resize(size, Image.Resampling.BOX), mask.resize(size, Image.Resampling.BOX)
