"""Opening a checkpoint in transformers' layout such that nothing in it stays random unnoticed."""

import pickle
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel


class CheckpointError(ValueError):
    """Weights that cannot be read or do not fill the model; the message names the file or the keys."""


def read_model_config(name_or_folder: str | Path, *, model_type: str) -> Any:
    """The config.json of a checkpoint, which must be of this type ("blip", "clip", ...).

    Raises:
        CheckpointError: there is none, or it is of another type.
    """
    try:
        config = AutoConfig.from_pretrained(name_or_folder)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{name_or_folder} must be a folder with a transformers config.json, or the name of one that the "
            f"hub can be asked for: {first_line(error)}"
        ) from None
    if config.model_type != model_type:
        raise CheckpointError(
            f"{name_or_folder} must be a {model_type} model, its config says {config.model_type!r}"
        )
    return config


def load_pretrained(model_class: type[PreTrainedModel], name_or_folder: str | Path, *, config: Any) -> Any:
    """`from_pretrained` in float32 and evaluation mode, except that a weight left random is an error.

    transformers only warns, e.g. when a BLIP retrieval checkpoint is opened as BlipModel and 87 weights of
    its text side are drawn at random.

    Raises:
        CheckpointError: weights are missing, unreadable or of another shape.
    """
    try:
        loaded: Any = model_class.from_pretrained(
            name_or_folder, config=config, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{name_or_folder} cannot be loaded as {model_class.__name__}: {first_line(error)}"
        ) from None
    model, found = loaded  # a pair, as asked for
    missing = sorted(found["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{name_or_folder} leaves {len(missing)} weights of {model_class.__name__} random, first "
            f"{missing[0]!r}; it is a checkpoint for another class: give one that has them all"
        )
    return model.eval()


def first_line(error: Exception) -> str:
    """The first line of a message; those of transformers go on for a screen."""
    return str(error).strip().split("\n")[0]
