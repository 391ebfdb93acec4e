"""Checkpoints of a training: safetensors and JSON in folders that are whole or absent, verified when read."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from features.artifacts import atomic_folder, atomic_write_json, checksums_of, remove_folder, verify_checksums

PROGRESS, CHECKSUMS = "progress.json", "checksums.json"


class CheckpointError(ValueError):
    """A checkpoint that is incomplete, damaged or of another run or model; the message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a training needs to go on.

    Attributes:
        parts: tensors by name for each part ("optimizer", ...), which is one file.
        progress: JSON-able state of the run (step, history, ...).
    """

    parts: dict[str, dict[str, Tensor]]
    progress: dict[str, Any]


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write atomically; an older checkpoint under the same name is replaced."""
    with atomic_folder(folder) as temporary:
        fill_checkpoint(temporary, checkpoint)


def add_checkpoint(folder: Path, name: str, checkpoint: Checkpoint, *, keep: int) -> None:
    """Write `folder`/`name` (step-…) and delete all but the newest `keep`."""
    with new_checkpoint(folder, name, keep=keep) as temporary:
        fill_checkpoint(temporary, checkpoint)


@contextmanager
def new_checkpoint(folder: Path, name: str, *, keep: int) -> Iterator[Path]:
    """A folder to fill that becomes `folder`/`name` (step-…); all but the newest `keep` are deleted then."""
    for ending in ("writing", "tmp"):  # of a process that was killed while it wrote; "tmp" in older folders
        for leftover in folder.glob(f".step-*.{ending}"):
            shutil.rmtree(leftover)
    with atomic_folder(folder / name) as temporary:
        yield temporary
    for old in sorted(folder.glob("step-*"))[:-keep]:
        remove_folder(old)


def fill_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the parts, then checksums of them and of whatever the folder holds besides."""
    for part, tensors in checkpoint.parts.items():
        contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(contiguous, folder / f"{part}.safetensors")
    atomic_write_json(folder / PROGRESS, checkpoint.progress)
    atomic_write_json(folder / CHECKSUMS, checksums_of(folder))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest `step-…` folder, or None."""
    return max(folder.glob("step-*"), default=None)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify.

    Raises:
        CheckpointError: a file is missing or its checksum differs; names the file.
    """
    advice = f"delete {folder} to resume from an older checkpoint, or train again"
    try:
        checksums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        verify_checksums(folder, checksums, error=CheckpointError, advice=advice)
        parts = {
            name.removesuffix(".safetensors"): load_file(folder / name)
            for name in checksums
            if name.endswith(".safetensors")
        }
        return Checkpoint(parts, json.loads((folder / PROGRESS).read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename} is missing; {advice}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}; {advice}") from error
