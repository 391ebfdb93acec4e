"""Weighted draws from many lists of products at once, none of them before its launch day.

Shapes: L lists, E entries over all lists, N draws.
"""

import numpy as np

from experiments.marketplace.world.catalog import FloatArray, IntArray


def any_of(sorted_E: IntArray, key_N: IntArray, rng: np.random.Generator) -> IntArray:
    """Position of one of the entries that equal each key, all equally likely; every key must have one."""
    first_N = np.searchsorted(sorted_E, key_N)
    count_N = np.searchsorted(sorted_E, key_N, side="right") - first_N
    return first_N + (rng.random(len(key_N)) * count_N).astype(np.int64)


class ProductPools:
    """L lists of products, each sorted by launch day, so that what is on sale is a prefix of each list.

    Args:
        list_E: list of each entry, 0 <= list < num_lists, in any order.
        product_E: product of each entry.
        available_from_P: launch day of each product.
        weight_P: relative chance of each product.
    """

    def __init__(
        self,
        list_E: IntArray,
        product_E: IntArray,
        *,
        num_lists: int,
        available_from_P: IntArray,
        weight_P: FloatArray,
    ) -> None:
        order_E = np.lexsort((product_E, available_from_P[product_E], list_E))
        self._product_E = product_E[order_E].astype(np.int32)
        self._available_from_E = available_from_P[self._product_E].astype(np.int16)
        self._weight_before_E = np.concatenate([[0.0], np.cumsum(weight_P[self._product_E])])
        self._start_L = np.searchsorted(list_E[order_E], np.arange(num_lists + 1)).astype(np.int64)
        self._end_L = self._start_L[:-1]

    def open_day(self, day: int) -> None:
        """Put on sale what was launched on or before `day`; draws see nothing else."""
        on_sale_before_E = np.concatenate([[0], np.cumsum(self._available_from_E <= day)])
        self._end_L = self._start_L[:-1] + np.diff(on_sale_before_E[self._start_L])

    def draw(self, list_N: IntArray, rng: np.random.Generator) -> IntArray:
        """One product of each list, -1 where nothing is on sale there."""
        start_N, end_N = self._start_L[list_N], self._end_L[list_N]
        low_N, high_N = self._weight_before_E[start_N], self._weight_before_E[end_N]
        target_N = low_N + rng.random(len(list_N)) * (high_N - low_N)
        entry_N = np.searchsorted(self._weight_before_E, target_N, side="right") - 1
        entry_N = np.clip(entry_N, start_N, np.maximum(end_N - 1, start_N))
        if not len(self._product_E):
            return np.full(len(list_N), -1, np.int32)
        product_N = self._product_E[np.minimum(entry_N, len(self._product_E) - 1)]
        return np.where(end_N > start_N, product_N, -1)
