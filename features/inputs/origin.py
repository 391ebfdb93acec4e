"""Where the tables of a folder come from, as it says itself: every result made of them must repeat it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

#: What generators and importers leave beside the tables.
DESCRIPTIONS = ("marketplace.json", "source.json")


@dataclass(frozen=True)
class Origin:
    """Of the tables in a data folder.

    Attributes:
        simulated: whether people and clicks were generated; None where nothing in the folder says it.
        constructed: whether impressions were made of purchases, with negatives that nobody was shown.
    """

    simulated: bool | None = None
    constructed: bool = False

    @classmethod
    def of(cls, data: Path) -> Self:
        """What the folder says; a description that cannot be read says nothing."""
        simulated, constructed = True if (data / "truth").is_dir() else None, False
        for name in DESCRIPTIONS:
            try:
                said = json.loads((data / name).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(said, dict):
                constructed |= said.get("constructed") is True
                told = said.get("simulated")
                if simulated is None and isinstance(told, bool):
                    simulated = told
        return cls(simulated, constructed)
