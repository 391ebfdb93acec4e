"""Which queries ask for the same thing, so that a hold-out by intent keeps all of them on one side.

A test query whose plural, misspelling or other word order was trained on is no unseen query. Data that know
what their queries ask for say so (column `intent` of relevance); else queries are grouped by their words.

Shapes: Q queries.
"""

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from embeddings.catalog.groups import connected_groups
from embeddings.catalog.terms import character_tfidf, stemmer
from embeddings.catalog.titles import normalise_text

#: Cosine of character n-grams from which two queries with the same numbers are near duplicates: a slip of the
#: keyboard in a query of several words ("kitchen faucett brushed nickel"), not another word.
NEAR_DUPLICATE = 0.8
#: Above so many distinct queries only equal stems make a group: near duplicates cost the square of them.
MAX_COMPARED = 200_000
_BLOCK = 1024


def intent_groups(
    queries: Sequence[str], *, near_duplicate: float = NEAR_DUPLICATE, language: str = "english"
) -> npt.NDArray[np.int64]:
    """The group of each query [Q]: the position of the first query of the same intent, through any chain.

    Two queries have one intent if they have the same stems, in any order and as often, or if they have the
    same numbers and the cosine of their character n-grams (TF-IDF over these queries) reaches
    `near_duplicate`.

    >>> intent_groups(["red paint", "paints, red", "white paint", "2 in screws"]).tolist()
    [0, 0, 2, 3]
    """
    stem = stemmer(language)
    texts = [normalise_text(query) for query in queries]
    keys: list[tuple[int, Hashable]] = [
        (row, tuple(sorted(map(stem, text.split())))) for row, text in enumerate(texts) if text
    ]
    first_of = {text: row for row, text in reversed(list(enumerate(texts))) if text}
    if len(first_of) <= MAX_COMPARED:
        rows = list(first_of.values())
        near = _near_duplicates([texts[row] for row in rows], near_duplicate)
        for pair, (one, other) in enumerate((rows[one], rows[other]) for one, other in near):
            if _numbers(texts[one]) == _numbers(texts[other]):
                keys += [(one, pair), (other, pair)]
    return connected_groups(len(texts), keys)


def _numbers(text: str) -> list[str]:
    """ "2 in screws" and "3 in screws" differ by one letter, and not by a slip."""
    return sorted(word for word in text.split() if word[0].isdigit())


def _near_duplicates(texts: list[str], threshold: float) -> Iterator[tuple[int, int]]:
    """Pairs of positions whose cosine is at least `threshold`."""
    terms = character_tfidf(texts) if texts else None
    if terms is None:
        return
    text_QT = terms.transform(texts)
    for start in range(0, len(texts), _BLOCK):
        cosine_BQ = (text_QT[start : start + _BLOCK] @ text_QT.T).tocoo()
        near = (cosine_BQ.data >= threshold) & (cosine_BQ.row + start < cosine_BQ.col)
        yield from zip((cosine_BQ.row[near] + start).tolist(), cosine_BQ.col[near].tolist(), strict=True)
