"""Finished parts of a measurement on disk, found again by what they depend on.

A stopped measurement goes on where it was, and one with another seed measures only that seed.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from features.artifacts import atomic_write_json

#: Raised when parts of older versions would mean something else.
_FORMAT = 1


class Parts:
    """Results in a folder, one JSON file each, named by the hash of their key."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, key: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The stored result of `key`, or that of `compute`, which is stored.

        A file that is damaged or of another key is computed again.
        """
        key = {"format": _FORMAT, **key}
        if self.folder is None:
            return compute()
        text = json.dumps(key, sort_keys=True)
        path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["key"] == json.loads(text):
                content: dict[str, Any] = stored["content"]
                return content
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass
        content = compute()
        atomic_write_json(path, {"key": key, "content": content})
        return content
