"""EmbeddingTable: lookups against a dictionary, and every way a table can be wrong."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.embedding_table import Coverage, EmbeddingTable, EmbeddingTableError

VECTORS_ND = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0.6, 0.8]], dtype=np.float32)


def write(folder: Path, ids: list, vectors_ND: np.ndarray = VECTORS_ND, **changes) -> EmbeddingTable:
    arguments = {"encoder_id": "by-hand", "kind": "product", "normalised": True} | changes
    return EmbeddingTable.write(folder, ids=pa.array(ids), vectors_ND=vectors_ND, **arguments)


@pytest.fixture
def table(tmp_path: Path) -> EmbeddingTable:
    return write(tmp_path / "table", [30, 10, 20])


def test_row_zero_is_zeros_and_the_vector_of_the_first_id_is_in_row_one(table: EmbeddingTable) -> None:
    assert table.vectors_ND.shape == (4, 4)
    np.testing.assert_array_equal(table.vectors_ND[0], 0)
    np.testing.assert_array_equal(table.vectors_ND[1:], VECTORS_ND)


def test_known_ids_give_their_row_and_unknown_or_null_ids_give_zero(table: EmbeddingTable) -> None:
    rows = table.rows_of(pa.array([20, 99, None, 30]))
    assert rows.dtype == np.int64
    assert rows.tolist() == [3, 0, 0, 1]


def test_coverage_counts_known_and_missing_ids_but_not_nulls(table: EmbeddingTable) -> None:
    coverage = table.coverage(pa.array([10, 10, 99, None]))
    assert coverage == Coverage(known=2, missing=1)
    assert coverage.share == 2 / 3


def test_coverage_of_nothing_is_complete(table: EmbeddingTable) -> None:
    assert table.coverage(pa.array([], type=pa.int64())).share == 1.0


def test_a_saved_table_equals_the_reloaded_one(tmp_path: Path) -> None:
    created = datetime(2026, 1, 2, tzinfo=UTC)
    written = write(tmp_path / "t", ["red soda", "blå läsk"], VECTORS_ND[:2], kind="query", created=created)
    loaded = EmbeddingTable.load(tmp_path / "t")
    assert loaded.manifest == written.manifest
    assert loaded.manifest.created == created
    assert loaded.ids.to_pylist() == ["red soda", "blå läsk"]
    assert isinstance(loaded.vectors_ND, np.memmap)
    np.testing.assert_array_equal(loaded.vectors_ND, written.vectors_ND)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_both_widths_of_float_are_kept_as_they_came(tmp_path: Path, dtype: type) -> None:
    table = write(tmp_path / "t", [1, 2, 3], VECTORS_ND.astype(dtype))
    assert table.vectors_ND.dtype == dtype


def test_the_same_input_gives_the_same_checksums(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", [1, 2, 3]), write(tmp_path / "b", [1, 2, 3])
    assert first.manifest.checksums == second.manifest.checksums


@settings(deadline=None)  # each example writes files
@given(
    ids=st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, min_size=1, max_size=20),
    asked=st.lists(st.integers(-5, 5) | st.none(), max_size=30),
)
def test_lookup_equals_a_dictionary(tmp_path_factory: pytest.TempPathFactory, ids: list, asked: list) -> None:
    asked = asked + ids[:3]
    table = write(
        tmp_path_factory.mktemp("t") / "t", ids, np.ones((len(ids), 4), np.float32), normalised=False
    )
    row_of = {product_id: position + 1 for position, product_id in enumerate(ids)}
    expected = [row_of.get(product_id, 0) for product_id in asked]
    assert table.rows_of(pa.array(asked, type=pa.int64())).tolist() == expected


@pytest.mark.parametrize("as_string", [False, True])
def test_four_hundred_thousand_ids_find_their_own_rows(tmp_path: Path, as_string: bool) -> None:
    ids = pa.array(np.random.default_rng(0).permutation(400_000) * 7)
    ids = ids.cast(pa.string()) if as_string else ids
    vectors_ND = np.ones((400_000, 4), np.float16)
    table = EmbeddingTable.write(
        tmp_path / "t", ids=ids, vectors_ND=vectors_ND, encoder_id="x", kind="product", normalised=False
    )
    np.testing.assert_array_equal(table.rows_of(table.ids), np.arange(1, 400_001))


def test_integer_widths_string_encodings_and_chunks_make_no_difference(tmp_path: Path) -> None:
    numbers = write(tmp_path / "numbers", [1, 2, 3])
    assert numbers.rows_of(pa.array([3], type=pa.int16())).tolist() == [3]
    assert numbers.rows_of(pa.chunked_array([[3], [1]])).tolist() == [3, 1]
    words = write(tmp_path / "words", ["a", "b", "c"])
    assert words.rows_of(pa.array(["c"], type=pa.large_string())).tolist() == [3]
    assert words.rows_of(pa.array(["c"], type=pa.string_view())).tolist() == [3]
    assert words.rows_of(pa.array(["c", "a"]).dictionary_encode()).tolist() == [3, 1]


def test_looking_up_strings_among_integers_says_which_is_which(table: EmbeddingTable) -> None:
    with pytest.raises(EmbeddingTableError, match=r"are int64, but string ids were looked up"):
        table.rows_of(pa.array(["10"]))


def test_ids_beyond_int64_are_refused(table: EmbeddingTable) -> None:
    with pytest.raises(EmbeddingTableError, match="64-bit"):
        table.rows_of(pa.array([2**63], type=pa.uint64()))


def test_an_empty_table_knows_nothing(tmp_path: Path) -> None:
    table = write(tmp_path / "t", [], np.zeros((0, 8), np.float32))
    assert table.rows_of(pa.array([1, 2])).tolist() == [0, 0]


def test_zero_vectors_are_counted(tmp_path: Path) -> None:
    vectors_ND = VECTORS_ND.copy()
    vectors_ND[1] = 0
    assert write(tmp_path / "t", [1, 2, 3], vectors_ND).manifest.zero_vectors == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_names_its_id_and_writes_nothing(tmp_path: Path, bad: float) -> None:
    vectors_ND = VECTORS_ND.copy()
    vectors_ND[2, 1] = bad
    with pytest.raises(EmbeddingTableError, match=r"of id 'c' \(position 2\) holds NaN"):
        write(tmp_path / "t", ["a", "b", "c"], vectors_ND)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_table_that_was_there(table: EmbeddingTable) -> None:
    with pytest.raises(EmbeddingTableError):
        write(table.folder, [1, 2, 3], VECTORS_ND * np.float32(np.nan))
    assert EmbeddingTable.load(table.folder).ids.to_pylist() == [30, 10, 20]


def test_a_second_write_replaces_the_table(table: EmbeddingTable) -> None:
    write(table.folder, [7, 8, 9])
    assert EmbeddingTable.load(table.folder).ids.to_pylist() == [7, 8, 9]
    assert [path.name for path in table.folder.parent.iterdir()] == [table.folder.name]


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ten years of work")
    with pytest.raises(FileExistsError, match="something of another kind"):
        write(tmp_path, [1, 2, 3])
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize(
    "ids, vectors_ND, changes, sentence",
    [
        ([1, 2, 1], VECTORS_ND, {}, r"unique, but 1 appears 2 times \(1 ids are repeated\)"),
        ([1, None, 2], VECTORS_ND, {}, "the one at position 1 is"),
        ([1.5, 2.5, 3.5], VECTORS_ND, {}, "integers or strings, got double"),
        ([1, 2], VECTORS_ND, {}, r"one row for each of the 2 ids, got shape \(3, 4\)"),
        ([1, 2, 3], VECTORS_ND[:, :3], {}, "multiple of 4 from 4 to 1024.* got 3"),
        ([1], np.ones((1, 1028), np.float32), {}, "multiple of 4 from 4 to 1024.* got 1028"),
        ([1, 2, 3], VECTORS_ND.astype(np.float64), {}, "float16 or float32, got float64"),
        ([1, 2, 3], VECTORS_ND * np.float32(2), {}, "that of id 1 has norm 2"),
    ],
    ids=["duplicate", "null", "float id", "row count", "width 3", "width 1028", "float64", "not normalised"],
)
def test_a_table_that_could_not_be_used_is_refused(
    tmp_path: Path, ids: list, vectors_ND: np.ndarray, changes: dict, sentence: str
) -> None:
    with pytest.raises(EmbeddingTableError, match=sentence):
        write(tmp_path / "t", ids, vectors_ND, **changes)
    assert not (tmp_path / "t").exists()


def test_a_changed_byte_is_found_and_the_file_named(table: EmbeddingTable) -> None:
    content = bytearray((table.folder / "vectors.npy").read_bytes())
    content[-1] ^= 1
    (table.folder / "vectors.npy").write_bytes(content)
    with pytest.raises(EmbeddingTableError, match=r"vectors\.npy has changed since it was written"):
        EmbeddingTable.load(table.folder)


@pytest.mark.parametrize("name", ["vectors.npy", "ids.parquet"])
@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_file_is_found_even_without_checksums(
    table: EmbeddingTable, name: str, verify: bool
) -> None:
    path = table.folder / name
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(EmbeddingTableError, match=name):
        EmbeddingTable.load(table.folder, verify=verify)


@pytest.mark.parametrize("name", ["vectors.npy", "ids.parquet", "manifest.json"])
def test_a_missing_file_is_named(table: EmbeddingTable, name: str) -> None:
    (table.folder / name).unlink()
    with pytest.raises(EmbeddingTableError, match=name):
        EmbeddingTable.load(table.folder)


def test_a_manifest_that_disagrees_with_the_vectors_is_found(table: EmbeddingTable) -> None:
    path = table.folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dim": 8}))
    with pytest.raises(
        EmbeddingTableError, match=r"float32 of shape \(4, 8\).* got float32 of shape \(4, 4\)"
    ):
        EmbeddingTable.load(table.folder)


@pytest.mark.parametrize("content", ["{", '{"format": 2}', "[]"])
def test_a_broken_manifest_is_named(table: EmbeddingTable, content: str) -> None:
    (table.folder / "manifest.json").write_text(content)
    with pytest.raises(EmbeddingTableError, match=r"manifest\.json"):
        EmbeddingTable.load(table.folder)


def test_a_manifest_of_another_artifact_does_not_make_a_folder_a_table(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"dense_columns": []}')
    with pytest.raises(FileExistsError, match="something of another kind"):
        EmbeddingTable.write(
            tmp_path,
            ids=pa.array([1]),
            vectors_ND=np.ones((1, 4), np.float32),
            encoder_id="e",
            kind="product",
            normalised=False,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
