"""BLIP as published, small and random: weights by their original names, and the original forward pass.

The forward pass is written from the BLIP paper and the names of its weights, head by head, so that it shares
nothing with transformers' modules. The weights are wide enough to tell heads apart.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, linear
from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval

VISION, TEXT, DIM, LAYERS, PATCH, SIDE = 24, 16, 8, 2, 16, 2
VISION_HEADS, TEXT_HEADS = 3, 2
BERT_TOKENS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefgh",
    "##a",
    "##b",
    "juice",
    "orange",
    "milk",
]
VOCAB = len(BERT_TOKENS) + 2
IDS_BT = torch.tensor([[2, 15, 16, 3, 0, 0], [2, 17, 5, 6, 7, 3]])
MASK_BT = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])


def random_original() -> dict[str, Tensor]:
    """A state dict as salesforce/BLIP's pre-training saves it, everything that we leave out included."""
    shapes: dict[str, tuple[int, ...]] = {
        "visual_encoder.cls_token": (1, 1, VISION),
        "visual_encoder.pos_embed": (1, 1 + SIDE**2, VISION),
        "visual_encoder.patch_embed.proj.weight": (VISION, 3, PATCH, PATCH),
        "visual_encoder.patch_embed.proj.bias": (VISION,),
        **layer_norm_shapes("visual_encoder.norm", VISION),
        "text_encoder.embeddings.word_embeddings.weight": (VOCAB, TEXT),
        "text_encoder.embeddings.position_embeddings.weight": (512, TEXT),
        **layer_norm_shapes("text_encoder.embeddings.LayerNorm", TEXT),
        **linear_shapes("vision_proj", VISION, DIM),
        **linear_shapes("text_proj", TEXT, DIM),
        **linear_shapes("itm_head", TEXT, 2),
    }
    for number in range(LAYERS):
        block = f"visual_encoder.blocks.{number}"
        shapes |= layer_norm_shapes(f"{block}.norm1", VISION) | layer_norm_shapes(f"{block}.norm2", VISION)
        shapes |= linear_shapes(f"{block}.attn.qkv", VISION, 3 * VISION)
        shapes |= linear_shapes(f"{block}.attn.proj", VISION, VISION)
        shapes |= linear_shapes(f"{block}.mlp.fc1", VISION, 4 * VISION)
        shapes |= linear_shapes(f"{block}.mlp.fc2", 4 * VISION, VISION)
        layer = f"text_encoder.encoder.layer.{number}"
        for attention, source in (("attention", TEXT), ("crossattention", VISION)):
            shapes |= linear_shapes(f"{layer}.{attention}.self.query", TEXT, TEXT)
            shapes |= linear_shapes(f"{layer}.{attention}.self.key", source, TEXT)
            shapes |= linear_shapes(f"{layer}.{attention}.self.value", source, TEXT)
            shapes |= linear_shapes(f"{layer}.{attention}.output.dense", TEXT, TEXT)
            shapes |= layer_norm_shapes(f"{layer}.{attention}.output.LayerNorm", TEXT)
        shapes |= linear_shapes(f"{layer}.intermediate.dense", TEXT, 4 * TEXT)
        shapes |= linear_shapes(f"{layer}.output.dense", 4 * TEXT, TEXT)
        shapes |= layer_norm_shapes(f"{layer}.output.LayerNorm", TEXT)
    generator = torch.Generator().manual_seed(0)
    weights = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in weights:
        if "norm" in name.lower() and name.endswith(".weight"):
            weights[name] += 1  # near zero they would silence whatever attention does
    teacher = {}
    for name, value in weights.items():
        module, _, rest = name.partition(".")
        if module != "itm_head":
            teacher[f"{module}_m.{rest}"] = value + 1
    return weights | teacher | {
        "text_encoder.embeddings.position_ids": torch.arange(512).unsqueeze(0),
        "text_encoder_m.embeddings.position_ids": torch.arange(512).unsqueeze(0),
        "text_decoder.bert.embeddings.word_embeddings.weight": torch.zeros(VOCAB, TEXT),
        "text_decoder.cls.predictions.bias": torch.zeros(VOCAB),
        "image_queue": torch.zeros(DIM, 12),
        "text_queue": torch.zeros(DIM, 12),
        "queue_ptr": torch.zeros(1, dtype=torch.long),
        "temp": torch.tensor(0.07),
    }  # fmt: skip


def linear_shapes(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def layer_norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def save_pth(path: Path, weights: dict[str, Tensor]) -> Path:
    torch.save({"model": weights, "config": {"vit": "base", "image_size": 224}, "epoch": 19}, path)
    return path


def save_transformers_folder(folder: Path, *, text_heads: int = TEXT_HEADS) -> Path:
    torch.manual_seed(1)
    shared = {"num_hidden_layers": LAYERS, "initializer_range": 0.3}
    config = BlipConfig(
        vision_config={
            "hidden_size": VISION,
            "intermediate_size": 4 * VISION,
            "num_attention_heads": VISION_HEADS,
            "image_size": PATCH * SIDE,
            "patch_size": PATCH,
            **shared,
        },
        text_config={
            "vocab_size": VOCAB,
            "hidden_size": TEXT,
            "encoder_hidden_size": VISION,
            "intermediate_size": 4 * TEXT,
            "num_attention_heads": text_heads,
            **shared,
        },
        image_text_hidden_size=DIM,
    )
    BlipForImageTextRetrieval(config).save_pretrained(folder)
    vocabulary = {token: position for position, token in enumerate(BERT_TOKENS)}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    return folder


def pixels() -> Tensor:
    return torch.randn((2, 3, PATCH * SIDE, PATCH * SIDE), generator=torch.Generator().manual_seed(5))


def dense(weights: dict[str, Tensor], name: str, states: Tensor) -> Tensor:
    return linear(states, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(weights: dict[str, Tensor], name: str, states: Tensor, eps: float) -> Tensor:
    return layer_norm(states, states.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask_BT: Tensor | None = None) -> Tensor:
    """One head after the other, each on its own slice of the width."""
    width = query.shape[-1] // heads
    results = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / width**0.5
        if mask_BT is not None:
            scores = scores.masked_fill(mask_BT[:, None, :] == 0, float("-inf"))
        results.append(scores.softmax(-1) @ value[..., part])
    return torch.cat(results, dim=-1)


def original_image_tokens(weights: dict[str, Tensor], pixels_BCHW: Tensor) -> Tensor:
    """timm's ViT: pre-norm blocks, a last norm over all tokens."""
    root = "visual_encoder"
    patches = conv2d(
        pixels_BCHW,
        weights[f"{root}.patch_embed.proj.weight"],
        weights[f"{root}.patch_embed.proj.bias"],
        stride=PATCH,
    )
    cls = weights[f"{root}.cls_token"].expand(len(patches), -1, -1)
    states = torch.cat([cls, patches.flatten(2).transpose(1, 2)], 1) + weights[f"{root}.pos_embed"]
    for number in range(LAYERS):
        block = f"{root}.blocks.{number}"
        qkv = dense(weights, f"{block}.attn.qkv", norm(weights, f"{block}.norm1", states, 1e-6))
        attended = attend(*qkv.chunk(3, dim=-1), VISION_HEADS)
        states = states + dense(weights, f"{block}.attn.proj", attended)
        hidden = dense(weights, f"{block}.mlp.fc1", norm(weights, f"{block}.norm2", states, 1e-6))
        states = states + dense(weights, f"{block}.mlp.fc2", gelu(hidden))
    return norm(weights, f"{root}.norm", states, 1e-6)


def original_text_tokens(
    weights: dict[str, Tensor], ids_BT: Tensor, mask_BT: Tensor, image_BIH: Tensor | None = None
) -> Tensor:
    """BERT: post-norm layers; with an image, cross-attention between self-attention and feed-forward."""
    root = "text_encoder"
    states = weights[f"{root}.embeddings.word_embeddings.weight"][ids_BT]
    states = states + weights[f"{root}.embeddings.position_embeddings.weight"][: ids_BT.shape[1]]
    states = norm(weights, f"{root}.embeddings.LayerNorm", states, 1e-12)
    for number in range(LAYERS):
        layer = f"{root}.encoder.layer.{number}"
        sources = [("attention", states, mask_BT)]
        if image_BIH is not None:
            sources.append(("crossattention", image_BIH, None))
        for name, source, mask in sources:
            source = states if name == "attention" else source
            attended = attend(
                dense(weights, f"{layer}.{name}.self.query", states),
                dense(weights, f"{layer}.{name}.self.key", source),
                dense(weights, f"{layer}.{name}.self.value", source),
                TEXT_HEADS,
                mask,
            )
            attended = dense(weights, f"{layer}.{name}.output.dense", attended)
            states = norm(weights, f"{layer}.{name}.output.LayerNorm", attended + states, 1e-12)
        hidden = gelu(dense(weights, f"{layer}.intermediate.dense", states))
        hidden = dense(weights, f"{layer}.output.dense", hidden)
        states = norm(weights, f"{layer}.output.LayerNorm", hidden + states, 1e-12)
    return states
