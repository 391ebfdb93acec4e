"""Titles stuffed with the words of a query: what a seller does who wants to be found, and a fair trap.

The title is that of a random product that nobody has graded for the query, so it is irrelevant but for a rare
accident. A grader that looks for the query's words calls it relevant.

Shapes: N pairs.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from embeddings.grading.pairs import Catalogue, GradingError, Pairs

#: Where the words of the query stand: nowhere, after the title, before it, or scattered among its words.
Stuffing = Literal["none", "appended", "in front", "scattered"]
STUFFINGS: tuple[Stuffing, ...] = ("none", "appended", "in front", "scattered")


def foreign_pairs(
    queries: Sequence[str],
    catalogue: Catalogue,
    *,
    stuffing: Stuffing,
    generator: np.random.Generator,
    graded: frozenset[tuple[str, object]] = frozenset(),
) -> Pairs:
    """Each query with a random product that `graded` does not pair it with, its title stuffed.

    Raises:
        GradingError: every product drawn for a query is graded for it.
    """
    ids = catalogue.product_ids.to_pylist()
    texts, chosen = [], []
    for query in queries:
        for _ in range(100):
            product = int(generator.integers(len(ids)))
            if (query, ids[product]) not in graded:
                break
        else:
            raise GradingError(f"nearly every product is graded for {query!r}; no foreign one is left")
        chosen.append(product)
        texts.append(stuffed(catalogue.texts[product], query, stuffing, generator))
    return Pairs(list(queries), texts, catalogue.product_ids.take(np.array(chosen, np.int64)))


def stuffed(text: str, query: str, stuffing: Stuffing, generator: np.random.Generator) -> str:
    """The text with the words of the query.

    >>> stuffed("oak door", "led lamp", "appended", np.random.default_rng(0))
    'oak door led lamp'
    """
    if stuffing == "none":
        return text
    if stuffing == "appended":
        return f"{text} {query}"
    if stuffing == "in front":
        return f"{query} {text}"
    words = text.split()
    for word in query.split():
        words.insert(int(generator.integers(len(words) + 1)), word)
    return " ".join(words)
