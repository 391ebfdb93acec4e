"""Joins EmbeddingTables to a feature set: the row of every product, query and purchase, and coverage."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embeddings.embedding_table import Coverage, EmbeddingTable
from features.batches.pretrained_rows import PurchaseBags, SemanticRows
from features.feature_set import FeatureSet


@dataclass(frozen=True)
class SemanticInputs:
    """What the DashCLIP tower reads.

    Attributes:
        rows: table rows of the feature set's products, queries and purchases.
        vectors: the tables themselves, [1 + count, D] under "product" and "query"; row 0 is zeros.
        coverage: share of the feature set's products and queries that have a vector.
    """

    rows: SemanticRows
    vectors: dict[str, NDArray[np.floating]]
    coverage: dict[str, Coverage]


def join_tables(
    feature_set: FeatureSet, *, product_table: Path | None, query_table: Path | None
) -> SemanticInputs:
    """Open and verify the tables and find every id of the feature set in them.

    Raises:
        EmbeddingTableError: a table is damaged, or of the other kind.
        ValueError: no product, or no query, of the feature set is in its table.
    """
    rows: dict[str, NDArray[np.int64]] = {}
    vectors: dict[str, NDArray[np.floating]] = {}
    coverage: dict[str, Coverage] = {}
    for kind, folder, ids in (
        ("product", product_table, feature_set.catalog_ids()),
        ("query", query_table, feature_set.queries()),
    ):
        if folder is None:
            rows[kind] = np.zeros(len(ids) + 1, np.int64)
            continue
        table = EmbeddingTable.load(folder)
        if table.manifest.kind != kind:
            raise ValueError(
                f"{folder} holds {table.manifest.kind} vectors, not {kind} vectors; swap the two tables"
            )
        row_N = table.rows_of(ids)
        is_zero_N = ~np.asarray(table.vectors_ND.any(axis=1))
        row_N[is_zero_N[row_N]] = 0  # a vector of zeros says no more than a missing one
        rows[kind] = np.append(row_N, 0)  # index -1, "none", reads the last entry
        vectors[kind] = table.vectors_ND
        coverage[kind] = table.coverage(ids)
        if len(ids) and not rows[kind].any():
            raise ValueError(
                f"none of the {len(ids):,} {kind} ids of {feature_set.folder} is in {folder}; the table was "
                "made from another catalogue"
            )
    return SemanticInputs(
        rows=SemanticRows(
            product_P=rows["product"],
            query_Q=rows["query"],
            purchases=_purchases(feature_set, rows["product"]),
        ),
        vectors=vectors,
        coverage=coverage,
    )


def _purchases(feature_set: FeatureSet, product_rows_P: NDArray[np.int64]) -> PurchaseBags | None:
    history = feature_set.manifest.config.history
    if history is None:
        return None
    return PurchaseBags(
        feature_set.history_product_index(),
        feature_set.history_next_same_product(),
        product_rows_P,
        cap=history.cap,
        deduplicate=history.deduplicate,
    )
