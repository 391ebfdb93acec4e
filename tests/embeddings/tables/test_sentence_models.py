"""Vectors of sentence-transformers' models: queries and titles the right way, blank texts as zeros.

The stand-in for the library knows its two ways of encoding apart; the library itself is tried where it is
installed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embeddings.encoders.pretrained import PretrainedError
from embeddings.tables.sentence_models import CHUNK_TEXTS, embed_sentence_model, open_sentence_model
from tests.embeddings.encoders.small_bert import (
    TEXTS,
    save_bert,
    vectors_of_transformers,
    write_modules,
)

LIBRARY = "sentence_transformers"


class StandIn:
    """Says of a text how long it is and whether it came as a query."""

    def __init__(self, name: str, device: str) -> None:
        if "missing" in name:
            raise OSError(f"{name} has no modules.json\nand more lines")
        self.dim = 6 if "odd" in name else 4

    def _encode(self, texts: Sequence[str], query: float, **settings: Any) -> np.ndarray:
        assert settings["normalize_embeddings"]
        assert len(texts) <= CHUNK_TEXTS
        found = np.zeros((len(texts), self.dim), np.float32)
        found[:, 0], found[:, 1] = [len(text) for text in texts], query
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def encode_query(self, texts: Sequence[str], **settings: Any) -> np.ndarray:
        return self._encode(texts, 1.0, **settings)

    def encode_document(self, texts: Sequence[str], **settings: Any) -> np.ndarray:
        return self._encode(texts, -1.0, **settings)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"weight": torch.ones(2, dtype=torch.bfloat16)}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, LIBRARY, SimpleNamespace(SentenceTransformer=StandIn))


def shop(folder: Path, titles: Sequence[str | None], queries: Sequence[str]) -> Path:
    folder.mkdir()
    ids = pa.array(range(len(titles)), pa.int64())
    pq.write_table(
        pa.table({"product_id": ids, "title": pa.array(titles, pa.string())}), folder / "products.parquet"
    )
    relevance = {
        "query": pa.array(queries, pa.string()),
        "product_id": pa.array([0] * len(queries), pa.int64()),
        "grade": pa.array([2] * len(queries), pa.int8()),
        "source": pa.array(["human"] * len(queries), pa.string()),
    }
    pq.write_table(pa.table(relevance), folder / "relevance.parquet")
    return folder


def test_titles_are_documents_and_queries_are_queries_whatever_their_order(
    stand_in: None, tmp_path: Path
) -> None:
    titles = [
        "a longer title",
        "short",
        None,
        " ",
        *(f"{'x' * (n % 40 + 1)}" for n in range(CHUNK_TEXTS + 7)),
    ]
    products, queries = embed_sentence_model(
        "model", shop(tmp_path / "data", titles, ["tea", "oat milk"]), tmp_path / "out"
    )
    assert queries is not None
    found = np.asarray(
        products.vectors_ND[products.rows_of(pa.array(range(len(titles)), pa.int64()))], np.float32
    )
    for row, title in enumerate(titles):
        if title is None or not title.strip():
            assert not found[row].any()
        else:
            np.testing.assert_allclose(found[row, 0] / found[row, 1], -len(title), rtol=2e-2)
    asked = np.asarray(queries.vectors_ND[queries.rows_of(pa.array(["oat milk", "tea"]))], np.float32)
    np.testing.assert_allclose(asked[:, 0] / asked[:, 1], [8, 3], rtol=2e-2)
    assert products.manifest.encoder_id == queries.manifest.encoder_id
    assert products.manifest.encoder_id.startswith("sentence-transformers-")


def test_what_cannot_be_opened_or_fits_no_table_is_refused_and_nothing_is_written(
    stand_in: None, tmp_path: Path
) -> None:
    data = shop(tmp_path / "data", ["tea"], ["tea"])
    with pytest.raises(
        PretrainedError, match=r"missing cannot be opened as a sentence model: .*modules.json$"
    ):
        embed_sentence_model("missing", data, tmp_path / "out")
    with pytest.raises(PretrainedError, match="vectors of 6; a table takes multiples of 4"):
        embed_sentence_model("odd", data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_the_library_the_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, LIBRARY, None)
    with pytest.raises(PretrainedError, match="the extra `sentence-transformers` adds it"):
        open_sentence_model("model")


def test_the_library_itself_gives_the_vectors_of_transformers(tmp_path: Path) -> None:
    pytest.importorskip(LIBRARY, reason="needs the extra sentence-transformers")
    folder = save_bert(tmp_path / "bert")
    write_modules(folder)
    products, _ = embed_sentence_model(folder, shop(tmp_path / "data", TEXTS, ["q"]), tmp_path / "out")
    expected = vectors_of_transformers(folder, TEXTS, pooling="mean", max_tokens=64)
    found = np.asarray(
        products.vectors_ND[products.rows_of(pa.array(range(len(TEXTS)), pa.int64()))], np.float32
    )
    np.testing.assert_allclose(found, np.asarray(expected), atol=1e-3)  # tables are float16
