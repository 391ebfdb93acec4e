"""Which texts of a batch are encoded together: little padding, and few shapes.

Shapes: N texts.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

#: Texts of a batch are encoded in so many chunks of alike length; short ones are not padded to the longest.
CHUNKS = 4
#: Rows and tokens of a chunk are multiples of these where texts allow: a processor's kernels for bfloat16 are
#: built and kept for each shape that they meet, and came to gigabytes (experiments/LOG.md).
CHUNK_ROWS, CHUNK_TOKENS = 16, 4


def length_chunks(
    length_N: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], list[tuple[slice, int]]]:
    """An order [N] of texts by length, shortest first, and chunks of it: places, and tokens that they need.

    The shortest texts have what is left after chunks of equal size.

    >>> order_N, chunks = length_chunks(np.array([7, 3, 3, 30, 5]))
    >>> order_N.tolist(), chunks
    ([1, 2, 4, 0, 3], [(slice(0, 5, None), 32)])
    """
    order_N = np.argsort(length_N, kind="stable")
    rows = -(-len(order_N) // (CHUNKS * CHUNK_ROWS)) * CHUNK_ROWS
    stops = range(len(order_N), 0, -rows)
    places = [slice(max(0, stop - rows), stop) for stop in reversed(stops)]
    longest = (int(length_N[order_N[place]].max()) for place in places)
    return order_N, [
        (place, -(-tokens // CHUNK_TOKENS) * CHUNK_TOKENS)
        for place, tokens in zip(places, longest, strict=True)
    ]


def by_length(length_N: npt.NDArray[np.integer], batch_size: int) -> Iterator[npt.NDArray[np.int64]]:
    """All rows in batches, the shortest texts first."""
    order = np.argsort(length_N, kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
