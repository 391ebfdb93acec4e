"""Opening image files: which can be used, and as which pixels; for the checks of tables and for encoders."""

import errno
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

#: A JPEG is decoded at the smallest of its built-in scales that is this many times the wanted side.
DRAFT_FACTOR = 2
#: Failures of the machine, not of a file: they must stop the run, not mark an image as unreadable.
_MACHINE_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
#: Formats of 16-bit grey that Pillow gives as 32-bit integers, at least in some versions.
_GREY_16_AS_32 = ("PNG", "PPM")
_PNG_START = b"\x89PNG\r\n\x1a\n"


class ImageUnreadable(ValueError):
    """An image file that cannot be used; `path` and `reason` say which and why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be read as an image: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type["ImageUnreadable"], tuple[Path, str]]:
        return type(self), (self.path, self.reason)  # else it could not cross a process border


def decode_image(path: Path, *, side: int) -> Image.Image:
    """The pixels of an image file, upright, as RGB, or as RGBA where something may show through.

    Palettes, CMYK and 16-bit grey are converted; of an animation the first frame counts. A large JPEG is
    decoded at a fraction of its size, for a wanted `side` in pixels; other formats come in full.

    Raises:
        ImageUnreadable: the file is missing, damaged, cut off, of an unknown format, has pixels of unknown
            range (32-bit numbers), or more of them than Pillow's decompression bomb limit (179 million).
    """
    try:
        with Image.open(path) as image:
            if image.format == "PNG":
                _check_png(path)
            image.draft(None, (DRAFT_FACTOR * side, DRAFT_FACTOR * side))
            ImageOps.exif_transpose(image, in_place=True)
            return _to_8_bits(image)
    except MemoryError:
        raise
    # Pillow raises SyntaxError for a broken PNG, its own error for huge sizes, and plain Exception kinds from
    # codecs; whichever it is, the image cannot be used.
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
            raise
        raise ImageUnreadable(Path(path), _reason(error)) from error


def _check_png(path: Path) -> None:
    """Pillow stops at the last row of pixels: it neither compares the checksums nor looks for the end.

    Raises:
        ValueError: a part of the file is damaged, or its end is missing.
    """
    with path.open("rb") as file:
        assert file.read(len(_PNG_START)) == _PNG_START
        kind = b""
        while kind != b"IEND":
            head = file.read(8)
            if len(head) < 8:
                raise ValueError("it is cut off: its end (IEND) is missing")
            length, kind = struct.unpack(">I4s", head)
            body, checksum = file.read(length), file.read(4)
            if len(body) < length or len(checksum) < 4:
                raise ValueError(f"it is cut off inside its part {kind.decode('latin-1')!r}")
            if zlib.crc32(kind + body) != int.from_bytes(checksum, "big"):
                raise ValueError(
                    f"it is damaged: the checksum of its part {kind.decode('latin-1')!r} is wrong"
                )


def _to_8_bits(image: Image.Image) -> Image.Image:
    """RGB, or RGBA where something may show through."""
    is_grey_16 = image.mode.startswith("I;16") or (image.mode == "I" and image.format in _GREY_16_AS_32)
    if image.mode in ("I", "F") and not is_grey_16:
        raise ValueError("its pixels are 32-bit numbers of unknown range; save it with 8 or 16 bits")
    if is_grey_16:
        grey = np.asarray(image)
        clear = image.info.get("transparency")
        image = Image.fromarray((grey // 257).astype(np.uint8))  # 65,535 = 257 * 255
        if clear is not None:  # one grey value of all 65,536
            image.putalpha(Image.fromarray(np.where(grey == clear, 0, 255).astype(np.uint8)))
    wanted = "RGBA" if image.has_transparency_data else "RGB"
    if image.mode == wanted:
        image.load()
        return image
    return image.convert(wanted)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return "it is of no known image format, or its header is damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
