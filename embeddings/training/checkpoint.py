"""Checkpoints of encoder training: safetensors and JSON in folders that are whole or absent."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from features.artifacts import atomic_folder, atomic_write_json, checksums_of, remove_folder, verify_checksums

PROGRESS, CHECKSUMS = "progress.json", "checksums.json"
TENSORS = ("module", "optimizer", "best")


class TrainingStateError(ValueError):
    """A checkpoint that is incomplete, damaged or of another run; the message names the file."""


@dataclass(frozen=True)
class TrainingState:
    """Everything that training needs to go on: tensors by name, and JSON-able progress."""

    module: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    best: dict[str, Tensor]
    progress: dict[str, Any]


def write_state(folder: Path, step: int, state: TrainingState, *, keep: int) -> None:
    """Write `folder`/step-… and delete all but the newest `keep`."""
    for ending in ("writing", "tmp"):  # of a process that was killed while it wrote; "tmp" in older folders
        for leftover in folder.glob(f".step-*.{ending}"):
            shutil.rmtree(leftover)
    with atomic_folder(folder / f"step-{step:08d}") as temporary:
        for name in TENSORS:
            tensors = {key: value.detach().cpu().clone() for key, value in getattr(state, name).items()}
            save_file(tensors, temporary / f"{name}.safetensors")
        (temporary / PROGRESS).write_text(json.dumps(state.progress, indent=2) + "\n", encoding="utf-8")
        atomic_write_json(temporary / CHECKSUMS, checksums_of(temporary))
    for old in sorted(folder.glob("step-*"))[:-keep]:
        remove_folder(old)


def latest_state(folder: Path) -> Path | None:
    """The newest checkpoint, or None."""
    found = sorted(folder.glob("step-*")) if folder.exists() else []
    return found[-1] if found else None


def read_state(path: Path, *, fingerprint: str) -> TrainingState:
    """Read and verify one checkpoint.

    Raises:
        TrainingStateError: a file is missing or changed, or the checkpoint is of other inputs or settings.
    """
    try:
        verify_checksums(
            path,
            json.loads((path / CHECKSUMS).read_text(encoding="utf-8")),
            error=TrainingStateError,
            advice=f"delete {path} to resume from an older checkpoint",
        )
        progress = json.loads((path / PROGRESS).read_text(encoding="utf-8"))
        if progress["fingerprint"] != fingerprint:
            raise TrainingStateError(
                f"{path} is of a run with other settings or inputs; delete {path.parent} to start anew, or "
                "choose another output folder"
            )
        tensors = {name: load_file(path / f"{name}.safetensors") for name in TENSORS}
    except FileNotFoundError as error:
        raise TrainingStateError(
            f"{error.filename} is missing: {path} is not a whole checkpoint; delete it to resume from an "
            "older one"
        ) from None
    except (ValueError, KeyError, AttributeError, SafetensorError) as error:
        if isinstance(error, TrainingStateError):
            raise
        raise TrainingStateError(
            f"{path} cannot be read: {error}; delete it to resume from an older one"
        ) from error
    return TrainingState(progress=progress, **tensors)
