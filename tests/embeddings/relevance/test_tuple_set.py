"""Tuples as a folder: the same for the same seed, written whole or not at all, checked when opened."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from embeddings.relevance.build_tuples import RelevanceError, TupleConfig, TupleSet, build_tuples
from embeddings.relevance.tuple_set import RowFile
from tests.embeddings.small_grades import small_grades

AISLES = ["Snacks", "Pets", "Baby"] * 4


def test_other_products_and_seeds(tmp_path: Path) -> None:
    """A product's positives depend on its own grades and the seed; its proxies also on the donors."""
    grades = small_grades(tmp_path)
    config = TupleConfig(max_positives=4)
    first = build_tuples(grades, AISLES, tmp_path / "a", config=config, seed=0)
    again = build_tuples(grades, AISLES, tmp_path / "b", config=config, seed=0)
    other = build_tuples(grades, AISLES, tmp_path / "c", config=config, seed=1)
    alone = np.arange(12) == 5
    single = build_tuples(grades, AISLES, tmp_path / "d", config=config, seed=0, product_mask=alone)
    np.testing.assert_array_equal(first.tuples_NC, again.tuples_NC)
    assert first.report.checksums == again.report.checksums
    assert not np.array_equal(first.tuples_NC, other.tuples_NC)
    of_five = first.tuples_NC[first.tuples_NC[:, 0] == 5]
    np.testing.assert_array_equal(single.tuples_NC[:, 1], of_five[:, 1])


def test_tuples_open_memory_mapped_and_are_checked(tmp_path: Path) -> None:
    grades = small_grades(tmp_path)
    seen: list[tuple[str, int, int]] = []
    build_tuples(
        grades, AISLES, tmp_path / "t", config=TupleConfig(), seed=0, progress=lambda *c: seen.append(c)
    )
    assert (seen[0], seen[-1]) == (("tuples", 0, 12), ("tuples", 12, 12))
    opened = TupleSet.open(tmp_path / "t", product_ids=grades.product_ids)
    assert isinstance(opened.tuples_NC, np.memmap)
    assert opened.tuples_NC.shape == (len(opened), 12)
    assert opened.grades_NC.shape == (len(opened), 11)
    assert opened.queries.equals(grades.queries)
    with pytest.raises(RelevanceError, match=r"not those of .*, or in another order"):
        TupleSet.open(tmp_path / "t", product_ids=grades.product_ids[::-1])
    path = tmp_path / "t" / "tuples.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(RelevanceError, match=r"tuples\.npy has changed"):
        TupleSet.open(tmp_path / "t")
    path.unlink()
    with pytest.raises(RelevanceError, match=r"tuples\.npy is missing"):
        TupleSet.open(tmp_path / "t", verify=False)
    with pytest.raises(RelevanceError, match="holds no tuples"):
        TupleSet.open(tmp_path)


def test_only_tuples_are_replaced_and_an_error_leaves_the_old_ones(tmp_path: Path) -> None:
    grades = small_grades(tmp_path)
    with pytest.raises(FileExistsError, match="something of another kind"):
        build_tuples(grades, AISLES, tmp_path, config=TupleConfig(), seed=0)
    with pytest.raises(FileExistsError, match="is a file"):
        build_tuples(grades, AISLES, tmp_path / "products.parquet", config=TupleConfig(), seed=0)
    old = build_tuples(grades, AISLES, tmp_path / "t", config=TupleConfig(), seed=0)
    before = old.tuples_NC.copy()
    nobody = np.zeros(12, bool)
    with pytest.raises(RelevanceError, match="no tuple can be made"):
        build_tuples(grades, AISLES, tmp_path / "t", config=TupleConfig(), seed=0, product_mask=nobody)
    np.testing.assert_array_equal(TupleSet.open(tmp_path / "t").tuples_NC, before)
    build_tuples(grades, AISLES, tmp_path / "t", config=TupleConfig(negatives=2), seed=0)
    assert TupleSet.open(tmp_path / "t").tuples_NC.shape[1] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["products.parquet", "relevance.parquet", "t"]


def test_lengths_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    grades = small_grades(tmp_path)
    with pytest.raises(RelevanceError, match="one entry for each of 12 products, got 1"):
        build_tuples(grades, ["Snacks"], tmp_path / "t", config=TupleConfig(), seed=0)
    with pytest.raises(RelevanceError, match=r"query_mask must be 30 booleans, got int64 of shape \(30,\)"):
        build_tuples(
            grades,
            AISLES,
            tmp_path / "t",
            config=TupleConfig(),
            seed=0,
            query_mask=np.ones(30, np.int64),
        )


@pytest.mark.parametrize(
    "wrong", [{"max_positives": 0}, {"negatives": 0}, {"short_of_high": "x"}, {"positives": 1}]
)
def test_nonsense_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        TupleConfig(**wrong)


@given(st.lists(st.integers(0, 5), max_size=6))
def test_a_row_file_equals_saving_all_rows_at_once(pieces: list[int]) -> None:
    rows = np.arange(3 * sum(pieces), dtype=np.int64).reshape(-1, 3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        with RowFile(path, 3, np.dtype(np.int32)) as file:
            for part in np.split(rows, np.cumsum(pieces)):
                file.append(part)
        np.save(Path(folder) / "whole.npy", rows.astype(np.int32))
        loaded = np.load(path)
        assert loaded.dtype == np.int32
        np.testing.assert_array_equal(loaded, rows)
        assert path.read_bytes() == (Path(folder) / "whole.npy").read_bytes()
