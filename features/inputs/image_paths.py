"""Where the image of a product lies: one rule for validation, its clean copy and the encoders' catalogue."""

import posixpath


def path_in_folder(name: str) -> str | None:
    """The one spelling of an image's path relative to the data folder; None where it leads out of it.

    The spelling decides, not the disk: `./a.png` and `x/../a.png` are `a.png`; `../a.png` and absolute paths
    lead out. A symbolic link in the folder belongs to it, wherever it points.
    """
    path = posixpath.normpath(name)
    leads_out = posixpath.isabs(path) or path == ".." or path.startswith("../")
    return None if leads_out or "\0" in name else path
