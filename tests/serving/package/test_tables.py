"""Tables as mapped files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from serving.package.tables import (
    TableDtype,
    TableError,
    check_rows,
    open_table,
    quantise_rows,
    scale_path,
    write_table,
    zero_rows,
)

FLOATS = st.floats(-100, 100, width=32, allow_subnormal=False)
SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 9))


def table(rows: int = 50, dim: int = 8) -> np.ndarray:
    table_MD = np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float32)
    table_MD[0] = 0
    return table_MD


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 2e-3), ("int8", 2e-2)])
def test_a_table_comes_back_as_it_was_written(dtype: TableDtype, tolerance: float, tmp_path: Path) -> None:
    expected_MD = table()
    files = write_table(tmp_path / "t.npy", expected_MD, dtype=dtype)
    found = open_table(tmp_path / "t.npy")
    assert (found.rows, found.dim, found.dtype) == (50, 8, dtype)
    assert sorted(tmp_path.iterdir()) == sorted(files)
    np.testing.assert_allclose(found.lookup(range(50)), expected_MD, atol=tolerance)
    assert not found.lookup([0]).any()


def test_rows_begin_at_a_page_and_numpy_reads_the_file(tmp_path: Path) -> None:
    write_table(tmp_path / "t.npy", table(), dtype="float16")
    assert open_table(tmp_path / "t.npy").values_MD.data_ptr() % 4096 == 0
    np.testing.assert_array_equal(np.load(tmp_path / "t.npy"), table().astype(np.float16))


def test_a_mapped_file_larger_than_one_piece_is_converted_in_pieces(tmp_path: Path) -> None:
    write_table(tmp_path / "all.npy", table(40_000, 4), dtype="float32")
    mapped = np.load(tmp_path / "all.npy", mmap_mode="r")
    write_table(tmp_path / "half.npy", mapped, dtype="float16")
    np.testing.assert_array_equal(np.load(tmp_path / "half.npy"), mapped.astype(np.float16))


def test_an_empty_table_is_a_table(tmp_path: Path) -> None:
    write_table(tmp_path / "t.npy", np.zeros((1, 8), np.float32), dtype="int8")
    assert open_table(tmp_path / "t.npy").lookup([]).shape == (0, 8)


def test_writing_to_a_mapped_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    write_table(tmp_path / "t.npy", table(), dtype="float32")
    open_table(tmp_path / "t.npy").values_MD[3] = 9
    np.testing.assert_array_equal(np.load(tmp_path / "t.npy"), table())


@given(arrays.arrays(np.float32, SHAPES, elements=FLOATS))
def test_no_number_is_off_by_more_than_half_a_step(array_CD: np.ndarray) -> None:
    steps_CD, scales_C2 = quantise_rows(array_CD)
    restored_CD = steps_CD * scales_C2[:, :1] + scales_C2[:, 1:]
    rounding = 1e-6 * np.abs(array_CD).max() + 1e-37
    assert (np.abs(restored_CD - array_CD) <= scales_C2[:, :1] / 2 + rounding).all()


def test_a_constant_row_is_kept_exactly_in_8_bits() -> None:
    steps_CD, scales_C2 = quantise_rows(np.array([[0, 0], [-3, -3]], np.float32))
    assert not steps_CD.any()
    assert scales_C2.tolist() == [[0, 0], [0, -3]]


def test_rows_of_zeros_are_found() -> None:
    table_MD = table(40_000, 4)
    table_MD[20_001] = 0
    assert np.flatnonzero(zero_rows(table_MD)).tolist() == [0, 20_001]


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "float32"), (np.inf, "int8"), (70_000, "float16")])
def test_a_number_that_is_not_finite_is_refused_and_nothing_is_left(
    value: float, dtype: TableDtype, tmp_path: Path
) -> None:
    table_MD = table()
    table_MD[17, 2] = value
    with pytest.raises(TableError, match=r"t\.npy: row 17 .* not finite"):
        write_table(tmp_path / "t.npy", table_MD, dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_a_table_has_two_dimensions(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"two dimensions, got shape \(8,\)"):
        write_table(tmp_path / "t.npy", np.zeros(8), dtype="float16")


def test_a_table_that_is_no_longer_quantised_has_no_scales(tmp_path: Path) -> None:
    for dtype in ("int8", "float16"):
        write_table(tmp_path / "t.npy", table(), dtype=dtype)
    assert not scale_path(tmp_path / "t.npy").exists()


@pytest.mark.parametrize("kept", [0, 60, 4095, 4096, 4500])
def test_a_truncated_file_is_refused_by_name(kept: int, tmp_path: Path) -> None:
    write_table(tmp_path / "t.npy", table(), dtype="float16")
    content = (tmp_path / "t.npy").read_bytes()
    (tmp_path / "t.npy").write_bytes(content[:kept])
    with pytest.raises(TableError, match=r"t\.npy is truncated"):
        open_table(tmp_path / "t.npy")


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"t\.npy is missing"):
        open_table(tmp_path / "t.npy")
    write_table(tmp_path / "t.npy", table(), dtype="int8")
    scale_path(tmp_path / "t.npy").unlink()
    with pytest.raises(TableError, match=r"t\.scale\.npy is missing"):
        open_table(tmp_path / "t.npy")


@pytest.mark.parametrize("array", [np.zeros(3, np.float32), np.zeros((3, 4), np.int64)])
def test_an_array_of_another_kind_is_no_table(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", array)
    with pytest.raises(TableError, match=r"t\.npy must be a table"):
        open_table(tmp_path / "t.npy")


def test_scales_of_another_table_are_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "t.npy", table(50), dtype="int8")
    write_table(tmp_path / "other.npy", table(49), dtype="int8")
    scale_path(tmp_path / "other.npy").replace(scale_path(tmp_path / "t.npy"))
    with pytest.raises(TableError, match=r"t\.scale\.npy must hold float32 of shape \(50, 2\)"):
        open_table(tmp_path / "t.npy")


@pytest.mark.parametrize("row", [-1, 50, 2**40])
def test_a_row_outside_of_the_table_is_refused(row: int, tmp_path: Path) -> None:
    write_table(tmp_path / "t.npy", table(), dtype="float16")
    with pytest.raises(TableError, match=rf"must lie in 0 to 49, got {row}"):
        open_table(tmp_path / "t.npy").lookup([3, row])
    with pytest.raises(TableError, match="rows of brands"):
        check_rows("brands", np.array([row]), 50)


def test_two_openings_share_pages(tmp_path: Path) -> None:
    write_table(tmp_path / "t.npy", table(), dtype="float16")
    first, second = open_table(tmp_path / "t.npy"), open_table(tmp_path / "t.npy")
    with (tmp_path / "t.npy").open("r+b") as file:  # what one page cache shows to both
        file.seek(4096)
        file.write(np.full(8, 2, np.float16).tobytes())
    assert first.lookup([0]).tolist() == second.lookup([0]).tolist() == [[2] * 8]
    assert torch.equal(first.values_MD, second.values_MD)
