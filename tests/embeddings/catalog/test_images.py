"""Images: every common format becomes the same square, nothing is cropped or mirrored, others are refused."""

import errno
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from embeddings.catalog import images
from embeddings.catalog.images import (
    COLOUR_DEVIATION,
    COLOUR_MEAN,
    LUMA,
    AugmentationConfig,
    ImageUnreadable,
    augment,
    load_image,
    to_pixels,
)
from features.inputs.row_checks import unreadable_images

UNCHANGED = AugmentationConfig(
    min_area=1, max_stretch=1, max_rotation_degrees=0, brightness=0, contrast=0, colour=0
)
CROP_ONLY = UNCHANGED.model_copy(update={"min_area": 0.6, "max_stretch": 4 / 3})


def picture(width: int = 24, height: int = 24, colour: tuple[int, ...] = (200, 30, 60)) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def quadrants(side: int = 32) -> Image.Image:
    """Red, green, blue and black quarters: top left, top right, bottom left, bottom right."""
    image, half = Image.new("RGB", (side, side)), side // 2
    for box, colour in (((0, 0), (255, 0, 0)), ((half, 0), (0, 255, 0)), ((0, half), (0, 0, 255))):
        image.paste(colour, (*box, box[0] + half, box[1] + half))
    return image


def mean_colour(pixels: np.ndarray) -> list[float]:
    return pixels.reshape(3, -1).mean(axis=1).tolist()


def test_an_image_of_the_wanted_size_comes_back_bit_for_bit(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (17, 17, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png", size=17)
    np.testing.assert_array_equal(loaded, noise.transpose(2, 0, 1))
    assert loaded.dtype == np.uint8
    assert loaded.flags.c_contiguous


@pytest.mark.parametrize("width, height", [(40, 20), (20, 40), (1000, 3), (5, 10), (1, 1)])
def test_an_image_fills_one_axis_and_is_centred_on_white(tmp_path: Path, width: int, height: int) -> None:
    picture(width, height, (0, 0, 0)).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png", size=32)
    assert set(np.unique(loaded)) <= {0, 255}, "one colour and white, no mixtures"
    dark = (loaded == 0).all(axis=0)
    scale = 32 / max(width, height)
    rows, columns = (max(1, round(scale * side)) for side in (height, width))
    assert dark.sum() == rows * columns, "nothing is cropped"
    top, left = (32 - rows) // 2, (32 - columns) // 2
    assert dark[top : top + rows, left : left + columns].all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_the_camera_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = quadrants()
    # What a camera held this way stores: the inverse of what EXIF says must be done to show it.
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    loaded = load_image(tmp_path / "a.png", size=32)
    np.testing.assert_array_equal(loaded, np.asarray(upright).transpose(2, 0, 1))


def test_what_shows_through_becomes_white(tmp_path: Path) -> None:
    image = picture().convert("RGBA")
    image.putalpha(0)
    image.save(tmp_path / "clear.png")
    image.putalpha(128)
    image.save(tmp_path / "half.png")
    assert mean_colour(load_image(tmp_path / "clear.png", size=24)) == [255, 255, 255]
    expected = [127 / 255 * 255 + 128 / 255 * channel for channel in (200, 30, 60)]
    assert mean_colour(load_image(tmp_path / "half.png", size=24)) == pytest.approx(expected, abs=1)
    assert mean_colour(load_image(tmp_path / "half.png", size=9)) == pytest.approx(expected, abs=2)


def test_a_palette_with_a_transparent_colour_becomes_white_there(tmp_path: Path) -> None:
    image = quadrants().convert("P")
    black = image.getpixel((31, 31))
    image.save(tmp_path / "a.png", transparency=black)
    expected = np.asarray(quadrants()).transpose(2, 0, 1).copy()
    expected[:, 16:, 16:] = 255
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", size=32), expected)


def test_sixteen_bit_grey_keeps_its_brightness(tmp_path: Path) -> None:
    grey = np.full((8, 8), 257 * 100, np.uint16)
    grey[0, 0], grey[0, 1] = 0, 65_535
    Image.fromarray(grey).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png", size=8)
    assert loaded[:, 0, 0].tolist() == [0, 0, 0]
    assert loaded[:, 0, 1].tolist() == [255, 255, 255]
    assert loaded[:, 4, 4].tolist() == [100, 100, 100]


ALL_MODES = ("1", "L", "LA", "P", "CMYK", "YCbCr", "RGBA")
#: The colour modes that a format can store.
STORED = {
    "tiff": ALL_MODES,
    "png": ("1", "L", "LA", "P", "RGBA"),
    "jpg": ("1", "L", "CMYK", "YCbCr"),
    "webp": ALL_MODES,
    "bmp": ("1", "L", "P", "RGBA"),
    "gif": ("1", "L", "LA", "P", "RGBA"),
}


@pytest.mark.parametrize(("ending", "mode"), [(ending, mode) for ending in STORED for mode in STORED[ending]])
def test_every_colour_mode_of_every_format_reads_as_rgb(tmp_path: Path, ending: str, mode: str) -> None:
    path = tmp_path / f"a.{ending}"
    picture(colour=(255, 255, 255)).convert(mode).save(path)
    assert mean_colour(load_image(path, size=24)) == pytest.approx([255] * 3, abs=2)


def test_cmyk_ink_reads_as_its_colour(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    assert mean_colour(load_image(tmp_path / "red.jpg", size=16)) == pytest.approx([255, 0, 0], abs=6)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_the_first_frame_of_an_animation_counts(tmp_path: Path, name: str) -> None:
    frames = [picture(colour=colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=50)
    with Image.open(tmp_path / name) as image:
        assert image.n_frames == 3
    assert mean_colour(load_image(tmp_path / name, size=24)) == pytest.approx([255, 0, 0], abs=3)


def test_a_large_jpeg_is_decoded_at_a_fraction_and_looks_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quadrants(2048).save(tmp_path / "a.jpg", quality=95)
    decoded: list[tuple[int, int]] = []
    letterbox = images._letterbox
    monkeypatch.setattr(
        images, "_letterbox", lambda image, size: decoded.append(image.size) or letterbox(image, size)
    )
    loaded = load_image(tmp_path / "a.jpg", size=64).astype(int)
    assert decoded == [(256, 256)], "an eighth, the smallest scale there is"
    expected = np.asarray(quadrants(64)).transpose(2, 0, 1)
    inner = np.r_[0:28, 36:64]  # resampling rings at the borders of the quarters
    assert np.abs(loaded - expected)[:, inner][:, :, inner].max() <= 12


def test_twenty_megapixels_are_no_problem(tmp_path: Path) -> None:
    picture(5000, 4000).save(tmp_path / "a.png", compress_level=1)
    loaded = load_image(tmp_path / "a.png", size=32)
    assert loaded[:, 16, 16].tolist() == [200, 30, 60]
    assert loaded[:, 0, 0].tolist() == [255, 255, 255], "4:3 leaves white bands"


def huge_png() -> bytes:
    """A PNG of a few bytes that says it has 20,000 x 10,000 pixels."""
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", 20_000, 10_000, 8, 2, 0, 0, 0)
    for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100)))):
        content += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return content


def a_good(name: str, folder: Path) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / f"good-{name}")
    return (folder / f"good-{name}").read_bytes()


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif"])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, name: str) -> None:
    content = a_good(name, tmp_path)
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageUnreadable) as caught:
        load_image(tmp_path / name, size=16)
    assert caught.value.path == tmp_path / name
    assert caught.value.reason


def test_a_png_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    content = bytearray(a_good("a.png", tmp_path))
    content[len(content) // 2] ^= 0x10
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageUnreadable):
        load_image(tmp_path / "a.png", size=16)


@pytest.mark.parametrize(
    "content, reason",
    [
        (None, "there is no such file"),
        (b"", "no known image format"),
        (b"<html>not found</html>", "no known image format"),
        (huge_png(), "decompression bomb"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageUnreadable, match=reason) as caught:
        load_image(tmp_path / "a.png", size=16)
    assert str(tmp_path / "a.png") in str(caught.value)


def parts_of(png: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and body of each part of a PNG file."""
    parts, place = [], 8
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        parts.append((png[place + 4 : place + 8], png[place + 8 : place + 8 + length]))
        place += 12 + length
    return parts


def png_of(parts: list[tuple[bytes, bytes]], *, wrong_checksum: bytes = b"") -> bytes:
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in parts:
        checksum = zlib.crc32(kind + body) ^ (kind == wrong_checksum)
        content += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)
    return content


def broken_pngs(folder: Path) -> dict[str, bytes]:
    good = a_good("a.png", folder)
    head, (kind, pixels), end = parts_of(good)
    assert (kind, end) == (b"IDAT", (b"IEND", b""))
    flipped = bytes([*pixels[:-1], pixels[-1] ^ 1])
    return {
        "without IEND": png_of([head, (kind, pixels)]),
        "cut inside IEND": good[:-4],
        "half an IDAT, checksum right": png_of([head, (kind, pixels[: len(pixels) // 2]), end]),
        "a bit flipped in IDAT, checksum right": png_of([head, (kind, flipped), end]),
        "checksum of IDAT wrong": png_of([head, (kind, pixels), end], wrong_checksum=b"IDAT"),
        "without IDAT": png_of([head, end]),
    }


def tiff_of(pixels: np.ndarray, folder: Path) -> bytes:
    Image.fromarray(pixels).save(folder / "any.tif")
    return (folder / "any.tif").read_bytes()


def grey_16(folder: Path, *, clear: int | None) -> bytes:
    grey = np.full((8, 8), 257 * 100, np.uint16)
    grey[:, 4:] = 257 * 100 + 1  # the same in 8 bits
    Image.fromarray(grey).save(folder / "grey.png")
    head, *rest = parts_of((folder / "grey.png").read_bytes())
    return png_of([head, *([] if clear is None else [(b"tRNS", struct.pack(">H", clear))]), *rest])


def test_the_check_of_the_tables_and_the_loader_agree_on_every_file(tmp_path: Path) -> None:
    files = {
        **broken_pngs(tmp_path),
        "32-bit integers": tiff_of(np.full((8, 8), 2**31 - 1, np.int32), tmp_path),
        "small 32-bit integers": tiff_of(np.full((8, 8), 200, np.int32), tmp_path),
        "floats": tiff_of(np.full((8, 8), 0.5, np.float32), tmp_path),
        "text": b"no picture",
    }
    good = {
        "16-bit grey": grey_16(tmp_path, clear=None),
        "16-bit grey with transparency": grey_16(tmp_path, clear=257 * 100),
        "16-bit TIFF": tiff_of(np.full((8, 8), 257 * 100, np.uint16), tmp_path),
        "16-bit PGM": b"P5 2 2 65535\n" + struct.pack(">4H", *[257 * 100] * 4),
        "PNG": a_good("b.png", tmp_path),
        "JPEG": a_good("b.jpg", tmp_path),
        "bytes after a PNG's end": a_good("c.png", tmp_path) + b"more",
    }
    for name, content in (files | good).items():
        (tmp_path / name).write_bytes(content)
    refused = set()
    for name in files | good:
        try:
            load_image(tmp_path / name, size=8)
        except ImageUnreadable:
            refused.add(name)
    assert refused == set(files)
    assert set(unreadable_images(tmp_path, files | good, threads=1)) == refused


def test_sixteen_bit_grey_is_clear_at_its_transparent_value_alone(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(grey_16(tmp_path, clear=257 * 100))
    loaded = load_image(tmp_path / "a.png", size=8)
    assert (loaded[:, :, :4] == 255).all()
    assert (loaded[:, :, 4:] == 100).all()


def test_what_a_damaged_png_lacks_is_said(tmp_path: Path) -> None:
    said = {
        "without IEND": r"cut off: its end \(IEND\) is missing",
        "cut inside IEND": "cut off inside its part 'IEND'",
        "checksum of IDAT wrong": "the checksum of its part 'IDAT' is wrong",
    }
    broken = broken_pngs(tmp_path)
    for name, reason in said.items():
        (tmp_path / "a.png").write_bytes(broken[name])
        with pytest.raises(ImageUnreadable, match=reason):
            load_image(tmp_path / "a.png", size=8)


def test_a_failure_of_the_machine_stops_the_check_of_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(a_good("a.png", tmp_path))

    def no_handles(path: Path) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Image, "open", no_handles)
    with pytest.raises(OSError, match="Too many open files"):
        list(unreadable_images(tmp_path, ["a.png"], threads=1))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageUnreadable, match="directory"):
        load_image(tmp_path, size=16)


def test_a_failure_of_the_machine_is_not_blamed_on_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_handles(path: Path) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Image, "open", no_handles)
    with pytest.raises(OSError, match="Too many open files"):
        load_image(tmp_path / "a.png", size=16)


def test_an_unreadable_image_can_cross_a_process_border() -> None:
    error = pickle.loads(pickle.dumps(ImageUnreadable(Path("a.png"), "it is cut off")))
    assert (error.path, error.reason) == (Path("a.png"), "it is cut off")


def random_image(side: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, side, side), dtype=np.uint8)


def coordinates(side: int = 64) -> np.ndarray:
    """Red grows to the right, green downwards."""
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    across, down = np.broadcast_to(ramp, (side, side)), np.broadcast_to(ramp[:, None], (side, side))
    return np.stack([across, down, np.zeros_like(across)])


def test_closed_ranges_leave_the_image_unchanged() -> None:
    image = random_image()
    result = augment(image, np.random.default_rng(0), UNCHANGED)
    np.testing.assert_array_equal(result, image)
    result[:] = 0
    assert image.any(), "the result is a copy"


def test_the_same_generator_gives_the_same_image_and_another_gives_another() -> None:
    image = random_image()
    first, again, other = (
        augment(image, np.random.default_rng(seed), AugmentationConfig()) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@given(seed=st.integers(0, 2**32), area=st.floats(0.3, 1), stretch=st.floats(1, 2))
@settings(max_examples=40, deadline=None)
def test_a_crop_keeps_at_least_the_least_area(seed: int, area: float, stretch: float) -> None:
    config = CROP_ONLY.model_copy(update={"min_area": area, "max_stretch": stretch})
    result = augment(coordinates(), np.random.default_rng(seed), config).astype(float)
    # Between the centres of the first and last pixel lie 63 of the crop's 64 parts, and of the image's.
    width = (result[0, :, -1] - result[0, :, 0]).mean() / 255
    height = (result[1, -1] - result[1, 0]).mean() / 255
    assert width * height >= area - 0.03
    assert max(width, height) <= 1.001
    assert 1 / stretch - 0.05 <= width / height <= stretch + 0.05


@given(seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_nothing_is_ever_mirrored(seed: int) -> None:
    result = augment(coordinates(), np.random.default_rng(seed), AugmentationConfig()).astype(float)
    middle = slice(16, 48)  # turning may bring white into the corners
    right, down = result[0, middle, middle], result[1, middle, middle]
    assert right[:, -1].mean() > right[:, 0].mean()
    assert down[-1].mean() > down[0].mean()


def test_a_turn_keeps_the_centre_and_fills_the_corners_with_white() -> None:
    config = UNCHANGED.model_copy(update={"max_rotation_degrees": 45.0})
    image = np.zeros((3, 65, 65), np.uint8)
    image[:, 32, 32] = 255
    turned = augment(image, np.random.default_rng(3), config)
    assert turned[0, 32, 32] > 250
    assert turned[0, 0, 0] == 255
    assert turned[0, 20:30, 20:30].max() == 0


@pytest.mark.parametrize("seed", range(8))
def test_recolouring_equals_its_steps_one_after_another(seed: int) -> None:
    config = UNCHANGED.model_copy(update={"brightness": 0.3, "contrast": 0.4, "colour": 0.5})
    image = (random_image(seed=seed) // 3 + 80).astype(np.uint8)  # far from the ends, so nothing is clipped
    draws = np.random.default_rng(seed).random(8)[5:]
    brightness, contrast, colour = 1 + np.array([0.3, 0.4, 0.5]) * (2 * draws - 1)
    expected = image.astype(float)
    grey = np.tensordot(LUMA, expected, axes=1)
    expected = grey + colour * (expected - grey)
    mean = np.tensordot(LUMA, expected, axes=1).mean()
    expected = brightness * (mean + contrast * (expected - mean))
    result = augment(image, np.random.default_rng(seed), config)
    assert np.abs(result - np.clip(expected, 0, 255)).max() <= 0.51, "rounded to the nearest"


def test_colours_are_clipped_not_wrapped() -> None:
    config = UNCHANGED.model_copy(update={"brightness": 0.9})
    white, black = np.full((3, 8, 8), 255, np.uint8), np.zeros((3, 8, 8), np.uint8)
    seed = next(seed for seed in range(99) if np.random.default_rng(seed).random(8)[5] > 0.9)
    assert (augment(white, np.random.default_rng(seed), config) == 255).all()
    assert (augment(black, np.random.default_rng(seed), config) == 0).all()


@pytest.mark.parametrize("wrong", [{"min_area": 0}, {"brightness": 1}, {"flip": True}, {"max_stretch": 0.5}])
def test_nonsense_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        AugmentationConfig(**wrong)


def test_pixels_are_standardised_by_the_colours_of_clip() -> None:
    images_BCHW = np.stack([random_image(8, seed) for seed in range(3)])
    pixels_BCHW = to_pixels(images_BCHW)
    assert pixels_BCHW.dtype == torch.float32
    for colour in range(3):
        expected = (images_BCHW[:, colour] / 255 - COLOUR_MEAN[colour]) / COLOUR_DEVIATION[colour]
        np.testing.assert_allclose(pixels_BCHW[:, colour].numpy(), expected, atol=2e-6)


def test_standardising_leaves_the_images_alone_and_takes_an_empty_batch() -> None:
    images_BCHW = random_image(8)[None]
    before = images_BCHW.copy()
    to_pixels(images_BCHW)
    np.testing.assert_array_equal(images_BCHW, before)
    assert to_pixels(np.zeros((0, 3, 8, 8), np.uint8)).shape == (0, 3, 8, 8)
