"""From product, query and purchase-history indices to rows of the pretrained tables, at batch time.

A feature set stores positions in its own catalogue, not rows of an embedding table: the same features
serve any table, and a new table needs no rebuild. Histories are stored as offsets into one array of
purchases (5 M impressions: 17 MB instead of 114 MB as lists) and expanded here.

Shapes: B impressions, P products, Q queries, E purchases, L purchases in all bags of a batch.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.batches.batch import SEMANTIC_KEYS, bags

Int = NDArray[np.int64]

#: Purchases that are looked at together where repeats are removed, about; 8 MB an array.
_EVENTS_AT_ONCE = 2**20


@dataclass(frozen=True)
class PurchaseBags:
    """Purchases of all users, each user's oldest first, without those whose product has no vector.

    Attributes:
        row_E: row of the product table, never 0.
        next_same_product_E: index of the user's next purchase of the same product, or E.
        kept_before: [E_all + 1], how many of the first i purchases are kept; maps stored offsets to these.
        cap: at most so many purchases a bag, the newest ones.
        deduplicate: keep only the newest purchase of each product; applied before the cap.
    """

    row_E: Int
    next_same_product_E: Int
    kept_before: Int
    cap: int
    deduplicate: bool

    @classmethod
    def build(
        cls,
        event_product_index: NDArray[np.int32],
        next_same_product: NDArray[np.int32],
        product_rows_P: Int,
        *,
        cap: int,
        deduplicate: bool,
    ) -> Self:
        """Resolve products to table rows once, so that a batch costs one gather."""
        row = product_rows_P[event_product_index]
        kept = row != 0
        kept_before = np.concatenate([[0], np.cumsum(kept)])
        return cls(
            row_E=row[kept],
            next_same_product_E=kept_before[next_same_product[kept]],
            kept_before=kept_before,
            cap=cap,
            deduplicate=deduplicate,
        )

    def expand(self, start_B: NDArray[np.int32], end_B: NDArray[np.int32]) -> tuple[Int, NDArray[np.int32]]:
        """Rows of each impression's history, newest first.

        Returns:
            rows [L] and how many of them belong to each impression [B].
        """
        first_B, last_B = self.kept_before[start_B], self.kept_before[end_B]
        if not self.deduplicate:
            first_B = np.maximum(first_B, last_B - self.cap)
        length_B = last_B - first_B
        if not self.deduplicate:
            return self.row_E[_newest_first(last_B, length_B)], length_B.astype(np.int32)
        # The cap counts after repeats are gone, so whole windows are read: a batch of a user with 50,000
        # purchases would be hundreds of millions of them at once.
        part_B = (np.cumsum(length_B) - 1) // _EVENTS_AT_ONCE
        cuts = np.flatnonzero(np.diff(part_B)) + 1
        parts = [
            self._distinct(last, length)
            for last, length in zip(np.split(last_B, cuts), np.split(length_B, cuts), strict=True)
        ]
        rows_L, kept_B = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return rows_L, kept_B

    def _distinct(self, last_B: Int, length_B: Int) -> tuple[Int, NDArray[np.int32]]:
        """`expand` without repeated products."""
        event_L = _newest_first(last_B, length_B)
        impression_L = np.repeat(np.arange(len(length_B)), length_B)
        newest_L = self.next_same_product_E[event_L] >= last_B[impression_L]
        newest_before_L: Int = np.cumsum(newest_L) - newest_L
        bag_start_B = np.cumsum(length_B) - length_B
        seen_L = newest_before_L - np.append(newest_before_L, 0)[bag_start_B][impression_L]
        keep_L = newest_L & (seen_L < self.cap)
        kept_B = np.bincount(impression_L[keep_L], minlength=len(length_B))
        return self.row_E[event_L[keep_L]], kept_B.astype(np.int32)


def _newest_first(last_B: Int, length_B: Int) -> Int:
    """Indices last-1, last-2, ... for each impression, one after the other."""
    before_B = np.cumsum(length_B) - length_B
    total = int(length_B.sum())
    result: Int = np.repeat(last_B - 1 + before_B, length_B) - np.arange(total)
    return result


@dataclass(frozen=True)
class SemanticRows:
    """Which row of which pretrained table each product, query and purchase has; 0 where it has none.

    Attributes:
        product_P: row of each product of the catalogue, and one 0 more: index -1 ("none") reads it.
        query_Q: likewise for queries.
        purchases: None where histories are not built.
    """

    product_P: Int
    query_Q: Int
    purchases: PurchaseBags | None

    def lookup(
        self,
        product_B: NDArray[np.int32],
        query_B: NDArray[np.int32],
        start_B: NDArray[np.int32],
        end_B: NDArray[np.int32],
    ) -> KeyedJaggedTensor:
        """Bags under `SEMANTIC_KEYS`; index -1 means that the impression has no product or query."""
        product, product_length = _zero_or_one(self.product_P, product_B)
        query, query_length = _zero_or_one(self.query_Q, query_B)
        if self.purchases is None:
            history = np.empty(0, np.int64)
            history_length = np.zeros(len(product_B), np.int32)
        else:
            history, history_length = self.purchases.expand(start_B, end_B)
        return bags(
            list(SEMANTIC_KEYS),
            [torch.from_numpy(values) for values in (product, query, history)],
            [torch.from_numpy(lengths) for lengths in (product_length, query_length, history_length)],
        )


def _zero_or_one(rows: Int, index_B: NDArray[np.int32]) -> tuple[Int, NDArray[np.int32]]:
    row_B = rows[index_B]
    found_B = row_B != 0
    return row_B[found_B], found_B.astype(np.int32)
