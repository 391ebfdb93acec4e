"""Grades written as tables, and read back."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from embeddings.relevance.build_tuples import Grades, read_grades

Row = tuple[str | None, int | None, int | None, str | None]


def write_data(
    folder: Path, rows: list[Row], *, products: list | None = None, grade_type: pa.DataType | None = None
) -> Path:
    folder.mkdir(exist_ok=True)
    products = sorted({row[1] for row in rows if row[1] is not None}) if products is None else products
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    product_type = pa.string() if products and isinstance(products[0], str) else pa.int64()
    ids = pa.array(products, product_type)
    pq.write_table(pa.table({"product_id": ids}), folder / "products.parquet")
    types = (pa.string(), product_type, grade_type or pa.int8(), pa.string())
    names = ("query", "product_id", "grade", "source")
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    pq.write_table(pa.table(dict(zip(names, arrays, strict=True))), folder / "relevance.parquet")
    return folder


def small_grades(folder: Path, *, products: int = 12) -> Grades:
    rows: list[Row] = [
        (f"q{query}", product, (product * 7 + query * 5) % 3, "llm")
        for product in range(products)
        for query in range(product % 4, 30, 2)
    ]
    return read_grades(write_data(folder, rows))
