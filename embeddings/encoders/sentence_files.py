"""What sentence-transformers writes beside a model's weights: pooling, linear maps, prompts.

Shapes: H hidden width, D embedding width.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from embeddings.encoders.config import Pooling
from embeddings.encoders.pretrained import PretrainedError, first_line, read_tensors
from features.inputs.image_paths import path_in_folder

CONFIG, MODULES, PROMPTS = "config.json", "modules.json", "config_sentence_transformers.json"
#: The first of these that is there holds the weights.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, eq=False)
class Head:
    """What comes after the layers: pooling, and the linear map of the pooled state if there is one."""

    pooling: Pooling
    weight_DH: Tensor | None = None
    bias_D: Tensor | None = None


def modules_of(folder: Path) -> list[tuple[str, str]]:
    """Kind and subfolder of what sentence-transformers runs in turn; [] where it left no word.

    Raises:
        PretrainedError: the order is another than layers, pooling, linear maps, normalisation.
    """
    path = folder / MODULES
    if not path.exists():
        return []
    try:
        found = [(str(module["type"]).rsplit(".", 1)[-1], str(module["path"])) for module in _read_json(path)]
    except (KeyError, TypeError):
        raise PretrainedError(
            f"{path} must be the list of modules that sentence-transformers writes"
        ) from None
    kinds = [kind for kind, _ in found]
    if not re.fullmatch(r"Transformer Pooling( Dense)*( Normalize)?", " ".join(kinds)):
        raise PretrainedError(
            f"{folder}: a text encoder is Transformer, Pooling, perhaps Dense, and Normalize in this order; "
            f"{MODULES} lists {', '.join(kinds) or 'nothing'}"
        )
    for _, name in found:
        if path_in_folder(name) is None:
            raise PretrainedError(f"{path} names {name!r}, which leads out of the folder")
    return found


def head_of(folder: Path, modules: list[tuple[str, str]], pooling: Pooling | None) -> Head:
    """Pooling as given, or as the folder says; several linear maps are one.

    Raises:
        PretrainedError: the folder does not say, or it pools or maps in a way that our encoders cannot.
    """
    if pooling is None:
        if not modules:
            raise PretrainedError(
                f"{folder} does not say how it makes one vector of a text's tokens (no {MODULES}); give "
                'pooling: "mean" for most sentence encoders, "cls" for those trained on the first token'
            )
        pooling = _pooling(folder / modules[1][1] / CONFIG)
    weight_DH, bias_D = None, None
    for kind, name in modules:
        if kind != "Dense":
            continue
        weight, bias = _dense(folder / name)
        if weight_DH is None or bias_D is None:
            weight_DH, bias_D = weight, bias
        else:
            weight_DH, bias_D = weight @ weight_DH, weight @ bias_D + bias
    return Head(pooling, weight_DH, bias_D)


def _pooling(path: Path) -> Pooling:
    said = _read_object(path)
    names = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
    modes: list[str | None] = [
        names.get(key, key)
        for key, chosen in said.items()
        if key.startswith("pooling_mode_") and chosen is True
    ] or [said.get("pooling_mode")]
    for pooling in get_args(Pooling):
        if modes == [pooling]:
            if said.get("include_prompt") is False:
                raise PretrainedError(
                    f"{path} leaves the prompt out of the pooling, which this encoder cannot"
                )
            return pooling
    raise PretrainedError(f"{path}: pooling must be the mean of the tokens or [CLS], got {modes}")


def _dense(folder: Path) -> tuple[Tensor, Tensor]:
    """Weight (D, H) and bias (D) in float64."""
    said = _read_object(folder / CONFIG)
    activation = str(said.get("activation_function", "torch.nn.modules.activation.Tanh"))
    if not activation.endswith(".Identity"):
        raise PretrainedError(
            f"{folder}: a Dense module must be linear, as our projections are; its activation is {activation}"
        )
    weights = read_tensors(weights_file(folder))
    weight_DH = weights.get("linear.weight")
    if weight_DH is None:
        raise PretrainedError(f"{folder} lacks 'linear.weight'")
    bias_D = weights.get("linear.bias", torch.zeros(len(weight_DH)))
    return weight_DH.double(), bias_D.double()


def prompts_of(folder: Path) -> dict[str, str]:
    """Prefixes that the folder names for queries and documents."""
    path = folder / PROMPTS
    if not path.exists():
        return {}
    said = _read_object(path)
    prompts: dict[str, str] = said.get("prompts") or {}
    for_all = prompts.get(said.get("default_prompt_name") or "") or ""
    documents = (prompts.get(name) for name in ("document", "passage", "corpus"))
    return {
        "query_prefix": prompts.get("query") or for_all,
        "title_prefix": next((text for text in documents if text), for_all),
    }


def weights_file(folder: Path) -> Path:
    """The one file that holds the weights of a model or a module.

    Raises:
        PretrainedError: there is none.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise PretrainedError(f"{folder} must hold its weights as one file, {' or '.join(WEIGHTS)}")


def _read_object(path: Path) -> dict[str, Any]:
    found = _read_json(path)
    if not isinstance(found, dict):
        raise PretrainedError(f"{path} must hold a JSON object, got {type(found).__name__}")
    return found


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PretrainedError(f"{path} must be a JSON file: {first_line(error)}") from None
