"""Fine-tuning of a text model on people's grades: batches of like lengths, weighted loss, early stop.

Which model reads the pairs does not matter here: it gives logits of the three grades for batches that its
grader makes of rows. Validation queries stop it and choose its weights.

Shapes: N pairs, B pairs of a batch, C = 3 grades.
"""

import hashlib
import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from embeddings.catalog.device_copies import to_device
from embeddings.grading.lessons import Lessons
from embeddings.grading.pairs import GradingError, Pairs
from embeddings.grading.trained import TrainedManifest, TrainingConfig, is_grader
from embeddings.relevance.grades import GRADES
from embeddings.training.evaluation import AT_CHANCE, ROWS
from embeddings.training.length_chunks import by_length
from embeddings.training.loop import (
    OptimizerConfig,
    Report,
    TrainingOutcome,
    rows_of_a_step,
    train,
    trained_parameters,
)
from embeddings.training.ranks import Ranks
from features.artifacts import refuse_foreign_folder

#: Batches that are sorted by length together: the fewer, the more padding; the more, the less chance.
_SORTED_BATCHES = 32


class FineTuningConfig(TrainingConfig):
    """How a text model is fine-tuned."""

    #: Of people to learn from, drawn where there are more; all if None.
    most_pairs: Annotated[int, Field(ge=1)] | None = None
    #: Validation pairs that each evaluation of the training reads, drawn where there are more; all if None.
    #: Thresholds are set by all of them.
    evaluated_pairs: Annotated[int, Field(ge=1)] | None = None
    optimizer: OptimizerConfig

    def with_optimizer(self, **changes: Any) -> Self:
        """The same with other settings of the optimizer.

        Raises:
            ValidationError: one of them is nonsense.
        """
        said = self.model_dump()
        return type(self).model_validate(said | {"optimizer": said["optimizer"] | changes})


class FineTunedManifest(TrainedManifest):
    """What `manifest.json` of a fine-tuned model says, whichever it is."""

    config: FineTuningConfig
    #: Steps until the best loss on validation queries, that loss, and the loss of knowing the shares alone.
    steps: int
    validation_loss: float
    validation_loss_at_chance: float

    @property
    def training(self) -> TrainingConfig:
        """Its settings."""
        return self.config

    @property
    def read(self) -> str:
        """How long it learnt, and how well it knows validation pairs."""
        return (
            f"{self.steps:,} steps, validation loss {self.validation_loss:.3f} (of the grades' shares "
            f"{self.validation_loss_at_chance:.3f})"
        )


class GradeBatch(NamedTuple):
    """What the model reads of B pairs, and what people say of them."""

    inputs: Any
    grade_B: Tensor
    weight_B: Tensor


class GradeLearner(nn.Module):
    """A model of logits [B, C] and its loss; as state it has what is trained, and no frozen weight."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: GradeBatch) -> dict[str, Tensor]:
        """The weighted mean of -log p(grade), in nats."""
        each_B = cross_entropy(self.model(batch.inputs).float(), batch.grade_B, reduction="none")
        return {"loss": (each_B * batch.weight_B).sum() / batch.weight_B.sum()}

    def state_dict(self, *_: Any, **__: Any) -> Any:
        """The trained weights by name: a checkpoint need not repeat a large frozen model."""
        return {name: value.detach() for name, value in trained_parameters(self)}

    def load_state_dict(self, state_dict: Any, *_: Any, **__: Any) -> Any:
        """Put trained weights back; the frozen ones are where they were."""
        return super().load_state_dict(state_dict, strict=False)


def batches_of_like_length(
    length_N: npt.NDArray[np.integer], batch_size: int, generator: np.random.Generator
) -> list[npt.NDArray[np.int64]]:
    """Rows in random batches of one size, each of texts nearly as long; a rest that fills none is left out.

    >>> batches = batches_of_like_length(np.array([9, 1, 8, 2, 5]), 2, np.random.default_rng(0))
    >>> [batch.tolist() for batch in batches]
    [[3, 4], [2, 0]]
    """
    order = generator.permutation(len(length_N))[: len(length_N) // batch_size * batch_size]
    batches: list[npt.NDArray[np.int64]] = []
    for start in range(0, len(order), _SORTED_BATCHES * batch_size):
        part = order[start : start + _SORTED_BATCHES * batch_size]
        part = part[np.argsort(length_N[part], kind="stable")]
        batches += np.split(part, len(part) // batch_size)
    return [batches[place] for place in generator.permutation(len(batches)).tolist()]


class GradeTask:
    """Fine-tuning as the training loop sees it.

    Args:
        collate: what the model reads of some rows: of the lessons, or of the validation pairs.
        lengths: tokens of each lesson and of each validation pair.
    """

    rows_name = "pairs"

    def __init__(
        self,
        title: str,
        model: nn.Module,
        lessons: Lessons,
        *,
        collate: Callable[[npt.NDArray[np.int64], bool], Any],
        lengths: tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]],
        config: FineTuningConfig,
        device: torch.device,
    ) -> None:
        self.title = title
        self.learner = GradeLearner(model)
        self._lessons, self._collate, self._lengths = lessons, collate, lengths
        self._config, self._device = config.optimizer, device
        self.batch_rows = rows_of_a_step(self._config, len(lessons.pairs), ranks=Ranks())
        order = np.random.default_rng(config.seed).permutation(len(lessons.validation))
        self._evaluated = np.sort(order[: config.evaluated_pairs])

    @property
    def module(self) -> nn.Module:
        """The model with its loss."""
        return self.learner

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch."""
        return len(self._lessons.pairs) // self.batch_rows

    def micro_batches(self, epoch: int, first_step: int) -> Generator[GradeBatch, None, None]:
        """Those of the steps from `first_step` on; each epoch has another order."""
        generator = np.random.default_rng((self._config.seed, epoch))
        for rows in batches_of_like_length(self._lengths[0], self.batch_rows, generator)[first_step:]:
            for part in np.split(rows, self._config.accumulation):
                yield self._batch(part)

    def before_step(self, step: int) -> None:
        """Nothing changes from step to step."""

    def evaluate(self) -> dict[str, float]:
        """Mean -log p(people's grade) on validation pairs, and what the shares of train pairs would give."""
        grade_N = self._lessons.validation.grade_N[self._evaluated]
        total = 0.0
        for places in by_length(self._lengths[1][self._evaluated], self.batch_rows):
            logits_BC = self.learner.model(self._collate(self._evaluated[places], True)).float()
            grade_B = torch.from_numpy(grade_N[places]).to(self._device)
            total += float(cross_entropy(logits_BC, grade_B, reduction="sum"))
        people_N = self._lessons.grade_N[: self._lessons.people]
        share_C = np.bincount(people_N, minlength=len(GRADES)) / len(people_N)
        return {
            "loss": total / len(grade_N),
            "loss" + AT_CHANCE: float(-np.log(share_C[grade_N]).mean()),
            ROWS: float(len(grade_N)),
        }

    def _batch(self, rows: npt.NDArray[np.int64]) -> GradeBatch:
        return GradeBatch(
            self._collate(rows, False),
            to_device(torch.from_numpy(self._lessons.grade_N[rows]), self._device),
            to_device(torch.from_numpy(self._lessons.weight_N[rows]).float(), self._device),
        )


def fine_tune(
    task: GradeTask,
    lessons: Lessons,
    out: Path,
    *,
    config: FineTuningConfig,
    start: str,
    progress: Callable[[Report], None] | None = None,
) -> TrainingOutcome:
    """Train until the epochs or the patience end; the best weights on validation queries stay in the model.

    A killed training goes on from its last checkpoint with the same call.

    Args:
        out: the grader's folder to be; checkpoints lie beside it until it is written (`checkpoints_of`).
        start: names the weights that the model began with.

    Raises:
        TrainingDivergedError: the loss is not finite.
        CheckpointError: the checkpoints beside `out` are of other settings or grades.
    """
    fingerprint = _fingerprint(lessons, config, start)
    folder = checkpoints_of(out)
    return train(task, folder, config=config.optimizer, fingerprint=fingerprint, progress=progress)


def refuse_before_training(graded_validation: int, out: Path) -> None:
    """Refuse what would fail only after hours.

    Raises:
        GradingError: no validation pair can stop the training.
        FileExistsError: `out` holds something else than a grader.
    """
    refuse_foreign_folder(out, ours=is_grader)
    if not graded_validation:
        raise GradingError(
            "no validation query has a pair graded by people, and those say when to stop; give more grades"
        )


def checkpoints_of(out: Path) -> Path:
    """Where the checkpoints of a grader in training lie: hidden, beside its folder."""
    return out.with_name(f".{out.name}.training")


def _fingerprint(lessons: Lessons, config: FineTuningConfig, start: str) -> str:
    digest = hashlib.sha256(f"{start}\n{config.model_dump_json()}\n".encode())
    for pairs, grade_N in (
        (lessons.pairs, lessons.grade_N),
        (lessons.validation.pairs, lessons.validation.grade_N),
    ):
        digest.update(json.dumps([_texts(pairs), grade_N.tolist()]).encode())
    return digest.hexdigest()


def _texts(pairs: Pairs) -> list[list[str]]:
    return [pairs.queries, pairs.texts]
