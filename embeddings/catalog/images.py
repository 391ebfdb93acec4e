"""Product images to pixel arrays: any common format to RGB squares, augmentation, CLIP's normalisation.

Packages carry text and are rarely square, so nothing is cropped off (letterbox on white) and nothing is
flipped.

Shapes: B images, C = 3 colours, S side.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import Field

from features.artifacts import StrictModel

# This name belongs to this module's interface: `as` says so.
from features.inputs.images import ImageUnreadable as ImageUnreadable
from features.inputs.images import decode_image

Pixels = npt.NDArray[np.uint8]

#: Mean and deviation of the colours, from CLIP; BLIP was trained with them too.
COLOUR_MEAN = (0.48145466, 0.4578275, 0.40821073)
COLOUR_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
WHITE = (255, 255, 255)
#: Weights of red, green and blue in the brightness of a pixel (ITU-R 601).
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class OutsideImage:
    """An image that the products table names outside of the data folder: nobody opens it."""

    name: str

    def __str__(self) -> str:
        return self.name


class AugmentationConfig(StrictModel):
    """How far an augmented image may be from the original; flips are left out, as they mirror text."""

    #: Least share of the area that a random crop keeps.
    min_area: float = Field(default=0.6, gt=0, le=1)
    #: Width : height of the crop is at most this many times that of the image, or its inverse.
    max_stretch: float = Field(default=4 / 3, ge=1, le=2)
    #: An image is turned by at most so much, either way.
    max_rotation_degrees: float = Field(default=8.0, ge=0, le=45)
    #: Brightness is multiplied by a factor in [1 - x, 1 + x].
    brightness: float = Field(default=0.3, ge=0, lt=1)
    #: The same for contrast.
    contrast: float = Field(default=0.3, ge=0, lt=1)
    #: The same for the strength of colours.
    colour: float = Field(default=0.3, ge=0, lt=1)


def load_image(path: Path | OutsideImage, *, size: int) -> Pixels:
    """Decode an image to RGB, [3, S, S] with S = `size`: as large as fits, centred on white, never cropped.

    Files are opened by `decode_image`; transparency becomes white.

    Raises:
        ImageUnreadable: the file is outside of the data folder, or cannot be used.
    """
    if isinstance(path, OutsideImage):
        raise ImageUnreadable(Path(path.name), "it lies outside of the data folder")
    square = _letterbox(decode_image(path, side=size), size)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def augment(image: Pixels, generator: np.random.Generator, config: AugmentationConfig) -> Pixels:
    """A randomly cropped, stretched, turned and recoloured copy of an image [3, S, S].

    Always makes the same number of draws. With all ranges of `config` closed the image comes back unchanged.
    """
    draws = generator.random(8)
    crop = _crop_and_turn(image, draws[:5], config)
    brightness, contrast, colour = (
        1 + reach * (2 * draw - 1)
        for reach, draw in zip(
            (config.brightness, config.contrast, config.colour), draws[5:].tolist(), strict=True
        )
    )
    if brightness == contrast == colour == 1:
        return crop
    # Grey + colour * (pixel - grey), then mean + contrast * (it - mean), then * brightness: all linear.
    side = crop.shape[1]
    flat_CN = crop.reshape(3, side * side).astype(np.float32)
    mean = float(LUMA @ flat_CN.mean(axis=1))
    scale = brightness * contrast
    mix_CC = np.float32(scale) * (
        np.float32(colour) * np.eye(3, dtype=np.float32) + np.float32(1 - colour) * LUMA
    )
    mixed_CN = mix_CC @ flat_CN
    mixed_CN += np.float32(brightness * (1 - contrast) * mean + 0.5)
    np.clip(mixed_CN, 0, 255, out=mixed_CN)
    return mixed_CN.astype(np.uint8).reshape(3, side, side)


def to_pixels(images_BCHW: Pixels) -> torch.Tensor:
    """Images as float32 with CLIP's mean taken off and divided by its deviation; mean grey is about 0."""
    pixels_BCHW = torch.from_numpy(images_BCHW).to(torch.float32)
    mean_C11 = torch.tensor(COLOUR_MEAN).mul_(255)[:, None, None]
    deviation_C11 = torch.tensor(COLOUR_DEVIATION).mul_(255)[:, None, None]
    return pixels_BCHW.sub_(mean_C11).div_(deviation_C11)


def _letterbox(image: Image.Image, size: int) -> Image.Image:
    scale = size / max(image.size)
    width, height = (min(size, max(1, round(scale * side))) for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    if width == height == size and image.mode == "RGB":
        return image
    square = Image.new("RGB", (size, size), WHITE)
    mask = image if image.mode == "RGBA" else None
    square.paste(image, ((size - width) // 2, (size - height) // 2), mask)
    return square


def _crop_and_turn(image: Pixels, draws: npt.NDArray[np.float64], config: AugmentationConfig) -> Pixels:
    """Crop, stretch to the full square and turn about the centre of the crop, in one resampling."""
    side = image.shape[1]
    area, stretch, left, top, turn = draws.tolist()
    share = 1 - area * (1 - config.min_area)
    # Both sides of the crop must fit into the image, which bounds the stretch.
    reach = min(math.log(config.max_stretch), -math.log(share))
    log_stretch = reach * (2 * stretch - 1)
    width = side * math.sqrt(share * math.exp(log_stretch))
    height = side * math.sqrt(share * math.exp(-log_stretch))
    angle = math.radians(config.max_rotation_degrees * (2 * turn - 1))
    if width == height == side and angle == 0:
        return image.copy()
    centre_x = left * (side - width) + width / 2
    centre_y = top * (side - height) + height / 2
    # Pillow asks for the source of each target pixel: (x, y) = A (u, v) + b.
    cosine, sine, half = math.cos(angle), math.sin(angle), side / 2
    a, b = cosine * width / side, sine * height / side
    d, e = -sine * width / side, cosine * height / side
    affine = (a, b, centre_x - half * (a + b), d, e, centre_y - half * (d + e))
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    turned = picture.transform(
        (side, side), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR, fillcolor=WHITE
    )
    return np.ascontiguousarray(np.asarray(turned).transpose(2, 0, 1))
