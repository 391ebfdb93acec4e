"""Character TF-IDF as tables: its cosines are those of the lexical row of table 1."""

from pathlib import Path

import numpy as np
import pytest

from embeddings.embedding_table import EmbeddingTable, EmbeddingTableError
from embeddings.evaluation.lexical import char_tfidf_scores
from embeddings.tables import lsa
from embeddings.tables.tfidf import embed_tfidf, tfidf_vectors
from tests.embeddings.tables.test_lsa import QUERIES, TITLES, write_data


def exact(titles: list[str | None], queries: list[str | None]) -> np.ndarray:
    return np.stack(list(char_tfidf_scores(titles, queries)))


def test_with_room_for_all_texts_cosines_are_those_of_the_sparse_vectors() -> None:
    titles, queries = [*TITLES, "", None, "???"], [*QUERIES, "zzz", None]
    vectors = tfidf_vectors(titles, queries, dim=16, seed=0)
    cosine_QN = vectors.queries_QD @ vectors.products_ND.T
    np.testing.assert_allclose(cosine_QN, exact(titles, queries), atol=1e-5)
    assert cosine_QN[:3].max() > 0.5


def test_fewer_dimensions_stay_near_them() -> None:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 5)) for _ in range(25)]
    texts: list[str | None] = [" ".join(rng.choice(words, 3)) for _ in range(300)]
    errors = []
    for dim in (8, 16, 64):
        vectors = tfidf_vectors(texts[:200], texts[200:], dim=dim, seed=0)
        cosine_QN = vectors.queries_QD @ vectors.products_ND.T
        errors.append(float(np.sqrt(np.mean((cosine_QN - exact(texts[:200], texts[200:])) ** 2))))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


def test_words_of_queries_change_no_weight_of_titles() -> None:
    few = tfidf_vectors(TITLES, ["milk"], dim=16, seed=0)
    many = tfidf_vectors(TITLES, ["milk"] * 50, dim=16, seed=0)
    np.testing.assert_allclose(
        few.products_ND @ few.queries_QD[0], many.products_ND @ many.queries_QD[0], atol=1e-5
    )


def test_texts_without_a_known_term_are_zeros() -> None:
    vectors = tfidf_vectors([*TITLES, None], ["zzzz", "milk"], dim=16, seed=0)
    assert not vectors.products_ND[-1].any()
    assert vectors.queries_QD.any(axis=1).tolist() == [False, True]


def test_chunks_and_the_whole_give_the_same_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tfidf_vectors(TITLES, QUERIES, dim=4, seed=0)
    monkeypatch.setattr(lsa, "CHUNK_TEXTS", 2)
    np.testing.assert_allclose(
        tfidf_vectors(TITLES, QUERIES, dim=4, seed=0).products_ND, whole.products_ND, atol=1e-6
    )


def test_titles_without_any_letter_are_refused() -> None:
    with pytest.raises(EmbeddingTableError, match="letter or a digit"):
        tfidf_vectors(["", None], ["milk"], dim=4, seed=0)


def test_a_width_that_no_table_takes_is_refused() -> None:
    with pytest.raises(EmbeddingTableError, match="got 6"):
        tfidf_vectors(TITLES, QUERIES, dim=6, seed=0)


def test_a_data_folder_becomes_two_tables(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    embed_tfidf(data, tmp_path / "tfidf", dim=8)
    products = EmbeddingTable.load(tmp_path / "tfidf" / "products")
    queries = EmbeddingTable.load(tmp_path / "tfidf" / "queries")
    assert (len(products), len(queries), products.dim) == (len(TITLES), len(QUERIES), 8)
    assert products.manifest.encoder_id == queries.manifest.encoder_id == "char-tfidf-8-seed0-title"
