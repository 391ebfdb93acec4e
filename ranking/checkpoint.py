"""Checkpoints: safetensors and JSON in a folder that is whole or absent, verified when read.

Frozen pretrained tables are not in a checkpoint: a copy per checkpoint would only cost disk. The run names
their EmbeddingTables in config.json and holds their fingerprints in inputs.json.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from features.artifacts import atomic_folder, atomic_write_json, checksums_of, verify_checksums
from ranking.model import Ranker


class CheckpointError(ValueError):
    """A checkpoint that is incomplete, damaged or of another model; the message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a training run needs to go on.

    Attributes:
        weights: parameters by name, without frozen tables.
        optimizer: optimizer states by flat name; empty for a model that is only served.
        progress: JSON-able state of the run (step, loader position, history).
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    progress: dict[str, Any]


def ranker_weights(ranker: Ranker) -> dict[str, Tensor]:
    """State of the ranker without its frozen tables."""
    frozen = {name for name, parameter in ranker.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in ranker.state_dict().items() if name not in frozen}


def load_ranker_weights(ranker: Ranker, weights: dict[str, Tensor], *, source: Path) -> None:
    """Copy weights into the ranker; every one must fit.

    Raises:
        CheckpointError: names or shapes differ.
    """
    own = ranker_weights(ranker)
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or unknown:
        raise CheckpointError(
            f"{source} is of another model: it lacks {missing[:3]} and has {unknown[:3]} besides; use the "
            "config.json that lies beside it"
        )
    for name, value in own.items():
        if value.shape != weights[name].shape:
            raise CheckpointError(
                f"{source}: {name} is {tuple(weights[name].shape)}, the model wants {tuple(value.shape)}; "
                "the feature set has changed since the run"
            )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(weights[name])


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write atomically; an older checkpoint under the same name is replaced."""
    with atomic_folder(folder) as temporary:
        for name, tensors in (("model", checkpoint.weights), ("optimizer", checkpoint.optimizer)):
            contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            save_file(contiguous, temporary / f"{name}.safetensors")
        atomic_write_json(temporary / "progress.json", checkpoint.progress)
        atomic_write_json(temporary / "checksums.json", checksums_of(temporary))


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify.

    Raises:
        CheckpointError: a file is missing or its checksum differs; names the file.
    """
    try:
        verify_checksums(
            folder,
            json.loads((folder / "checksums.json").read_text()),
            error=CheckpointError,
            advice=f"delete {folder} and resume from an older checkpoint, or train again",
        )
        return Checkpoint(
            weights=load_file(folder / "model.safetensors"),
            optimizer=load_file(folder / "optimizer.safetensors"),
            progress=json.loads((folder / "progress.json").read_text()),
        )
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename} is missing: {folder} is not a whole checkpoint") from None
    except (json.JSONDecodeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error


def latest_checkpoint(checkpoints: Path) -> Path | None:
    """The newest `step-…` folder, or None."""
    found = sorted(checkpoints.glob("step-*")) if checkpoints.exists() else []
    return found[-1] if found else None
