"""BM25 over titles (Robertson et al. 1994, in the variant of Lucene): the baseline of matching words.

Titles and queries are split into words as LSA does (`normalise_text`), so that the two rows of table 1
differ in the method alone. A title scores, for each query word that it holds,

    idf(w) * tf / (tf + k1 * (1 - b + b * words / mean words)),   idf(w) = ln(1 + (N - n + 0.5) / (n + 0.5))

Shapes: P products.
"""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from embeddings.catalog.titles import normalise_text

#: The defaults of Lucene and of most published baselines are 1.2 to 1.5 and 0.75; titles are too short for
#: the choice to matter.
K1, B = 1.5, 0.75


def bm25_scores(
    titles: Sequence[str | None], queries: Sequence[str | None]
) -> Iterator[npt.NDArray[np.float32]]:
    """Scores [P] of all titles for each query in turn, at least 0; the index is built once.

    A title without any word of the query scores 0, and so does everything for a query without words.
    """
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # its import set it to DEBUG
    words = [normalise_text(title or "").split() for title in titles]
    index = None
    if any(words):
        index = bm25s.BM25(method="lucene", k1=K1, b=B, backend="numpy")
        index.index(words, show_progress=False)
    for query in queries:
        asked = normalise_text(query or "").split()
        if index is None or not asked:
            yield np.zeros(len(titles), np.float32)
        else:
            yield index.get_scores(asked)
