"""Tiny causal language models with random weights and a tokenizer of whole words, as folders."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from embeddings.grading.language_models.prompt import TEMPLATE, Prompt
from embeddings.relevance.grades import GRADES
from tests.embeddings.grading.small_world import COLOURS, THINGS

CHAT = (
    "{{ bos_token }} {% for message in messages %}[{{ message['role'] }}] {{ message['content'] }} [end]\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT
CONTEXT = 400


def write_prompt(path: Path, **labels: str) -> Prompt:
    """The template, with other labels where given."""
    text = TEMPLATE
    for grade, label in labels.items():
        text = text.replace(f'{grade} = "{grade}"', f'{grade} = "{label}"')
    path.write_text(text, encoding="utf-8")
    return Prompt.read(path)


def write_model(
    folder: Path, *, kind: str = "llama", chat: str | None = None, spaces: bool = False, seed: int = 0
) -> Path:
    """A model folder; large weights, so that no two pairs get the same probabilities.

    Args:
        spaces: words are tokens with the space before them, as in most models, and labels only so.
    """
    splitter: Any = pre_tokenizers.Whitespace()
    if spaces:
        splitter = pre_tokenizers.Split(Regex(r" ?\w+|[^\w\s]|\n"), "isolated")
    text = " ".join(
        [TEMPLATE, *COLOURS, *THINGS, "Query Product: Grade: Answer with one word near-miss", CHAT]
    )
    tokens = [token for token, _ in splitter.pre_tokenize_str(text)]
    if spaces:
        tokens = [*(token for token in tokens if token not in GRADES), *(f" {grade}" for grade in GRADES)]
    vocabulary = {token: place for place, token in enumerate(dict.fromkeys(["<unk>", "<s>", *tokens]))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = splitter
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>")
    if chat is not None:
        tokenizer.chat_template = chat
    tokenizer.save_pretrained(folder)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": CONTEXT,
        "initializer_range": 0.4,
    }  # fmt: skip
    torch.manual_seed(seed)
    if kind == "llama":
        LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder)
    elif kind == "mistral":
        MistralForCausalLM(MistralConfig(**shape, sliding_window=9)).save_pretrained(folder)
    else:
        gpt2 = GPT2Config(
            vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=CONTEXT,
            initializer_range=0.4,
        )  # fmt: skip
        GPT2LMHeadModel(gpt2).save_pretrained(folder)
    return folder
