"""What all graders that are trained here have in common: settings, a folder with a manifest, a decision.

Shapes: N pairs, C = 3 grades.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from embeddings.catalog.holdout import HoldoutConfig
from embeddings.grading.decision import Decision
from embeddings.grading.features import TextReader
from embeddings.grading.pairs import Pairs
from features.artifacts import MANIFEST, StrictModel, json_file_has

FloatArray = npt.NDArray[np.float64]

#: Of every trained grader: its own arrays and its decision.
WEIGHTS = "grader.safetensors"
ADVICE = "`dashclip grade train` makes one"


class TrainingConfig(StrictModel):
    """How any grader is trained."""

    kind: str
    #: For each train query so many foreign titles stuffed with its words are learnt as irrelevant.
    stuffed_per_query: Annotated[int, Field(ge=0)] = 1
    #: What each of them weighs beside a pair that a person graded.
    stuffed_weight: Annotated[float, Field(gt=0)] = 0.5
    seed: Annotated[int, Field(ge=0)] = 0
    holdout: HoldoutConfig = HoldoutConfig()


class TrainedManifest(StrictModel, ABC):
    """What `manifest.json` of any trained grader says."""

    #: Pairs of people that it learnt from, stuffed pairs beside them, and pairs that set its thresholds.
    train_pairs: int
    stuffed_pairs: int
    validation_pairs: int
    checksums: dict[str, str]

    @property
    @abstractmethod
    def training(self) -> TrainingConfig:
        """Its settings, of whatever kind."""

    @property
    @abstractmethod
    def read(self) -> str:
        """What it reads of a pair, in a word or two."""


@dataclass(frozen=True, eq=False)
class TrainedGrader(ABC):
    """A grader in its folder, which costs no money."""

    folder: Path
    manifest: TrainedManifest
    decision: Decision

    @property
    def name(self) -> str:
        """Kind and the first digits of its weights' checksum: another training is another grader."""
        return f"{self.manifest.training.kind}-{self.manifest.checksums[WEIGHTS][:12]}"

    @property
    def prompt_sha(self) -> str | None:
        """It has no prompt."""
        return None

    @property
    def holdout(self) -> HoldoutConfig:
        """Its settings have it."""
        return self.manifest.training.holdout

    @property
    def tokens(self) -> int:
        """It uses none."""
        return 0

    @property
    def remarks(self) -> str:
        """Nothing goes wrong."""
        return ""

    @property
    def tables(self) -> dict[str, str]:
        """Folders of the embedding tables that it reads, by name: none."""
        return {}

    @property
    def aligned(self) -> tuple[str, ...]:
        """Those of encoders that were aligned with the grades that it learnt from."""
        return ()

    def without_vector(self, product_ids: pa.Array) -> npt.NDArray[np.bool_]:
        """Which products [N] have no vector in some of its tables."""
        return np.zeros(len(product_ids), bool)

    def reading(self, readers: Mapping[str, TextReader]) -> Self:
        """The same grader; what made its tables reads texts that these have no vector of."""
        return self

    @abstractmethod
    def probabilities(self, pairs: Pairs) -> FloatArray:
        """Calibrated probabilities [N, C]; NaN for a pair that it cannot read."""

    def grades(self, probabilities_NC: FloatArray) -> npt.NDArray[np.int8]:
        """The largest probability after the offsets that validation queries chose."""
        return self.decision.grades(probabilities_NC)


def is_grader(folder: Path) -> bool:
    """Whether `dashclip grade train` wrote this folder."""
    return json_file_has(folder / MANIFEST, "stuffed_pairs")
