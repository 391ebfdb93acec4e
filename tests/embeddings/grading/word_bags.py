"""Vectors that count words: a table of them, and what reads any text as the table does."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from embeddings.catalog.titles import normalise_text
from embeddings.embedding_table import EmbeddingTable
from embeddings.grading.pairs import Catalogue
from embeddings.tables.lsa import write_both_tables


class WordBags:
    """Unit vectors of words counted; it remembers what it read."""

    encoder_id = "bags"

    def __init__(self, catalogue: Catalogue) -> None:
        words = sorted({word for text in catalogue.texts for word in normalise_text(text).split()})
        self._place = {word: place for place, word in enumerate(words)}
        self.width = -(-len(words) // 4) * 4
        self.read: list[str] = []

    def text_vectors(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.read += texts
        found_ND = np.zeros((len(texts), self.width), np.float32)
        for row, text in enumerate(texts):
            for word in normalise_text(text).split():
                if word in self._place:
                    found_ND[row, self._place[word]] += 1
        return found_ND / np.linalg.norm(found_ND, axis=1, keepdims=True).clip(1e-9)

    def write(
        self, folder: Path, catalogue: Catalogue, queries: Sequence[str]
    ) -> tuple[EmbeddingTable, EmbeddingTable]:
        """Both tables in `folder`."""
        products = catalogue.product_ids, self.text_vectors(catalogue.texts)
        both = write_both_tables(
            folder, products, (pa.array(queries), self.text_vectors(queries)), encoder_id=self.encoder_id
        )
        assert both[1] is not None
        self.read = []
        return both[0], both[1]
