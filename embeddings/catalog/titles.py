"""Words of titles: as they are compared, and queries made from them as somebody might type them.

Such queries need no grades, so they teach an encoder without published weights that words mean
themselves, in any order, with words left out and with typing errors. Titles with words missing teach what
images say instead.
"""

import re
import unicodedata

import numpy as np
import numpy.typing as npt

#: Words of a query, from and to: people type few.
QUERY_WORDS = (1, 4)
#: Share of query words of at least four letters that carry one typing error.
TYPO_RATE = 0.15
TYPO_LETTERS = 4

_DIGIT_LETTER_BORDER = re.compile(r"(?<=\d)(?=[^\W\d_])|(?<=[^\W\d_])(?=\d)")
_TOKEN = re.compile(r"\d+\.\d+|[^\W_]+")


def normalise_text(text: str) -> str:
    """Lower case, no accents or punctuation, digits parted from letters: "Café, 12OZ" = "cafe 12 oz"."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(character for character in decomposed if not unicodedata.combining(character))
    return " ".join(_TOKEN.findall(_DIGIT_LETTER_BORDER.sub(" ", plain)))


def title_query(title: str, generator: np.random.Generator) -> str:
    """One to four words of the title, in its order or shuffled, sometimes misspelt."""
    words = title.split()
    if not words:
        return ""
    fewest, most = QUERY_WORDS
    kept = min(len(words), int(generator.integers(fewest, most + 1)))
    chosen = generator.permutation(len(words))[:kept]
    if generator.random() < 0.5:
        chosen = np.sort(chosen)
    return " ".join(_typed(words[position], generator) for position in chosen.tolist())


def shortened_title(title: str, generator: np.random.Generator, *, drop_share: float) -> str:
    """The title with each word left out by chance `drop_share`; at least one stays."""
    words = title.split()
    if not words or not drop_share:
        return title
    kept: npt.NDArray[np.bool_] = generator.random(len(words)) >= drop_share
    if not kept.any():
        kept[int(generator.integers(len(words)))] = True
    return " ".join(word for word, stays in zip(words, kept.tolist(), strict=True) if stays)


def _typed(word: str, generator: np.random.Generator) -> str:
    """The word, or by chance with one letter left out, doubled or exchanged with the next."""
    if len(word) < TYPO_LETTERS or generator.random() >= TYPO_RATE:
        return word
    place = int(generator.integers(len(word) - 1))
    left, right = word[place], word[place + 1]
    middle = (left, left + left + right, right + left)[int(generator.integers(3))]
    return word[:place] + middle + word[place + 2 :]
