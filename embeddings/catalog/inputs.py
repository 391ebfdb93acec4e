"""What encoders read of the input tables as texts: those of products, and the queries."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from features.inputs.blanks import without_blanks
from features.inputs.tables import find_table, open_table


def read_product_texts(data: Path, columns: Sequence[str]) -> tuple[pa.Array, list[str]]:
    """Ids of products, null for blank ones, and the text of each: its `columns`, joined by spaces.

    Raises:
        InputError: there are no products, or not with these columns.
    """
    names = ["product_id", *columns]
    table = open_table(data, "products", names)
    content = table.to_table(columns=names)
    texts = [pc.fill_null(content.column(name).cast(pa.string()), "") for name in columns]
    joined = pc.binary_join_element_wise(*texts, " ")
    return without_blanks(content.column("product_id").combine_chunks()), joined.to_pylist()


def read_distinct_queries(data: Path) -> pa.Array:
    """Distinct queries of impressions and relevance, sorted, blank ones left out; empty without any."""
    found: pa.Array = pa.array([], type=pa.string())
    for table in (find_table(data, "impressions"), find_table(data, "relevance")):
        if table is None or "query" not in table.schema.names:
            continue
        for batch in table.to_batches(columns=["query"]):
            distinct = without_blanks(batch.column("query").cast(pa.string()).unique()).drop_null()
            new = distinct.filter(pc.invert(pc.is_in(distinct, value_set=found)))
            if len(new):
                found = pa.concat_arrays([found, new])
    return found.take(pc.sort_indices(found))
