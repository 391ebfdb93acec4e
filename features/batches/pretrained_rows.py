"""From product, query and purchase-history indices to rows of the pretrained tables, at batch time.

A feature set stores positions in its own catalogue, not rows of an embedding table: the same features
serve any table, and a new table needs no rebuild. Histories are stored as offsets into one array of
purchases (5 M impressions: 17 MB instead of 114 MB as lists) and expanded here.

Shapes: B impressions, P products, Q queries, E purchases, L purchases in all bags of a batch.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.batches.batch import SEMANTIC_KEYS, bags

Int = NDArray[np.int64]

#: Purchases that are looked at together, about; 8 MB an array.
_EVENTS_AT_ONCE = 2**20


@dataclass(frozen=True)
class PurchaseBags:
    """Bags of what each impression's user had purchased, read from the purchases of all users.

    These are files of the feature set, memory-mapped: no process holds them, and those of one machine share
    what the system keeps of them. Only what a batch needs is read, newest first, until its bags are full.

    Attributes:
        product_E: index of the product of each purchase, each user's oldest first.
        next_same_product_E: index of the user's next purchase of the same product, or E.
        row_P: row of each product in the pretrained table; without one (0) its purchases are left out.
        cap: at most so many purchases a bag, the newest ones.
        deduplicate: keep only the newest purchase of each product; applied before the cap.
    """

    product_E: NDArray[np.int32]
    next_same_product_E: NDArray[np.integer]
    row_P: Int
    cap: int
    deduplicate: bool

    def expand(
        self, start_B: NDArray[np.integer], end_B: NDArray[np.integer]
    ) -> tuple[Int, NDArray[np.int32]]:
        """Rows of each impression's history, newest first.

        Returns:
            rows [L] and how many of them belong to each impression [B].
        """
        first_B: Int = start_B.astype(np.int64)
        last_B: Int = end_B.astype(np.int64)
        wanted_B = np.full(len(end_B), self.cap)
        open_I = np.flatnonzero(last_B > first_B)
        rows, impressions = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        while len(open_I):
            # One look is enough unless products lack a vector or repeat: as many purchases as a bag holds.
            # What is still open then looks back further at a time, as memory allows.
            at_once = max(_EVENTS_AT_ONCE // len(open_I), 1)
            if len(rows) == 1:
                at_once = min(at_once, self.cap)
            length_I = np.minimum(last_B[open_I] - first_B[open_I], at_once)
            event_L = _newest_first(last_B[open_I], length_I)
            impression_L = np.repeat(open_I, length_I)
            row_L = self.row_P[self.product_E[event_L]]
            keep_L = row_L != 0
            if self.deduplicate:
                keep_L &= self.next_same_product_E[event_L] >= end_B[impression_L]
            keep_L = _first_of_each(keep_L, length_I, wanted_B[open_I])
            rows.append(row_L[keep_L])
            impressions.append(impression_L[keep_L])
            last_B[open_I] -= length_I
            wanted_B -= np.bincount(impressions[-1], minlength=len(wanted_B))
            open_I = open_I[(wanted_B[open_I] > 0) & (last_B[open_I] > first_B[open_I])]
        kept_B = (self.cap - wanted_B).astype(np.int32)
        row_L = np.concatenate(rows)
        if len(rows) > 2:  # each look found some of an impression's rows
            row_L = row_L[np.argsort(np.concatenate(impressions), kind="stable")]
        return row_L, kept_B


def _first_of_each(keep_L: NDArray[np.bool_], length_I: Int, wanted_I: Int) -> NDArray[np.bool_]:
    """Those to keep without those beyond the first `wanted_I` of each impression."""
    if (length_I <= wanted_I).all():
        return keep_L
    before_L: Int = np.cumsum(keep_L) - keep_L
    start_I = np.cumsum(length_I) - length_I
    seen_L: Int = before_L - np.repeat(before_L[start_I], length_I)
    within_L: NDArray[np.bool_] = keep_L & (seen_L < np.repeat(wanted_I, length_I))
    return within_L


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
        start_B: NDArray[np.integer],
        end_B: NDArray[np.integer],
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
