"""LSA: one space for titles and queries, the same bits for the same seed, and honest about what lacks."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embeddings.catalog.inputs import read_distinct_queries, read_product_texts
from embeddings.catalog.titles import normalise_text
from embeddings.embedding_table import EmbeddingTable, EmbeddingTableError
from embeddings.tables import lsa
from embeddings.tables.lsa import embed_lsa, lsa_vectors
from features.inputs.tables import InputError
from tests.tolerances import float32_error

TITLES = [
    "Orange Juice 12oz",
    "Apple Juice 1L",
    "Dark Chocolate Bar",
    "Milk Chocolate Bar",
    "Toothpaste Mint",
    "Whole Milk 1 gal",
]
QUERIES = ["orange juice", "choclate", "mint toothpaste"]


def write_data(folder: Path, *, queries: list | None = QUERIES, titles: list = TITLES) -> Path:
    folder.mkdir()
    count = len(titles)
    products = {"product_id": list(range(100, 100 + count)), "title": titles, "brand": ["Acme"] * count}
    pq.write_table(pa.table(products), folder / "products.parquet")
    impressions = {"product_id": [100] * 4}
    if queries is not None:
        impressions["query"] = [*queries, None]
    pq.write_table(pa.table(impressions), folder / "impressions.parquet")
    return folder


def test_each_query_is_nearest_to_the_product_it_names() -> None:
    vectors = lsa_vectors(TITLES, QUERIES, dim=4, seed=0)
    cosine_QN = vectors.queries_QD @ vectors.products_ND.T
    assert cosine_QN.argmax(axis=1)[[0, 2]].tolist() == [0, 4]
    assert set(cosine_QN[1].argsort()[-2:]) == {2, 3}, "a misspelt word still finds its n-grams"


def test_texts_that_normalise_alike_have_cosine_one() -> None:
    vectors = lsa_vectors(TITLES, ["ORANGE  juice, 12 oz"], dim=4, seed=0)
    np.testing.assert_allclose(vectors.queries_QD[0], vectors.products_ND[0], atol=1e-6)
    three_sums = float32_error(3 * 4)  # the product and both lengths
    assert vectors.queries_QD[0] @ vectors.products_ND[0] == pytest.approx(1, abs=three_sums)


def test_every_vector_has_norm_one_or_is_zero() -> None:
    vectors = lsa_vectors([*TITLES, "", None, "???"], QUERIES, dim=8, seed=0)
    norm_N = np.linalg.norm(vectors.products_ND, axis=1)
    np.testing.assert_allclose(norm_N, [1] * len(TITLES) + [0] * 3, atol=1e-6)


def test_the_same_seed_gives_the_same_bits() -> None:
    first = lsa_vectors(TITLES, QUERIES, dim=4, seed=3)
    second = lsa_vectors(TITLES, QUERIES, dim=4, seed=3)
    np.testing.assert_array_equal(first.products_ND, second.products_ND)
    np.testing.assert_array_equal(first.queries_QD, second.queries_QD)


def test_more_dimensions_than_texts_leave_the_last_columns_zero() -> None:
    vectors = lsa_vectors(TITLES[:2], [], dim=8, seed=0)
    assert vectors.products_ND.shape == (2, 8)
    assert vectors.queries_QD.shape == (0, 8)
    np.testing.assert_array_equal(vectors.products_ND[:, 2:], 0)


def test_chunks_and_the_whole_give_the_same_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lsa_vectors(TITLES, QUERIES, dim=4, seed=0)
    monkeypatch.setattr(lsa, "CHUNK_TEXTS", 2)
    seen: list[tuple[str, int, int]] = []
    chunked = lsa_vectors(TITLES, QUERIES, dim=4, seed=0, progress=lambda *call: seen.append(call))
    np.testing.assert_allclose(chunked.products_ND, whole.products_ND, atol=1e-6)
    assert [call[1] for call in seen if call[0] == "products"] == [0, 2, 4, 6]


def test_learning_from_a_sample_takes_titles_and_queries_in_equal_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lsa, "FIT_TEXTS", 4)
    chosen = lsa.fit_sample(["title"] * 9, ["query"] * 9, np.random.default_rng(0))
    assert sorted(chosen) == ["query", "query", "title", "title"]
    few_queries = lsa.fit_sample(["title"] * 9, ["query"], np.random.default_rng(0))
    assert sorted(few_queries) == ["query", "title", "title", "title"]


@pytest.mark.parametrize(
    "raw, normalised",
    [
        ("Café, 12OZ", "cafe 12 oz"),
        ("6.5 fl.oz.", "6.5 fl oz"),
        ("H&M T-shirt_XL", "h m t shirt xl"),
        ("Straße", "strasse"),
        ("  ", ""),
    ],
)
def test_normalised_text(raw: str, normalised: str) -> None:
    assert normalise_text(raw) == normalised
    assert normalise_text(normalised) == normalised


def test_texts_without_any_letter_are_refused() -> None:
    with pytest.raises(EmbeddingTableError, match="letter or a digit"):
        lsa_vectors(["", None], ["!"], dim=4, seed=0)


@pytest.mark.parametrize("dim", [0, 6, 1028])
def test_a_width_that_no_table_takes_is_refused_before_any_work(dim: int) -> None:
    with pytest.raises(EmbeddingTableError, match=f"got {dim}"):
        lsa_vectors(TITLES, QUERIES, dim=dim, seed=0)


def test_a_data_folder_becomes_two_tables(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    tables = embed_lsa(data, tmp_path / "lsa", dim=4, seed=0)
    products = EmbeddingTable.load(tmp_path / "lsa" / "products")
    queries = EmbeddingTable.load(tmp_path / "lsa" / "queries")
    assert products.ids.to_pylist() == [100, 101, 102, 103, 104, 105]
    assert queries.ids.to_pylist() == sorted(QUERIES)
    assert (products.manifest.kind, queries.manifest.kind) == ("product", "query")
    assert products.manifest.encoder_id == queries.manifest.encoder_id == "lsa-4-seed0-title"
    assert tables.queries is not None
    assert 0 < tables.explained_variance <= 1


def test_without_queries_there_is_only_a_product_table(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", queries=None)
    tables = embed_lsa(data, tmp_path / "lsa", dim=4, seed=0)
    assert tables.queries is None
    assert [path.name for path in (tmp_path / "lsa").iterdir()] == ["products"]


def test_a_second_run_leaves_no_queries_of_the_first(tmp_path: Path) -> None:
    embed_lsa(write_data(tmp_path / "a"), tmp_path / "lsa", dim=4, seed=0)
    embed_lsa(write_data(tmp_path / "b", queries=None), tmp_path / "lsa", dim=4, seed=0)
    assert not (tmp_path / "lsa" / "queries").exists()


def test_queries_come_from_impressions_and_relevance_in_files_or_folders(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    (data / "relevance").mkdir()
    for number, query in enumerate(["apple", "orange juice"]):
        pq.write_table(pa.table({"query": [query]}), data / "relevance" / f"{number}.parquet")
    assert read_distinct_queries(data).to_pylist() == sorted([*QUERIES, "apple"])


def test_further_text_columns_count_and_nulls_in_them_do_not(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", titles=[*TITLES, None])
    _, texts = read_product_texts(data, ["title", "brand"])
    assert texts[0] == "Orange Juice 12oz Acme"
    assert texts[-1].split() == ["Acme"]


def test_a_missing_column_is_named_with_the_columns_there_are(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    with pytest.raises(InputError, match=r"columns \['colour'\]; found product_id, title, brand"):
        embed_lsa(data, tmp_path / "lsa", dim=4, seed=0, columns=["title", "colour"])
    assert not (tmp_path / "lsa").exists()


def test_a_repeated_product_leaves_no_table_behind(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    pq.write_table(pa.table({"product_id": [1, 1], "title": ["a", "b"]}), data / "products.parquet")
    with pytest.raises(EmbeddingTableError, match="1 appears 2 times"):
        embed_lsa(data, tmp_path / "lsa", dim=4, seed=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_an_output_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    for out in (data, tmp_path):
        with pytest.raises(ValueError, match="would replace the input"):
            embed_lsa(data, out, dim=4, seed=0)
    assert (data / "products.parquet").exists()


def test_folders_with_a_manifest_of_another_kind_are_left_alone(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    features = tmp_path / "runs" / "products"
    features.mkdir(parents=True)
    (features / "manifest.json").write_text('{"dense_columns": []}')
    with pytest.raises(FileExistsError, match="something of another kind"):
        embed_lsa(data, tmp_path / "runs", dim=4, seed=0)
    embed_lsa(data, tmp_path / "lsa", dim=4, seed=0)
    (tmp_path / "lsa" / "products").rename(tmp_path / "lsa" / "mine")
    with pytest.raises(FileExistsError, match="something of another kind"):
        embed_lsa(data, tmp_path / "lsa", dim=4, seed=0)
    assert (features / "manifest.json").exists()
    assert (tmp_path / "lsa" / "mine").exists()


def test_a_half_written_file_is_named(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    path = data / "impressions.parquet"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"impressions\.parquet .* is not a complete Parquet file"):
        embed_lsa(data, tmp_path / "lsa")
    assert not (tmp_path / "lsa").exists()


def test_a_text_outside_all_components_has_zeros_and_no_direction_of_rounding() -> None:
    words = ["bbbb", "cccc", "dddd", "ffff", "gggg", "hhhh", "kkkk"]
    titles = [word for word in words[:4] for _ in range(30)] + words[4:] * 3
    found = lsa_vectors(titles, words, dim=4, seed=0)
    np.testing.assert_allclose(np.linalg.norm(found.queries_QD, axis=1), [1, 1, 1, 1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found.products_ND[-9:], axis=1), 0, atol=1e-6)
