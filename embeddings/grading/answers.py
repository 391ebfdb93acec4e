"""A run as a grader: what a model has answered, however it was asked, is read and not asked again.

So a language model stands in one table with trained graders: let it grade the pairs that people graded
(`dashclip grade pairs --people`), then compare its run with people.

Shapes: N pairs, C = 3 grades.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from embeddings.catalog.holdout import HoldoutConfig
from embeddings.grading.combined import CombinedGrader
from embeddings.grading.graders import FeatureGrader, Grader
from embeddings.grading.pairs import GradingError, Pairs
from embeddings.grading.run import MANIFEST, is_run, keys_of, parts_of, read_manifest
from embeddings.grading.trained import TrainedGrader
from embeddings.relevance.grades import GRADES, PROBABILITIES
from features.artifacts import MANIFEST as GRADER_MANIFEST
from features.artifacts import json_file_has

FloatArray = npt.NDArray[np.float64]


@dataclass(eq=False)
class RunAnswers:
    """The answers of a run; a pair is known by its query, product and text."""

    run: Path
    name: str
    prompt_sha: str | None
    #: What was kept from its grader.
    holdout: HoldoutConfig | None
    #: That the run used for one answer.
    tokens_per_pair: float
    row_of: dict[str, int]
    probability_NC: FloatArray
    grade_N: npt.NDArray[np.int8]
    #: Reading uses none.
    tokens: int = 0
    unanswered: int = 0
    _grade_of: dict[bytes, int] = field(default_factory=dict)

    @classmethod
    def load(cls, run: Path) -> "RunAnswers":
        """Open a run, finished or not.

        Raises:
            GradingError: it holds no grades yet.
        """
        manifest, parts = read_manifest(run), parts_of(run)
        if manifest is None or not parts:
            raise GradingError(f"{run} holds no grades yet; `dashclip grade run` makes them")
        content = pa.concat_tables(
            pq.read_table(part, columns=["key", "grade", *PROBABILITIES]) for part in parts
        )
        return cls(
            run,
            manifest.grader,
            manifest.prompt_sha,
            manifest.holdout,
            manifest.tokens / max(manifest.graded, 1),
            {key: row for row, key in enumerate(content["key"].to_pylist())},
            np.column_stack([content[name].to_numpy() for name in PROBABILITIES]).astype(np.float64),
            content["grade"].to_numpy().astype(np.int8),
        )

    @property
    def remarks(self) -> str:
        """How many pairs the run has no answer to, in one sentence; empty if it has all."""
        if not self.unanswered:
            return ""
        return (
            f"{self.run} has no answer to {self.unanswered:,} pairs that it was asked for; let it grade what "
            "`dashclip grade pairs --people held-out` writes"
        )

    def probabilities(self, pairs: Pairs) -> FloatArray:
        """Probabilities [N, C] that the run has, NaN for a pair or text that it has not graded."""
        found_NC = np.full((len(pairs), len(GRADES)), np.nan)
        for place, key in enumerate(keys_of(pairs, self.name, self.prompt_sha)):
            row = self.row_of.get(key)
            if row is None:
                self.unanswered += 1
                continue
            found_NC[place] = self.probability_NC[row]
            self._grade_of[found_NC[place].tobytes()] = int(self.grade_N[row])
        return found_NC

    def grades(self, probabilities_NC: FloatArray) -> npt.NDArray[np.int8]:
        """The grade that the run gave for such probabilities: its grader may have decided by offsets."""
        most_N = probabilities_NC.argmax(axis=1).tolist()
        rows = (row.tobytes() for row in np.ascontiguousarray(probabilities_NC, np.float64))
        found = [self._grade_of.get(row, most) for row, most in zip(rows, most_N, strict=True)]
        return np.array(found, np.int8)


def open_grader(folder: Path, *, device: str = "cpu") -> Grader:
    """A trained grader or the answers of a run.

    Args:
        device: of a grader that is a neural network.

    Raises:
        GradingError: the folder is neither.
        EmbeddingTableError: an embedding table of a trained grader is gone.
    """
    if (folder / MANIFEST).exists() and is_run(folder):
        return RunAnswers.load(folder)
    if not (folder / GRADER_MANIFEST).exists():
        raise GradingError(
            f"{folder} is neither a grader (`dashclip grade train` makes one) nor a run of one "
            "(`dashclip grade run`)"
        )
    return open_trained(folder, device=device)


def open_trained(folder: Path, *, device: str = "cpu") -> TrainedGrader:
    """A trained grader, by what its manifest says.

    Args:
        device: of one that is a neural network.

    Raises:
        GradingError: the folder holds no grader, or a part of it is missing or changed.
        PretrainedError: the model that it was tuned from is gone.
        EmbeddingTableError: an embedding table that it reads is gone.
    """
    if json_file_has(folder / GRADER_MANIFEST, "members"):
        return CombinedGrader.load(folder, partial(open_trained, device=device))
    # transformers takes seconds to import.
    if json_file_has(folder / GRADER_MANIFEST, "prompt_sha"):
        from embeddings.grading.fine_tuned.tuned_model import TunedModelGrader

        return TunedModelGrader.load(folder, device=device)
    if json_file_has(folder / GRADER_MANIFEST, "validation_loss"):
        from embeddings.grading.fine_tuned.cross_encoder import CrossEncoderGrader

        return CrossEncoderGrader.load(folder, device=device)
    return FeatureGrader.load(folder)
