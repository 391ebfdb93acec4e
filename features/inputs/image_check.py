"""Whether product images can be opened, checked in threads (decoding releases the interpreter lock)."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from PIL import Image

_BATCH = 2048


def unreadable_images(root: Path, names: Iterable[str], *, threads: int) -> Iterator[str]:
    """Go through images, named relative to `root`; yield the names of those that cannot be used.

    PNG files are checked by their checksums, others are decoded (JPEG at an eighth of its size), which
    finds a file that was cut off. A path that leads out of `root` counts as unreadable.
    """
    base = root.resolve()
    waiting = iter(names)
    with ThreadPoolExecutor(threads) as pool:
        while batch := list(islice(waiting, _BATCH)):
            readable = pool.map(lambda name: _is_readable(base, name), batch)
            yield from (name for name, good in zip(batch, readable, strict=True) if not good)


def _is_readable(base: Path, name: str) -> bool:
    path = (base / name).resolve()
    if not path.is_relative_to(base) or not path.is_file():
        return False
    try:
        with Image.open(path) as image:
            if image.format == "PNG":
                image.verify()
            else:
                image.draft("L", (1, 1))
                image.load()
    # Pillow raises SyntaxError for a broken PNG, its own error for huge sizes, and plain Exception kinds from
    # codecs; whichever it is, the image cannot be used.
    except Exception:
        return False
    return True
