"""The query encoder of a DashCLIP encoder as a folder that a server opens without transformers.

`config.json`, `tokenizer.json` and `model.safetensors` of `embeddings.encoders.query_network`. An encoder
that has no query encoder yet is exported with its text encoder, which embeds its queries (`DashClipEncoder`).
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from embeddings.encoders.dashclip import DashClipEncoder, EncoderError
from embeddings.encoders.query_network import CONFIG, MODEL, TOKENIZER, QueryNetwork, QueryNetworkConfig
from features.artifacts import atomic_folder

#: Largest difference in any entry of the vectors of the probes.
TOLERANCE = 1e-5
#: Texts that the two are compared on, besides pieces of the vocabulary: none, one word, more than fits.
_PROBES = ("", "a", "organic whole milk 1 l", "¿Café? 🥛", "word " * 200)


def export_query_encoder(encoder_folder: Path, out: Path) -> QueryNetworkConfig:
    """Write the query side of the encoder in `encoder_folder` to `out`.

    Raises:
        EncoderError: the folder is no encoder, or the exported network gives other vectors.
    """
    encoder = DashClipEncoder.load(encoder_folder)
    own = encoder.config
    config = QueryNetworkConfig(
        encoder_id=encoder.encoder_id,
        vocab_size=own.vocab_size,
        hidden_dim=own.text_hidden_dim,
        layers=own.text_layers,
        heads=own.text_heads,
        embedding_dim=own.vector_dim,
        max_tokens=own.max_query_tokens,
        prefix=own.query_prefix,
        pooling=own.pooling,
        layer_norm_eps=own.text_layer_norm_eps,
        ngram_buckets=own.ngram_buckets,
        ngram_dim=own.ngram_dim,
    )
    network = query_network(encoder, config)
    _compare(encoder, network, config)
    with atomic_folder(out) as temporary:
        (temporary / CONFIG).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        encoder.tokenizer.save(temporary / TOKENIZER)
        save_file(network.state_dict(), temporary / MODEL)
    return config


def query_network(encoder: DashClipEncoder, config: QueryNetworkConfig) -> QueryNetwork:
    """A network with the weights that `encoder.embed_queries` uses."""
    if encoder.query is None:
        text, projection = encoder.product.text, encoder.product.text_proj
    else:
        text, projection = encoder.query.text, encoder.query.query_proj
    old = {name: value.detach().float() for name, value in text.state_dict().items()}
    new: dict[str, Tensor] = {
        "words.weight": old["embeddings.word_embeddings.weight"],
        "positions.weight": old["embeddings.position_embeddings.weight"][: config.max_tokens],
        "projection.weight": projection.weight.detach().float(),
        "projection.bias": projection.bias.detach().float(),
    }
    renamed = {"norm": "embeddings.LayerNorm"}
    for number in range(config.layers):
        layer, was = f"layers.{number}", f"encoder.layer.{number}"
        renamed |= {
            f"{layer}.attended": f"{was}.attention.output.dense",
            f"{layer}.attention_norm": f"{was}.attention.output.LayerNorm",
            f"{layer}.wide": f"{was}.intermediate.dense",
            f"{layer}.narrow": f"{was}.output.dense",
            f"{layer}.norm": f"{was}.output.LayerNorm",
        }
        for kind in ("weight", "bias"):
            parts = [old[f"{was}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            new[f"{layer}.query_key_value.{kind}"] = torch.cat(parts)
    for name, was in renamed.items():
        new |= {f"{name}.{kind}": old[f"{was}.{kind}"] for kind in ("weight", "bias")}
    ngrams = {name: value for name, value in text.state_dict().items() if name.startswith("ngrams.")}
    new |= {name: value.detach() for name, value in ngrams.items()}
    network = QueryNetwork(config)
    network.load_state_dict({name: value.cpu().contiguous().clone() for name, value in new.items()})
    return network.eval().requires_grad_(False)


def _compare(encoder: DashClipEncoder, network: QueryNetwork, config: QueryNetworkConfig) -> None:
    probes = [*_PROBES, *(piece.removeprefix("##") for piece in encoder.tokenizer.tokens[-8:])]
    tokens = encoder.tokenizer(probes, max_tokens=config.max_tokens, prefix=config.prefix)
    expected_BD = encoder.embed_queries(probes).cpu()
    found_BD = network(tokens.ids_BT, tokens.mask_BT) * tokens.known_B.unsqueeze(1)
    difference = float((found_BD - expected_BD).abs().max())
    if not difference <= TOLERANCE:  # NaN differs, too
        raise EncoderError(
            f"the exported query encoder must give the vectors of {encoder.encoder_id}, but they differ by "
            f"{difference:.2g}; its layers are not those that this version of transformers runs"
        )
