"""What encoders read of the four input tables.

Plain Arrow reading of `NAME.parquet` or the folder `NAME/`; the full validation lives in `features`.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from embeddings.embedding_table import EmbeddingTableError

BATCH_ROWS = 1 << 20


def read_product_texts(data: Path, columns: Sequence[str]) -> tuple[pa.Array, list[str]]:
    """Ids of products and the text of each: its `columns`, joined by spaces, nulls left out."""
    table = open_input_table(data, "products")
    if table is None:
        raise EmbeddingTableError(
            f"{data} has no products.parquet and no products/; every data set needs one"
        )
    missing = [name for name in ("product_id", *columns) if name not in table.schema.names]
    if missing:
        raise EmbeddingTableError(
            f"products of {data} must have the columns {missing}; they have {', '.join(table.schema.names)}"
        )
    content = table.to_table(columns=["product_id", *columns])
    texts = [pc.fill_null(content.column(name).cast(pa.string()), "") for name in columns]
    joined = pc.binary_join_element_wise(*texts, " ")
    return content.column("product_id").combine_chunks(), joined.to_pylist()


def read_distinct_queries(data: Path) -> pa.Array:
    """Distinct non-null queries of impressions and relevance, sorted; empty when there are none."""
    found: pa.Array = pa.array([], type=pa.string())
    for name in ("impressions", "relevance"):
        table = open_input_table(data, name)
        if table is None or "query" not in table.schema.names:
            continue
        for batch in table.to_batches(columns=["query"]):
            column = batch.column("query")
            if pa.types.is_null(column.type):
                continue
            distinct = column.cast(pa.string()).unique().drop_null()
            new = distinct.filter(pc.invert(pc.is_in(distinct, value_set=found)))
            if len(new):
                found = pa.concat_arrays([found, new])
    return found.take(pc.sort_indices(found))


def open_input_table(data: Path, name: str) -> ds.Dataset | None:
    """The table as one file or a folder of files; None when it is absent or the folder is empty.

    Raises:
        EmbeddingTableError: a file is not readable Parquet.
    """
    file, folder = data / f"{name}.parquet", data / name
    parts = [file] if file.is_file() else sorted(folder.glob("*.parquet")) if folder.is_dir() else []
    for part in parts:
        try:
            pq.read_schema(part)
        except pa.ArrowInvalid:
            raise EmbeddingTableError(
                f"{part} is not a readable Parquet file: half-written or damaged; write it again"
            ) from None
    return ds.dataset(parts, format="parquet") if parts else None
