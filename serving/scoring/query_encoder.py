"""Vectors of queries that nobody encoded beforehand, made while the request waits, and remembered.

Shapes: Q queries, D embedding width.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from embeddings.catalog.tokenizer import TextTokenizer, TokenizerError
from embeddings.encoders.query_network import CONFIG, MODEL, TOKENIZER, QueryNetwork, QueryNetworkConfig


class QueryEncoderError(ValueError):
    """A folder that holds no exported query encoder, or a damaged one."""


class QueryTextEncoder:
    """Texts to the vectors of `DashClipEncoder.embed_queries`; the latest are kept. Threads may share it."""

    def __init__(
        self, config: QueryNetworkConfig, tokenizer: TextTokenizer, network: QueryNetwork, *, remembered: int
    ) -> None:
        """Use `open`."""
        self.config = config
        self._tokenizer = tokenizer
        self._network = network
        self._remembered = remembered
        self._vectors: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._lock = Lock()

    @classmethod
    def open(cls, folder: Path, *, remembered: int = 10_000) -> Self:
        """Open what `embeddings.encoders.query_export` wrote. Weights are mapped, so that workers share them.

        Args:
            remembered: so many of the latest queries' vectors are kept; 256 wide, 10,000 take 10 MB.

        Raises:
            QueryEncoderError: a file is missing, damaged or of another shape.
        """
        try:
            config = QueryNetworkConfig.model_validate_json((folder / CONFIG).read_text(encoding="utf-8"))
            tokenizer = TextTokenizer.load(folder / TOKENIZER)
            with torch.device("meta"):
                network = QueryNetwork(config)
            network.load_state_dict(load_file(folder / MODEL), assign=True)
        except (OSError, ValidationError, SafetensorError, TokenizerError, RuntimeError) as error:
            raise QueryEncoderError(
                f"{folder} holds no query encoder that can be read: {error}; package the run again"
            ) from error
        if tokenizer.vocab_size != config.vocab_size:
            raise QueryEncoderError(
                f"{folder}: the tokenizer has {tokenizer.vocab_size:,} tokens, the network "
                f"{config.vocab_size:,}; package the run again"
            )
        return cls(config, tokenizer, network.eval().requires_grad_(False), remembered=remembered)

    @property
    def dim(self) -> int:
        """D."""
        return self.config.embedding_dim

    def embed(self, texts: Sequence[str | None]) -> NDArray[np.float32]:
        """Unit vectors, float32 [Q, D]; zeros for a query without a single known token."""
        found: dict[str, NDArray[np.float32]] = {}
        wanted = list(dict.fromkeys(text or "" for text in texts))
        with self._lock:
            for text in wanted:
                vector_D = self._vectors.get(text)
                if vector_D is not None:
                    self._vectors.move_to_end(text)
                    found[text] = vector_D
        new = [text for text in wanted if text not in found]
        if new:
            # Copies: a view would keep the vectors of its whole batch.
            found.update(zip(new, map(np.copy, self._encode(new)), strict=True))
            with self._lock:
                self._vectors.update({text: found[text] for text in new})
                while len(self._vectors) > self._remembered:
                    self._vectors.popitem(last=False)
        vectors_QD = np.zeros((len(texts), self.dim), np.float32)
        for position, asked in enumerate(texts):
            vectors_QD[position] = found[asked or ""]
        return vectors_QD

    def _encode(self, texts: list[str]) -> NDArray[np.float32]:
        tokens = self._tokenizer(texts, max_tokens=self.config.max_tokens, prefix=self.config.prefix)
        with torch.inference_mode():
            vectors_QD = self._network(tokens.ids_BT, tokens.mask_BT) * tokens.known_B.unsqueeze(1)
        encoded_QD: NDArray[np.float32] = vectors_QD.numpy()
        return encoded_QD
