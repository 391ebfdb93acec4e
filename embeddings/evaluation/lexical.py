"""Scores of titles by the letters and words that they share with a query: the cheap opponents of encoders.

All of them read texts normalised as LSA does (`normalise_text`), so that rows of table 1 differ in the method
alone. Each is a `Scorer`, fitted on the titles.

Shapes: P products, Q queries.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product

import numpy as np
import numpy.typing as npt

from embeddings.catalog.terms import character_tfidf, stemmer
from embeddings.catalog.titles import normalise_text

#: Scores [P] of all titles, at least 0, for each query in turn. A title that has nothing of the query scores
#: 0, and so does everything for a query without a letter or digit.
Scorer = Callable[[Sequence[str | None], Sequence[str | None]], Iterator[npt.NDArray[np.float32]]]

#: The defaults of Lucene and of most published baselines are 1.2 to 1.5 and 0.75.
K1, B = 1.5, 0.75
#: What `tuned_bm25` tries. A short title is no worse for its length: small b wins on most catalogues.
K1_GRID, B_GRID = (0.4, 0.8, 1.2, 2.0), (0.0, 0.25, 0.5, 0.75)

#: Scores of n-grams that are in memory together (16 MB): queries one by one took four times as long.
SCORES_AT_ONCE = 4_000_000


def token_overlap(query: str, title: str) -> float:
    """Share of the query's words that the title contains anywhere, even inside a word; case does not count.

    Words are parted by white space. "deck over" in "BEHR DeckOver" is 1. Over all pairs of Home Depot it
    gives an AUC of 0.6936 for high against irrelevant; with whole words of letters and digits it is 0.6930.
    """
    words = query.lower().split()
    lowered = title.lower()
    return sum(word in lowered for word in words) / len(words) if words else 0.0


def bm25_scores(
    titles: Sequence[str | None],
    queries: Sequence[str | None],
    *,
    k1: float = K1,
    b: float = B,
    language: str | None = None,
) -> Iterator[npt.NDArray[np.float32]]:
    """BM25 (Robertson et al. 1994, in the variant of Lucene); the index is built once.

    A title scores, for each query word that it holds,

        idf(w) * tf / (tf + k1 * (1 - b + b * words / mean words)),
        idf(w) = ln(1 + (N - n + 0.5) / (n + 0.5))

    Args:
        language: of the Snowball stemmer that both sides go through, "english" for one; None keeps words.

    >>> [scores] = bm25_scores(["Oat drinks", "Rye bread"], ["drink"], language="english")
    >>> scores.argmax()
    np.int64(0)
    """
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # its import set it to DEBUG
    stem = stemmer(language) if language else str
    words = [[stem(word) for word in normalise_text(title or "").split()] for title in titles]
    index = None
    if any(words):
        index = bm25s.BM25(method="lucene", k1=k1, b=b, backend="numpy")
        index.index(words, show_progress=False)
    for query in queries:
        asked = [stem(word) for word in normalise_text(query or "").split()]
        if index is None or not asked:
            yield np.zeros(len(titles), np.float32)
        else:
            yield index.get_scores(asked)


def char_tfidf_scores(
    titles: Sequence[str | None], queries: Sequence[str | None]
) -> Iterator[npt.NDArray[np.float32]]:
    """Cosine of the TF-IDF of character 3- and 4-grams, whose document frequencies are those of titles.

    It knows nothing of meaning and forgives misspellings; without any training it comes near encoders.

    >>> [scores] = char_tfidf_scores(["Shampoo", "Soap"], ["shampo"])
    >>> scores.argmax()
    np.int64(0)
    """
    texts = [normalise_text(title or "") for title in titles]
    terms = character_tfidf(texts)
    if terms is None:
        yield from (np.zeros(len(titles), np.float32) for _ in queries)
        return
    title_PT = terms.transform(texts)
    together = max(1, SCORES_AT_ONCE // max(1, len(texts)))
    for start in range(0, len(queries), together):
        asked_CT = terms.transform(
            [normalise_text(query or "") for query in queries[start : start + together]]
        )
        yield from (asked_CT @ title_PT.T).toarray()


def tuned_bm25(measure: Callable[[Scorer], float], *, language: str | None) -> tuple[Scorer, float, float]:
    """BM25 with the k1 and b that `measure` (larger is better) likes best, and these two.

    `measure` must look at validation queries alone. Of equal values the first of the grid is taken.
    """
    value_of = {
        (k1, b): measure(partial(bm25_scores, k1=k1, b=b, language=language))
        for k1, b in product(K1_GRID, B_GRID)
    }
    k1, b = max(value_of, key=lambda pair: value_of[pair])
    return partial(bm25_scores, k1=k1, b=b, language=language), k1, b
