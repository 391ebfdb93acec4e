"""The folder of a training stage: claimed by its settings, resumed, finished, opened again.

It has `encoder/` (the result), `training.json` (settings, inputs, history), `tensorboard/`, `checkpoints/`
while the stage runs, and for stage 2 `tuples/train` and `tuples/validation`.
"""

import copy
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from embeddings.catalog.holdout import HoldoutConfig
from embeddings.catalog.products import Modality
from embeddings.encoders.dashclip import DashClipEncoder, Stage, is_encoder
from embeddings.stages.fingerprints import settings_fingerprint, table_fingerprint, weights_fingerprint
from embeddings.training.loop import OptimizerConfig, Report, Task, TrainingOutcome, train
from embeddings.training.ranks import Ranks, barrier
from embeddings.training.run_log import Tracker, TrainingLog
from features.artifacts import differences, refuse_foreign_folder, replaced_file

ENCODER, TRAINING, CHECKPOINTS, TUPLES = "encoder", "training.json", "checkpoints", "tuples"

ShowReport = Callable[[Report], None]


class StageError(ValueError):
    """A stage that cannot start: its inputs or its folder are not what they must be."""


@dataclass(frozen=True)
class InputConfig:
    """What an encoder sees of a data folder, and what is kept away from it."""

    modalities: tuple[Modality, ...] = ("image", "text")
    text_columns: tuple[str, ...] = ("title",)
    holdout: HoldoutConfig = field(default_factory=HoldoutConfig)


@dataclass(frozen=True, eq=False)
class StageRun:
    """A finished run."""

    folder: Path
    encoder: DashClipEncoder
    #: None when the folder was complete already.
    outcome: TrainingOutcome | None
    #: What the run counted, and its best evaluation.
    counts: Mapping[str, float | None]
    best: Mapping[str, float]


def encoder_folder(folder: Path) -> Path | None:
    """Where the encoder is in a folder of its own or of the run that made it; None if there is none."""
    return next((found for found in (folder / ENCODER, folder) if is_encoder(found)), None)


def settings_of(
    stage: str,
    data: Path,
    *,
    start: DashClipEncoder,
    config: OptimizerConfig,
    inputs: InputConfig,
    ranks: Ranks,
    tables: Sequence[str] = ("products",),
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that decides a run's weights: a finished run is opened only by equal settings.

    Raises:
        StageError: `start` was trained on these products with another hold-out.
    """
    settings = {
        "stage": stage,
        "config": config.model_dump(mode="json"),
        **(more or {}),
        "inputs": {
            "modalities": list(inputs.modalities),
            "text_columns": list(inputs.text_columns),
            "holdout": inputs.holdout.model_dump(mode="json"),
        },
        "start": weights_fingerprint(start),
        **{name: table_fingerprint(data, name) for name in tables},
        "ranks": ranks.count,
    }
    earlier = (start.trained_on or {}).get("settings", {})
    other = start.holdout not in (None, inputs.holdout)
    if other and earlier.get("products") == settings["products"]:
        raise StageError(
            f"stages on one catalogue must hold out the same of it, but {start.encoder_id}, which is to be "
            "trained further, had another [holdout]: it has seen what this stage would be measured on; take "
            "the [holdout] that it was trained with, or start anew"
        )
    return settings


def train_in(
    task: Task,
    folder: Path,
    settings: dict[str, Any],
    config: OptimizerConfig,
    ranks: Ranks,
    show: ShowReport | None,
    tracker: Tracker | None,
) -> TrainingOutcome:
    with TrainingLog(
        folder, tracker=tracker, name=f"{task.title}: {folder.name}", params=settings, writes=ranks.first
    ) as log:
        return train(
            task,
            folder / CHECKPOINTS,
            config=config,
            fingerprint=settings_fingerprint(settings),
            ranks=ranks,
            progress=show,
            log=log,
        )


def finish(
    folder: Path,
    encoder: DashClipEncoder,
    stage: Stage,
    settings: dict[str, Any],
    outcome: TrainingOutcome,
    counts: Mapping[str, float | None],
    ranks: Ranks,
) -> StageRun:
    if ranks.first:
        trained_on = {"settings": settings, "counts": dict(counts), "previous": encoder.trained_on}
        encoder.save(folder / ENCODER, stage=stage, trained_on=trained_on)
        record = {"settings": settings, "counts": dict(counts), "outcome": asdict(outcome)}
        with replaced_file(folder / TRAINING) as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    barrier(ranks)
    return StageRun(folder, DashClipEncoder.load(folder / ENCODER), outcome, counts, outcome.best)


def is_finished(folder: Path) -> bool:
    """Whether a run in the folder has come to its end, whatever its settings."""
    return (folder / TRAINING).is_file()


def finished_run(folder: Path, settings: dict[str, Any]) -> StageRun | None:
    """The finished run in the folder, if there is one.

    Raises:
        StageError: it is of other settings or inputs.
    """
    path = folder / TRAINING
    if not is_finished(folder):
        # Now rather than after hours of training.
        refuse_foreign_folder(folder / ENCODER, ours=is_encoder)
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found, counts, best = (
            dict(record["settings"]),
            dict(record["counts"]),
            dict(record["outcome"]["best"]),
        )
    except (ValueError, KeyError, TypeError):
        raise StageError(
            f"{path} is not the record of a training run; choose another output folder"
        ) from None
    if found != settings:
        raise StageError(
            f"{folder} holds a finished run of other settings ({differences(found, settings)}); delete it or "
            "choose another output folder"
        )
    return StageRun(folder, DashClipEncoder.load(folder / ENCODER), None, counts, best)


def copy_of(encoder: DashClipEncoder) -> DashClipEncoder:
    """The same with weights of its own, which training changes; a completion would not fit them any more."""
    product = copy.deepcopy(encoder.product)
    product.completion = None
    return replace(encoder, product=product, query=copy.deepcopy(encoder.query))


def device_named(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise StageError("device cuda was asked for, but torch sees no CUDA device; use device cpu")
    return torch.device(name)
