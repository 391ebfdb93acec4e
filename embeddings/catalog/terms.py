"""Terms of titles and queries: words, and character 3- and 4-grams inside words.

Words alone miss misspellings and brand fragments; character n-grams of "shampo" and "shampoo" agree but for
two. LSA and the lexical rows of table 1 share them, so that these differ in the method alone.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

MAX_WORDS = 50_000
MAX_CHARACTER_NGRAMS = 60_000
#: Below so many texts a term is kept that only one of them has: a handful of texts has only rare terms.
_FEW_TEXTS = 1000


def character_ngrams(text: str) -> list[str]:
    """3- and 4-grams inside words, word borders included.

    >>> character_ngrams("tea")
    [' te', 'tea', 'ea ', ' tea', 'tea ']
    """
    ngrams: list[str] = []
    for word in text.split():
        bounded = f" {word} "
        for length in (3, 4):
            ngrams.extend(bounded[start : start + length] for start in range(len(bounded) - length + 1))
    return ngrams


def stemmer(language: str) -> Callable[[str], str]:
    """Snowball's stemmer of a language, "english" for one; it remembers words that it has met.

    Raises:
        ValueError: Snowball does not know the language.

    >>> stemmer("english")("drinks")
    'drink'
    """
    import snowballstemmer

    try:
        return cache(snowballstemmer.stemmer(language).stemWord)
    except KeyError:
        known = ", ".join(snowballstemmer.algorithms())
        raise ValueError(f"there is no stemmer for {language!r}; take one of {known}") from None


def word_tfidf(texts: list[str]) -> TfidfVectorizer | None:
    """TF-IDF of words, fitted on normalised `texts`; None where no word is frequent enough to keep."""
    return _fitted(str.split, MAX_WORDS, texts)


def character_tfidf(texts: list[str]) -> TfidfVectorizer | None:
    """TF-IDF of `character_ngrams`, fitted on normalised `texts`; None where none is frequent enough."""
    return _fitted(character_ngrams, MAX_CHARACTER_NGRAMS, texts)


def _fitted(analyzer: object, most: int, texts: list[str]) -> TfidfVectorizer | None:
    terms = TfidfVectorizer(
        analyzer=analyzer,
        sublinear_tf=True,
        min_df=2 if len(texts) >= _FEW_TEXTS else 1,
        max_features=most,
        dtype=np.float32,
    )
    try:
        return terms.fit(texts)
    except ValueError as error:  # scikit-learn has no other way to ask
        if "vocabulary" in str(error) or "no terms remain" in str(error).lower():
            return None
        raise
