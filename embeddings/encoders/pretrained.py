"""Opening published checkpoints such that no code in them runs and nothing stays random unnoticed."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from embeddings.catalog.tokenizer import TextTokenizer, TokenizerError


class PretrainedError(ValueError):
    """Weights that cannot be read or do not fill the model; the message names the file or the keys."""


def read_model_config(name_or_folder: str | Path, *, model_type: str) -> Any:
    """The config.json of a checkpoint, which must be of this type ("blip", "clip", ...).

    Raises:
        PretrainedError: there is none, or it is of another type.
    """
    try:
        config = AutoConfig.from_pretrained(name_or_folder)
    except (OSError, ValueError, KeyError) as error:
        raise PretrainedError(
            f"{name_or_folder} must be a folder with a transformers config.json, or the name of one that the "
            f"hub can be asked for: {first_line(error)}"
        ) from None
    if config.model_type != model_type:
        raise PretrainedError(
            f"{name_or_folder} must be a {model_type} model, its config says {config.model_type!r}"
        )
    return config


def load_pretrained(
    model_class: type[PreTrainedModel] | type[AutoModel] | type[AutoModelForCausalLM],
    name_or_folder: str | Path,
    *,
    config: Any,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    unused: str | None = None,
) -> Any:
    """`from_pretrained` in evaluation mode, except that a weight left random is an error.

    transformers only warns, e.g. when a BLIP retrieval checkpoint is opened as BlipModel and 87 weights of
    its text side are drawn at random.

    Args:
        dtype: of the weights in memory; "auto" leaves them as they are stored.
        unused: what the names of weights begin with that the caller does not use: those may be random.

    Raises:
        PretrainedError: weights are missing, unreadable or of another shape.
    """
    try:
        loaded: Any = model_class.from_pretrained(
            name_or_folder, config=config, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        raise PretrainedError(
            f"{name_or_folder} cannot be loaded as {model_class.__name__}: {first_line(error)}"
        ) from None
    model, found = loaded  # a pair, as asked for
    missing = sorted(name for name in found["missing_keys"] if not unused or not name.startswith(unused))
    if missing:
        raise PretrainedError(
            f"{name_or_folder} leaves {len(missing)} weights of {model_class.__name__} random, first "
            f"{missing[0]!r}; it is a checkpoint for another class: give one that has them all"
        )
    return model.eval()


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """The weights of a safetensors file or of a PyTorch checkpoint, itself or under the key "model".

    The latter is read with `weights_only=True`: nothing in it is executed.

    Raises:
        PretrainedError: the file is neither, or holds something else than tensors.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise PretrainedError(
                f"{path} must be a file of the safetensors library: {first_line(error)}"
            ) from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise PretrainedError(
            f"{path} must be a PyTorch checkpoint that holds nothing but tensors and plain values: "
            f"{first_line(error)}"
        ) from None
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise PretrainedError(f"{path} must hold a dictionary of tensors, itself or under the key 'model'")
    return state


def read_vocabulary(path: Path) -> TextTokenizer:
    """A tokenizer.json, or a vocab.txt with one token a line.

    Raises:
        PretrainedError: it is neither, or not of an uncased BERT.
    """
    try:
        if path.suffix == ".json":
            return TextTokenizer.load(path)
        return TextTokenizer.from_vocabulary(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError, TokenizerError) as error:
        raise PretrainedError(
            f"{path} must be a tokenizer.json or vocab.txt of an uncased BERT (bert-base-uncased): {error}"
        ) from None


def tokenizer_of_folder(name_or_folder: str | Path) -> TextTokenizer:
    """The tokenizer that transformers makes of a folder, or of a name that the hub knows.

    Raises:
        PretrainedError: there is none, or it is not that of an uncased BERT.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name_or_folder)
    except (OSError, ValueError, KeyError) as error:
        raise PretrainedError(
            f"{name_or_folder} has no readable tokenizer: {first_line(error)}; give its vocabulary"
        ) from None
    try:
        return TextTokenizer.from_json(tokenizer.backend_tokenizer.to_str(), source=str(name_or_folder))
    except (AttributeError, TokenizerError) as error:
        raise PretrainedError(
            f"the tokenizer must be that of an uncased BERT (WordPiece): {first_line(error)}"
        ) from None


def first_line(error: Exception) -> str:
    """The first line of a message; those of transformers go on for a screen."""
    return str(error).strip().split("\n")[0]
