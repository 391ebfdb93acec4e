"""A small random text encoder that knows the words of the small world."""

from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel, BertTokenizer

from tests.embeddings.grading.small_world import COLOURS, MAKERS, THINGS

WORDS = [*(word.lower() for word in (*COLOURS, *THINGS, *MAKERS)), "for", "in", "##s", *map(str, range(31))]
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def save_encoder(folder: Path, *, pooler: bool = True, seed: int = 0, **changes: Any) -> Path:
    """A small random BERT that knows the words of the small world."""
    shape: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    shape |= {"vocab_size": len(TOKENS), "intermediate_size": 128, "max_position_embeddings": 64} | changes
    torch.manual_seed(seed)
    BertModel(BertConfig(**shape, initializer_range=0.1), add_pooling_layer=pooler).save_pretrained(folder)
    BertTokenizer(vocab={token: row for row, token in enumerate(TOKENS)}).save_pretrained(folder)
    return folder
