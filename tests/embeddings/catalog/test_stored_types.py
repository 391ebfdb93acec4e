"""Encoders read the same ids, texts, queries and grades, however the tables are stored."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embeddings.catalog.inputs import read_distinct_queries, read_product_texts
from embeddings.catalog.products import ProductCatalog
from embeddings.embedding_table import EmbeddingTable
from embeddings.relevance.grades import read_grades
from embeddings.tables.importing import coverage_of_data
from tests.embeddings.small_catalog import write_small_catalog
from tests.features.stored_types import write_as_others_would


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_catalog(tmp_path_factory.mktemp("plain") / "data", without_image=range(16, 24))


@pytest.mark.parametrize("draw", range(6))
def test_every_reader_of_encoders_gives_the_plain_values(plain: Path, tmp_path: Path, draw: int) -> None:
    tables = {name: pq.read_table(plain / f"{name}.parquet") for name in ("products", "relevance")}
    data = write_as_others_would(tmp_path / "data", tables, random.Random(draw))
    (data / "images").symlink_to(plain / "images")
    found, expected = ProductCatalog.open(data), ProductCatalog.open(plain)
    assert found.ids == expected.ids
    assert found.titles == expected.titles
    assert found.aisles == expected.aisles
    assert [path and path.name for path in found.image_paths] == [
        path and path.name for path in expected.image_paths
    ]
    for one, other in zip(
        read_product_texts(data, ["title"]), read_product_texts(plain, ["title"]), strict=True
    ):
        assert one == other
    assert read_distinct_queries(data) == read_distinct_queries(plain)
    grades, plain_grades = read_grades(data), read_grades(plain)
    assert grades.queries == plain_grades.queries
    assert grades.product_ids == plain_grades.product_ids
    np.testing.assert_array_equal(grades.grade_G, plain_grades.grade_G)
    vectors = EmbeddingTable.write(
        tmp_path / "table",
        ids=found.ids,
        vectors_ND=np.ones((len(found), 4), np.float32),
        encoder_id="ones",
        kind="product",
        normalised=False,
    )
    assert {one.missing for one in coverage_of_data(vectors, data).values()} == {0}


def test_ids_beyond_the_first_files_width_are_read(tmp_path: Path) -> None:
    (tmp_path / "products").mkdir()
    large = 2**40
    parts = (
        {"product_id": pa.array([1, 2], pa.int32()), "title": ["a", "b"]},
        {"product_id": [3, large], "title": ["c", "d"], "aisle": ["tea", "tea"], "image": ["3.png", None]},
    )
    for number, columns in enumerate(parts):
        pq.write_table(pa.table(columns), tmp_path / "products" / f"{number}.parquet")
    catalog = ProductCatalog.open(tmp_path)
    assert catalog.ids.to_pylist() == [1, 2, 3, large]
    assert catalog.aisles == ["", "", "tea", "tea"]
    assert [path and path.name for path in catalog.image_paths] == [None, None, "3.png", None]
