"""Small random BERT models in folders as transformers and sentence-transformers save them, and their vectors.

The vectors come from transformers' own BertModel and tokenizer; pooling and normalisation are written here
text by text.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertModel, BertTokenizer

from tests.embeddings.encoders.original_blip import BERT_TOKENS

DIGITS = "0123456789"
WORDS = [
    *"ijklmnopqrstuvwxyz:.",
    *DIGITS,
    *(f"##{digit}" for digit in DIGITS),
    "##c",
    "##s",
    "red",
    "circle",
    "square",
    "query",
    "passage",
    "acme",
]
TOKENS = [*BERT_TOKENS, *WORDS]
#: Every word is known: where none is, our encoders give zeros.
TEXTS = ["red circle", "Acme Red Square", "milk: orange juices abc", "q", "milk " * 60]


def save_bert(
    folder: Path,
    *,
    hidden: int = 32,
    heads: int = 4,
    layers: int = 2,
    positions: int = 64,
    unused_rows: int = 0,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Weights, config and tokenizer; wide and random enough that every one of them counts."""
    config = BertConfig(
        vocab_size=len(TOKENS) + unused_rows,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        intermediate_size=4 * hidden,
        max_position_embeddings=positions,
        **changes,
    )
    generator = torch.Generator().manual_seed(seed)
    model = BertModel(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(0.15 * torch.randn(value.shape, generator=generator))
            if "LayerNorm.weight" in name:
                value.add_(1)
    model.save_pretrained(folder)
    BertTokenizer(vocab={token: row for row, token in enumerate(TOKENS)}).save_pretrained(folder)
    return folder


def write_modules(
    folder: Path,
    *,
    pooling: dict[str, Any] | None = None,
    dense: Sequence[tuple[Tensor, Tensor]] = (),
    activation: str = "torch.nn.modules.linear.Identity",
    prompts: dict[str, str] | None = None,
) -> Path:
    """What sentence-transformers writes beside the weights."""
    names = [("Transformer", ""), ("Pooling", "1_Pooling")]
    names += [("Dense", f"{2 + number}_Dense") for number in range(len(dense))]
    names += [("Normalize", f"{2 + len(dense)}_Normalize")]
    modules = [
        {"idx": row, "name": str(row), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for row, (kind, path) in enumerate(names)
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling" / "config.json", pooling or mean_pooling())
    for (_, path), (weight, bias) in zip(names[2:], dense, strict=False):
        write_json(folder / path / "config.json", {"activation_function": activation})
        save_file({"linear.weight": weight, "linear.bias": bias}, folder / path / "model.safetensors")
    if prompts is not None:
        write_json(folder / "config_sentence_transformers.json", {"prompts": prompts})
    return folder


def mean_pooling(**changes: Any) -> dict[str, Any]:
    return {
        "word_embedding_dimension": 32,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        **changes,
    }


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def as_other_file(folder: Path) -> None:
    """The weights as a pickled file with the names of a model with heads, as google published BERT."""
    weights = load_file(folder / "model.safetensors")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, value in weights.items():
        for new, before in old.items():
            name = name.replace(new, before)
        renamed[f"bert.{name}"] = value
    more = {"cls.predictions.bias": torch.zeros(3), "bert.embeddings.position_ids": torch.arange(64)[None]}
    torch.save(renamed | more, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@torch.no_grad()
def vectors_of_transformers(
    folder: Path,
    texts: Sequence[str],
    *,
    pooling: str,
    max_tokens: int,
    dense: Sequence[tuple[Tensor, Tensor]] = (),
) -> Tensor:
    """Unit vectors, one text at a time: no padding, no mask."""
    model = BertModel.from_pretrained(folder).eval()
    tokenizer = BertTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"]
        state_TH = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        state_H = state_TH[0] if pooling == "cls" else sum(state_TH) / len(ids)
        for weight, bias in dense:
            state_H = weight @ state_H + bias
        found.append(state_H / state_H.norm())
    return torch.stack(found)
