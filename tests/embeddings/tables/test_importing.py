"""Importing vectors: what comes in is what the table holds, and every mismatch names the file and the id."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embeddings.embedding_table import Coverage, EmbeddingTable, EmbeddingTableError
from embeddings.tables.importing import coverage_of_data, import_vectors

VECTORS_ND = np.array([[3, 4, 0, 0], [0, 0, 0, 2], [0, 0, 0, 0]], np.float32)


def parquet(path: Path, **columns) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def importing(vectors: Path, folder: Path, **changes) -> EmbeddingTable:
    return import_vectors(vectors, folder, **({"kind": "product", "encoder_id": "theirs"} | changes))


def lists(list_type: pa.DataType, rows: list | None = None) -> pa.Array:
    return pa.array(VECTORS_ND.tolist() if rows is None else rows, type=list_type)


@pytest.mark.parametrize(
    "list_type, dtype",
    [
        (pa.list_(pa.float32()), "float32"),
        (pa.list_(pa.float64()), "float32"),
        (pa.large_list(pa.float32()), "float32"),
        (pa.list_(pa.float32(), 4), "float32"),
        (pa.list_(pa.float16(), 4), "float16"),
    ],
    ids=str,
)
def test_every_kind_of_list_gives_the_same_vectors(
    tmp_path: Path, list_type: pa.DataType, dtype: str
) -> None:
    file = parquet(tmp_path / "v.parquet", product_id=["a", "b", "c"], vector=lists(list_type))
    table = importing(file, tmp_path / "t")
    assert (table.manifest.dtype, table.manifest.encoder_id) == (dtype, "theirs")
    assert table.ids.to_pylist() == ["a", "b", "c"]
    np.testing.assert_array_equal(table.vectors_ND[1:], VECTORS_ND)


def test_many_row_groups_keep_every_vector_with_its_id(tmp_path: Path) -> None:
    vectors_ND = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
    columns = {"id": np.arange(1000), "vector": lists(pa.list_(pa.float32()), vectors_ND.tolist())}
    pq.write_table(pa.table(columns), tmp_path / "v.parquet", row_group_size=77)
    table = importing(tmp_path / "v.parquet", tmp_path / "t")
    np.testing.assert_array_equal(
        table.vectors_ND[table.rows_of(pa.array([999, 500, 0]))], vectors_ND[[999, 500, 0]]
    )


def vectors_file(folder: Path, kind: str, vectors_ND: np.ndarray) -> tuple[Path, dict]:
    """The same vectors, of ids a, b, c, as a matrix or as a column of lists."""
    if kind == "npy":
        np.save(folder / "v.npy", vectors_ND)
        (folder / "ids.txt").write_text("a\nb\nc\n", encoding="utf-8")
        return folder / "v.npy", {"ids": folder / "ids.txt"}
    columns = {"id": ["a", "b", "c"], "vector": lists(pa.list_(pa.float64()), vectors_ND.tolist())}
    return parquet(folder / "v.parquet", **columns), {}


@pytest.mark.parametrize("kind", ["npy", "parquet"])
@pytest.mark.parametrize("scale", [1e60, 1e-60, 1e200, 1e-200, 1e-310])
def test_the_scale_of_float64_vectors_does_not_change_their_directions(
    tmp_path: Path, kind: str, scale: float
) -> None:
    file, options = vectors_file(tmp_path, kind, VECTORS_ND.astype(np.float64) * scale)
    table = importing(file, tmp_path / "t", normalise=True, **options)
    assert (table.manifest.dtype, table.manifest.zero_vectors) == ("float32", 1)
    np.testing.assert_allclose(
        table.vectors_ND[1:], [[0.6, 0.8, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], rtol=1e-6
    )


@pytest.mark.parametrize("kind", ["npy", "parquet"])
@pytest.mark.parametrize("scale", [1e60, 1e-60, 1e200, 1e-200, 1e-44])
def test_a_vector_that_float32_cannot_hold_is_named(tmp_path: Path, kind: str, scale: float) -> None:
    vectors_ND = VECTORS_ND.astype(np.float64)
    vectors_ND[1] *= scale
    file, options = vectors_file(tmp_path, kind, vectors_ND)
    with pytest.raises(
        EmbeddingTableError, match=r"id 'b' \(row 1\) has norm .*e[+-]\d+, which float32 cannot hold; scale"
    ):
        importing(file, tmp_path / "t", **options)
    assert not (tmp_path / "t").exists()


def test_a_byte_order_mark_and_a_line_separator_are_no_part_and_no_end_of_an_id(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", VECTORS_ND)
    (tmp_path / "ids.txt").write_bytes("\ufeffa\u2028b\r\nc\x0cd\x85\ne\n".encode())
    table = importing(tmp_path / "v.npy", tmp_path / "t", ids=tmp_path / "ids.txt")
    assert table.ids.to_pylist() == ["a\u2028b", "c\x0cd\x85", "e"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a\n\nc\n", "null or blank, but the one at position 1 is"),
        ("a\n\u3000\nc\n".encode(), "null or blank, but the one at position 1 is"),
        ("a\nb\nc".encode("utf-16"), "is not UTF-8 text .* save it as UTF-8"),
    ],
)
def test_a_blank_line_and_another_encoding_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    np.save(tmp_path / "v.npy", VECTORS_ND)
    (tmp_path / "ids.txt").write_bytes(content)
    with pytest.raises(EmbeddingTableError, match=said):
        importing(tmp_path / "v.npy", tmp_path / "t", ids=tmp_path / "ids.txt")


@pytest.mark.parametrize("which", ["vectors", "ids"])
def test_an_archive_named_npy_is_refused_by_what_it_is(tmp_path: Path, which: str) -> None:
    np.save(tmp_path / "vectors.npy", VECTORS_ND)
    np.save(tmp_path / "ids.npy", np.arange(3))
    with (tmp_path / f"{which}.npy").open("wb") as file:
        np.savez(file, first=VECTORS_ND, second=np.arange(3))
    with pytest.raises(
        EmbeddingTableError, match=rf"{which}\.npy is an \.npz archive of first, second.* numpy\.save"
    ):
        importing(tmp_path / "vectors.npy", tmp_path / "t", ids=tmp_path / "ids.npy")


def test_normalised_vectors_have_norm_one_and_zeros_stay_zeros(tmp_path: Path) -> None:
    file = parquet(tmp_path / "v.parquet", id=[1, 2, 3], vector=lists(pa.list_(pa.float32())))
    table = importing(file, tmp_path / "t", normalise=True)
    expected_ND = [[0, 0, 0, 0], [3 / 5, 4 / 5, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    np.testing.assert_allclose(table.vectors_ND, expected_ND, rtol=1e-6)
    assert table.manifest.normalised
    assert table.manifest.zero_vectors == 1


@pytest.mark.parametrize("scale, normalised", [(1, True), (2, False), (0, False)])
def test_without_normalising_the_manifest_says_what_was_found(
    tmp_path: Path, scale: int, normalised: bool
) -> None:
    np.save(tmp_path / "v.npy", np.eye(4, dtype=np.float32) * scale)
    np.save(tmp_path / "ids.npy", np.arange(4))
    table = importing(tmp_path / "v.npy", tmp_path / "t", ids=tmp_path / "ids.npy")
    assert table.manifest.normalised is normalised


@pytest.mark.parametrize("suffix", ["npy", "txt", "parquet"])
def test_ids_of_a_matrix_come_from_any_of_three_files(tmp_path: Path, suffix: str) -> None:
    ids, path = ["a b", "c", "d"], tmp_path / f"ids.{suffix}"
    if suffix == "npy":
        np.save(path, np.array(ids))
    elif suffix == "txt":
        path.write_text("\n".join(ids) + "\n", encoding="utf-8")
    else:
        parquet(path, query=ids)
    np.save(tmp_path / "v.npy", VECTORS_ND.astype(np.float64))
    table = importing(tmp_path / "v.npy", tmp_path / "t", ids=path, kind="query")
    assert table.ids.to_pylist() == ids
    assert table.manifest.dtype == "float32"


@pytest.mark.parametrize(
    "rows, sentence",
    [
        ([[1.0] * 4, [1.0] * 3], r"id 8 \(row 1\) has 3"),
        ([[1.0] * 4, None], r"id 8 \(row 1\) is null"),
        ([None, [1.0] * 4], r"id 7 \(row 0\) is null"),
        ([[1.0, 1, 1, 1], [1.0, None, 1, 1]], r"id 8 \(position 1\) holds NaN"),
    ],
    ids=["short", "null", "null first", "null inside"],
)
def test_a_list_that_is_no_vector_names_its_id(tmp_path: Path, rows: list, sentence: str) -> None:
    file = parquet(tmp_path / "v.parquet", id=[7, 8], vector=lists(pa.list_(pa.float32()), rows))
    with pytest.raises(EmbeddingTableError, match=sentence):
        importing(file, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_a_null_fixed_size_list_names_its_id(tmp_path: Path) -> None:
    file = parquet(
        tmp_path / "v.parquet", id=[7, 8], vector=lists(pa.list_(pa.float32(), 4), [[1.0] * 4, None])
    )
    with pytest.raises(EmbeddingTableError, match=r"id 8 \(row 1\) is null"):
        importing(file, tmp_path / "t")


def test_missing_or_ambiguous_columns_are_named_with_the_option_that_helps(tmp_path: Path) -> None:
    vector = lists(pa.list_(pa.float32()))
    file = parquet(tmp_path / "v.parquet", sku=[1, 2, 3], image=vector, text=vector)
    with pytest.raises(EmbeddingTableError, match=r"it has sku, image, text; .*--id-column"):
        importing(file, tmp_path / "t")
    with pytest.raises(EmbeddingTableError, match=r"it has image, text; .*--vector-column"):
        importing(file, tmp_path / "t", id_column="sku")
    table = importing(file, tmp_path / "t", id_column="sku", vector_column="text")
    assert table.ids.to_pylist() == [1, 2, 3]


def test_files_that_cannot_be_vectors_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but not really")
    (tmp_path / "broken.npy").write_bytes(b"nothing")
    np.save(tmp_path / "v.npy", VECTORS_ND)
    np.save(tmp_path / "flat.npy", VECTORS_ND[0])
    np.save(tmp_path / "two.npy", np.arange(2))
    cases = {
        "broken.parquet is not a readable Parquet": {"vectors": "broken.parquet"},
        "broken.npy is not a readable": {"vectors": "broken.npy", "ids": tmp_path / "two.npy"},
        "v.npy holds no ids": {"vectors": "v.npy"},
        "must be a matrix": {"vectors": "flat.npy", "ids": tmp_path / "two.npy"},
        "one row for each of the 2 ids": {"vectors": "v.npy", "ids": tmp_path / "two.npy"},
        r"\.parquet or \.npy": {"vectors": "v.csv"},
    }
    for sentence, arguments in cases.items():
        vectors = tmp_path / str(arguments.pop("vectors"))
        with pytest.raises(EmbeddingTableError, match=sentence):
            importing(vectors, tmp_path / "t", **arguments)


def test_coverage_counts_rows_of_every_table_that_names_products(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    parquet(data / "products.parquet", product_id=[1, 2, 3, 4])
    (data / "impressions").mkdir()
    parquet(data / "impressions" / "0.parquet", product_id=[1, 1, 4], query=["x", None, "y"])
    np.save(tmp_path / "v.npy", VECTORS_ND)
    np.save(tmp_path / "ids.npy", np.array([1, 2, 3]))
    (tmp_path / "queries.txt").write_text("x\nz\nw\n")
    products = importing(tmp_path / "v.npy", tmp_path / "p", ids=tmp_path / "ids.npy")
    assert coverage_of_data(products, data) == {
        "products.product_id": Coverage(known=3, missing=1),
        "impressions.product_id": Coverage(known=2, missing=1),
    }
    queries = importing(tmp_path / "v.npy", tmp_path / "q", ids=tmp_path / "queries.txt", kind="query")
    assert coverage_of_data(queries, data) == {"impressions.query": Coverage(known=1, missing=1)}
