"""Blank texts and ids are missing for encoders, too."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embeddings.catalog.inputs import read_distinct_queries, read_product_texts
from embeddings.catalog.products import CatalogError, ProductCatalog
from embeddings.embedding_table import EmbeddingTable
from embeddings.relevance.grades import read_grades

BLANKS = ["", " ", "\u3000", "\t\n"]


def write(folder: Path, **tables: dict[str, list]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder


def test_blank_queries_are_no_queries(tmp_path: Path) -> None:
    data = write(
        tmp_path / "data", impressions={"query": ["tea", *BLANKS, None]}, relevance={"query": ["", "oat"]}
    )
    assert read_distinct_queries(data).to_pylist() == ["oat", "tea"]


def test_blank_titles_aisles_and_images_are_missing(tmp_path: Path) -> None:
    columns = {"product_id": range(4), "title": BLANKS, "aisle": BLANKS, "image": BLANKS}
    catalog = ProductCatalog.open(write(tmp_path / "data", products=columns))
    assert (catalog.titles, catalog.aisles, catalog.image_paths) == ([""] * 4, [""] * 4, [None] * 4)
    assert catalog.summary().without_both == 4


def test_a_blank_product_id_is_refused_like_a_null(tmp_path: Path) -> None:
    data = write(tmp_path / "data", products={"product_id": ["a", "\u3000"], "title": ["x", "y"]})
    with pytest.raises(CatalogError, match="null or blank, but that of row 1 is"):
        ProductCatalog.open(data)
    ids, _ = read_product_texts(data, ["title"])
    assert ids.to_pylist() == ["a", None]


def test_grades_of_blank_queries_and_products_are_set_aside(tmp_path: Path) -> None:
    relevance = {
        "query": ["tea", *BLANKS, "tea"],
        "product_id": ["a"] * 5 + ["\u3000"],
        "grade": [2] * 6,
        "source": ["human"] * 6,
    }
    data = write(
        tmp_path / "data", products={"product_id": ["a", "b"], "title": ["x", "y"]}, relevance=relevance
    )
    grades = read_grades(data)
    assert grades.queries.to_pylist() == ["tea"]
    assert (len(grades), grades.report.null_rows) == (1, 5)


def test_a_blank_id_has_no_vector_and_is_not_counted(tmp_path: Path) -> None:
    table = EmbeddingTable.write(
        tmp_path / "table",
        ids=pa.array(["tea", ""]),
        vectors_ND=np.eye(2, 4, dtype=np.float32),
        encoder_id="by hand",
        kind="query",
        normalised=True,
    )
    asked = pa.array(["tea", *BLANKS, None, "oat"])
    assert table.rows_of(asked).tolist() == [1, 0, 0, 0, 0, 0, 0]
    coverage = table.coverage(asked)
    assert (coverage.known, coverage.missing) == (1, 1)
