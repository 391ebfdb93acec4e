"""Rows to score, as files bring them."""

import pyarrow as pa
import pytest

from experiments.scoring.rows import ids_like, read_rows


def test_ids_and_texts_of_csv_stay_as_they_are_written(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("query,product_id,price\n007,0012,1.5\n1e3,,2\n")
    rows = read_rows(path, needs=("query",))
    assert rows["query"].to_pylist() == ["007", "1e3"]
    assert rows["price"].to_pylist() == [1.5, 2.0]
    assert ids_like(rows["product_id"], pa.string(), name="product_id").to_pylist() == ["0012", None]
    assert ids_like(rows["product_id"], pa.int64(), name="product_id").to_pylist() == [12, None]
    floats = pa.array(["12.0", None, "13"])
    assert ids_like(floats, pa.int64(), name="product_id").to_pylist() == [12, None, 13]
    assert ids_like(floats, pa.string(), name="product_id").to_pylist() == ["12.0", None, "13"]
    assert ids_like(pa.array([12.0, None]), pa.int64(), name="product_id").to_pylist() == [12, None]
    with pytest.raises(ValueError, match="query is string here, but must be int64 as in the data"):
        ids_like(rows["query"], pa.int64(), name="query")


def test_a_file_with_other_separators_is_refused_with_what_its_ending_means(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("query,price\nmilk;1,50\nbread;0;1\n")
    with pytest.raises(ValueError, match=r"cannot be read.*\.csv has commas between fields"):
        read_rows(path, needs=("query",))
    path.write_text("query;price\nmilk;1\n")
    with pytest.raises(ValueError, match=r"needs the column query; it has query;price\. \.csv has commas"):
        read_rows(path, needs=("query",))
