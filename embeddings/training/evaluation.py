"""How a stage is measured on rows kept aside: in chunks of one size, each measure beside what chance gives.

"At chance" is what the best answer reaches that looks at nothing. A share such as "an image finds its title"
depends on how many titles there are to find, so it compares with another only over chunks of one size.

Shapes: N rows kept aside, C rows of a chunk.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embeddings.training.losses import NO_GROUP

#: Rows that are found among one another when a stage is measured, in every stage.
CHUNK_ROWS = 64
#: What the chance level of a measure is called: its name and this.
AT_CHANCE = "_at_chance"
#: Rows that took part in an evaluation; those of one measure alone are called NAME_rows.
ROWS = "rows"
#: A loss that is not lower than its chance level by this share has learned nothing.
LEAST_GAIN = 0.01
#: A share must exceed its chance level by so many standard errors of as many draws as there are rows.
STANDARD_ERRORS = 2.0


def evaluation_chunks(rows_N: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """All rows in chunks of exactly `CHUNK_ROWS`, or of all rows if those are fewer.

    The chunks are spread evenly and overlap where the size does not divide the rows, which then count twice.
    """
    size = min(CHUNK_ROWS, len(rows_N))
    if not size:
        return []
    starts = np.linspace(0, len(rows_N) - size, -(-len(rows_N) // size)).round().astype(np.int64)
    return [rows_N[start : start + size] for start in starts]


class Found(NamedTuple):
    """Sums over the rows of a chunk, or of several, that take part in finding."""

    rows: float
    hits: float
    #: Hits and contrastive loss of similarities that are all equal: each candidate is as likely.
    hits_at_chance: float
    loss_at_chance: float

    def __add__(self, other: Any) -> "Found":
        return Found(*(one + more for one, more in zip(self, other, strict=True)))


@torch.no_grad()
def found_in_chunk(similarity_CC: Tensor, group_C: Tensor) -> Found:
    """How often the most similar column of a row is of the row's group; rows without group take no part.

    >>> found_in_chunk(torch.eye(4), torch.tensor([0, 1, 2, 2]))
    Found(rows=4.0, hits=4.0, hits_at_chance=1.5, loss_at_chance=5.545177444479562)
    """
    known_C = group_C != NO_GROUP
    rows = int(known_C.sum())
    if not rows:
        return Found(0.0, 0.0, 0.0, 0.0)
    best_C = similarity_CC.masked_fill(~known_C, -torch.inf).argmax(dim=1)
    hits = int((known_C & (group_C[best_C] == group_C)).sum())
    same_CC = (group_C[:, None] == group_C) & known_C
    chance = float(same_CC[known_C].sum(dim=1).double().sum()) / rows
    return Found(float(rows), float(hits), chance, rows * math.log(rows))


def no_better_than_chance(measures: Mapping[str, float]) -> list[str]:
    """Names of the measures that a stage has learned nothing by.

    Losses are called "loss" or end in "_loss", and lower is better; anything else is a share, and higher is.
    `measures` have `ROWS`, and a chance level beside each measure that has one.
    """
    poor = []
    for name, value in measures.items():
        chance = measures.get(name + AT_CHANCE)
        if chance is None:
            continue
        if name == "loss" or name.endswith("_loss"):
            if value > (1 - LEAST_GAIN) * chance:
                poor.append(name)
            continue
        rows = max(1.0, measures.get(f"{name}_{ROWS}", measures.get(ROWS, 1.0)))
        if value <= chance + STANDARD_ERRORS * math.sqrt(chance * (1 - chance) / rows):
            poor.append(name)
    return poor


def beside_chance(measures: Mapping[str, float]) -> str:
    """Measures in words, each with its chance level: "image_finds_title 0.9038 (chance 0.0157)"."""
    parts = []
    for name, value in measures.items():
        if name.endswith(AT_CHANCE):
            continue
        text = f"{name} {value:,.0f}" if name.endswith(ROWS) else f"{name} {value:.4f}"
        chance = measures.get(name + AT_CHANCE)
        parts.append(text if chance is None else f"{text} (chance {chance:.4f})")
    return ", ".join(parts)


def learned_nothing(title: str, measures: Mapping[str, float]) -> str | None:
    """What to say of a stage whose best evaluation is no better than chance by some measures; else None."""
    poor = no_better_than_chance(measures)
    if not poor:
        return None
    shown = {key: measures[key] for name in poor for key in (name, name + AT_CHANCE)}
    return (
        f"{title} has learned nothing by {beside_chance(shown)}: knowing nothing gives as much. Train "
        "longer, lower learning_rate, or check that the inputs belong together"
    )
