"""What a query and a product's text share, as numbers that a grader learns from.

Besides words and n-grams in common there is what the words of the query cannot buy: how much the *rest* of
the text, without them, is like the titles that the catalogue has for the query (pseudo-relevance feedback).
A title stuffed with words of the query shares all of them and is unlike its neighbours.

Shapes: N pairs, F features, P products, T terms, K nearest titles.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from sklearn.feature_extraction.text import TfidfVectorizer

from embeddings.catalog.terms import character_ngrams, character_tfidf, stemmer
from embeddings.catalog.titles import normalise_text
from embeddings.embedding_table import EmbeddingTable
from embeddings.evaluation.lexical import token_overlap
from embeddings.evaluation.linear_probe import unit_vectors
from embeddings.grading.pairs import Catalogue, GradingError, Pairs
from features.progress import Progress, silent

FloatArray = npt.NDArray[np.float64]

#: Titles that stand for what the catalogue has for a query; one of a pair's own product is never among them.
NEIGHBOURS = 10
#: Before the name of each table, in names of features.
COSINE = "cosine_"
_BLOCK_QUERIES = 256
_CHUNK_PAIRS = 4096

WORD_FEATURES = (
    "token_overlap",
    "stem_share",
    "idf_share",
    "rarest_missing_idf",
    "missing_idf",
    "last_word_found",
    "first_word_found",
    "adjacent_share",
    "first_match_place",
    "last_match_place",
    "mean_match_place",
    "numbers_share",
    "query_numbers",
    "query_words",
    "text_words",
    "rest_words",
    "closest_words",
    "least_close_word",
    "brand_asked",
)
TERM_FEATURES = (
    "char_cosine",
    "best_char_cosine",
    "char_cosine_below_best",
    "neighbours_char_cosine",
    "neighbour_likeness",
    "rest_neighbour_likeness",
    "nearest_title_likeness",
)


class TextReader(Protocol):
    """What gives any text the vector that it would have in a table."""

    @property
    def encoder_id(self) -> str:
        """What stands in the tables that it made."""

    def text_vectors(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors [N, D] of products that are nothing but a text."""


def refuse_idle_readers(readers: Mapping[str, TextReader], tables: Iterable[str]) -> None:
    """Each reader must be of a table that some grader reads.

    Raises:
        GradingError: names one that is of none.
    """
    names = sorted(set(tables))
    if idle := sorted(readers.keys() - set(names)):
        raise GradingError(
            f"no grader reads a table named {idle[0]!r}, so its encoder has nothing to do; the tables are "
            f"{', '.join(names) or 'none'}"
        )


class PairFeatures:
    """Features of any pairs, fitted on the texts of a catalogue.

    A pair has the cosine of its product's row in a table, whatever its text; without a row it has 0. With
    `reading`, the vector of a text that is not the catalogue's, or of a product without a row, is read anew.

    Args:
        tables: embedding tables (products, queries) by name; each adds the cosine of a pair.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        tables: Mapping[str, tuple[EmbeddingTable, EmbeddingTable]] | None = None,
    ) -> None:
        self._product_ids = catalogue.product_ids
        self._texts = catalogue.texts
        self._readers: dict[str, TextReader] = {}
        self._tables = dict(tables or {})
        for name, (products, queries) in self._tables.items():
            if products.dim != queries.dim:
                raise GradingError(
                    f"products and queries of {name} must lie in one space, but have widths {products.dim} "
                    f"and {queries.dim}; give tables of one encoder"
                )
        self._stem = stemmer("english")
        texts = [normalise_text(text) for text in catalogue.texts]
        terms = character_tfidf(texts)
        if terms is None:
            raise GradingError(
                "no text of the catalogue holds a letter or digit; there is nothing to grade by"
            )
        self._terms: TfidfVectorizer = terms
        self._title_PT: sp.csr_matrix = terms.transform(texts)
        self._title_TP = sp.csr_matrix(self._title_PT.T)
        seen: dict[str, int] = {}
        for text in texts:
            for word in {self._stem(word) for word in text.split()}:
                seen[word] = seen.get(word, 0) + 1
        self._idf = {word: float(np.log(1 + len(texts) / count)) for word, count in seen.items()}
        self._idf_of_unknown = float(np.log(1 + 2 * len(texts)))
        self._ngrams = lru_cache(maxsize=200_000)(lambda word: frozenset(character_ngrams(word)))

    @property
    def names(self) -> tuple[str, ...]:
        """One name for each feature."""
        return (*WORD_FEATURES, *TERM_FEATURES, *(f"{COSINE}{name}" for name in self._tables))

    def __call__(self, pairs: Pairs) -> npt.NDArray[np.float32]:
        """Features [N, F], finite; each pair's are its own, whatever pairs stand beside it."""
        words_NF = np.array(
            [self._of_words(query, text) for query, text in zip(pairs.queries, pairs.texts, strict=True)],
            np.float32,
        ).reshape(len(pairs), len(WORD_FEATURES))
        parts = [words_NF, self._of_terms(pairs)]
        for name, (products, queries) in self._tables.items():
            product_ND = unit_vectors(products, pairs.product_ids)
            self._read_anew(name, products, pairs, product_ND)
            query_ND = unit_vectors(queries, pa.array(pairs.queries, pa.string()))
            parts.append((product_ND * query_ND).sum(axis=1, keepdims=True))
        return np.hstack(parts).astype(np.float32)

    def reading(self, readers: Mapping[str, TextReader]) -> Self:
        """The same features, with what made some of the tables at hand.

        Raises:
            GradingError: there is no such table, or another encoder made it.
        """
        if unknown := sorted(readers.keys() - self._tables.keys()):
            raise GradingError(
                f"no table is named {unknown[0]!r}, so its encoder reads nothing; the tables are "
                f"{', '.join(sorted(self._tables)) or 'none'}"
            )
        for name, reader in readers.items():
            made_by = self._tables[name][0].manifest.encoder_id
            if reader.encoder_id != made_by:
                raise GradingError(
                    f"the table {name} was made by {made_by}, but the encoder given for {name} is "
                    f"{reader.encoder_id}; give the encoder that made it"
                )
        found = copy.copy(self)
        found._readers = self._readers | dict(readers)
        return found

    def without_vector(self, product_ids: pa.Array) -> npt.NDArray[np.bool_]:
        """Which products [N] some table has no row for, and no reader reads: their cosine would be 0."""
        lacking_N = np.zeros(len(product_ids), bool)
        for name, (products, _) in self._tables.items():
            if name not in self._readers:
                lacking_N |= products.rows_of(product_ids) == 0
        return lacking_N

    def _read_anew(
        self, name: str, products: EmbeddingTable, pairs: Pairs, product_ND: npt.NDArray[np.float32]
    ) -> None:
        """Fill in, where there is a reader, the vectors that the table has not or has of another text."""
        if name not in self._readers:
            return
        row_N = pc.fill_null(pc.index_in(pairs.product_ids, value_set=self._product_ids), -1)
        known_N = products.rows_of(pairs.product_ids) > 0
        other = [
            place
            for place, (row, known) in enumerate(zip(row_N.to_pylist(), known_N.tolist(), strict=True))
            if not known or row < 0 or self._texts[row] != pairs.texts[place]
        ]
        if not other:
            return
        # Texts of like length side by side, so that little padding is read.
        other.sort(key=lambda place: len(pairs.texts[place]))
        vectors_ND = self._readers[name].text_vectors([pairs.texts[place] for place in other])
        if vectors_ND.shape[1] != product_ND.shape[1]:
            raise GradingError(
                f"the encoder given for the table {name} makes vectors of width {vectors_ND.shape[1]}, but "
                f"the table's have {product_ND.shape[1]}; give the encoder that made it"
            )
        product_ND[other] = vectors_ND

    def of_many(self, pairs: Pairs, *, progress: Progress = silent) -> npt.NDArray[np.float32]:
        """Features [N, F] of many pairs, some at a time, so that it can be watched."""
        parts = [np.zeros((0, len(self.names)), np.float32)]
        for start in range(0, len(pairs), _CHUNK_PAIRS):
            progress("features of pairs", start, len(pairs))
            parts.append(self(pairs.take(np.arange(start, min(start + _CHUNK_PAIRS, len(pairs))))))
        progress("features of pairs", len(pairs), len(pairs))
        return np.concatenate(parts)

    def _of_words(self, query: str, text: str) -> list[float]:
        asked = normalise_text(query).split()
        titled = normalise_text(text).split()
        if not asked or not titled:
            return [0.0] * len(WORD_FEATURES)
        asked_stems = [self._stem(word) for word in asked]
        titled_stems = [self._stem(word) for word in titled]
        known = set(titled_stems)
        place_of = {word: place for place, word in reversed(list(enumerate(titled_stems)))}
        found = [word in known for word in asked_stems]
        idf = [self._idf.get(word, self._idf_of_unknown) for word in asked_stems]
        missing = [weight for weight, here in zip(idf, found, strict=True) if not here]
        places = [place_of[word] / len(titled) for word in asked_stems if word in known]
        neighbours = set(pairwise(titled_stems))
        adjacent = list(pairwise(asked_stems))
        numbers = [word for word in asked if word[0].isdigit()]
        close = [
            1.0 if here else self._closeness(word, titled) for word, here in zip(asked, found, strict=True)
        ]
        return [
            token_overlap(query, text),
            sum(found) / len(found),
            sum(w for w, here in zip(idf, found, strict=True) if here) / sum(idf),
            max(missing, default=0.0),
            sum(missing),
            float(found[-1]),
            float(found[0]),
            sum(two in neighbours for two in adjacent) / len(adjacent) if adjacent else 0.5,
            min(places, default=1.0),
            max(places, default=1.0),
            sum(places) / len(places) if places else 1.0,
            sum(number in known for number in numbers) / len(numbers) if numbers else 0.5,
            float(len(numbers)),
            float(len(asked)),
            float(len(titled)),
            float(sum(word not in asked_stems for word in titled_stems)),
            sum(close) / len(close),
            min(close),
            float(titled_stems[0] in asked_stems),
        ]

    def _closeness(self, word: str, titled: Sequence[str]) -> float:
        """Largest share of n-grams in common with a word of the text: what a misspelling leaves."""
        mine = self._ngrams(word)
        return max(len(mine & theirs) / len(mine | theirs) for theirs in map(self._ngrams, titled))

    def _of_terms(self, pairs: Pairs) -> npt.NDArray[np.float32]:
        """The features that need the catalogue, a block of distinct queries at a time."""
        features_NF = np.zeros((len(pairs), len(TERM_FEATURES)), np.float32)
        row_N = pc.fill_null(pc.index_in(pairs.product_ids, value_set=self._product_ids), -1)
        row_N = row_N.to_numpy(zero_copy_only=False)
        rows_of: dict[str, list[int]] = {}
        for row, query in enumerate(pairs.queries):
            rows_of.setdefault(normalise_text(query), []).append(row)
        distinct = list(rows_of)
        for start in range(0, len(distinct), _BLOCK_QUERIES):
            block = distinct[start : start + _BLOCK_QUERIES]
            query_BT = self._terms.transform(block)
            cosine_BP = sp.csr_matrix(query_BT @ self._title_TP)
            for place, query in enumerate(block):
                rows = np.array(rows_of[query])
                nearest, cosine = _best(cosine_BP, place, NEIGHBOURS + 1)
                asked = {self._stem(word) for word in query.split()}
                texts = [normalise_text(pairs.texts[row]) for row in rows.tolist()]
                rests = [self._without(text, asked) for text in texts]
                both_2T = self._terms.transform(texts + rests)
                own = np.asarray((both_2T[: len(rows)] @ query_BT[place].T).todense())[:, 0]
                likeness = np.asarray((both_2T @ self._title_PT[nearest].T).todense())
                others = nearest[None, :] != row_N[rows][:, None]
                # Without its own product each pair has the first K of the others.
                others &= np.cumsum(others, axis=1) <= NEIGHBOURS
                count = others.sum(axis=1).clip(1)
                alike, rest_alike = likeness[: len(rows)], likeness[len(rows) :]
                best = np.where(others, cosine[None, :], 0).max(axis=1, initial=0)
                features_NF[rows] = np.column_stack(
                    [
                        own,
                        best,
                        best - own,
                        (others * cosine[None, :]).sum(axis=1) / count,
                        (others * alike).sum(axis=1) / count,
                        (others * rest_alike).sum(axis=1) / count,
                        np.where(others, alike, 0).max(axis=1, initial=0),
                    ]
                )
        return features_NF

    def _without(self, text: str, stems: set[str]) -> str:
        return " ".join(word for word in text.split() if self._stem(word) not in stems)


def with_vectors(catalogue: Catalogue, lacking_P: npt.NDArray[np.bool_]) -> Catalogue:
    """The products that lack nothing: foreign titles are drawn from these, or a cosine would be 0.

    Args:
        lacking_P: as of `PairFeatures.without_vector`.

    Raises:
        GradingError: there is none.
    """
    if lacking_P.all():
        raise GradingError(
            f"none of the {len(lacking_P):,} products has a vector in every table of these graders; encode "
            "the catalogue with each encoder (`dashclip encode run`)"
        )
    return catalogue.take(np.flatnonzero(~lacking_P))


def _best(cosine_BP: sp.csr_matrix, row: int, count: int) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Columns and values of a row's largest entries, best first; equal ones in order of columns."""
    part = slice(*cosine_BP.indptr[row : row + 2].tolist())
    columns, values = cosine_BP.indices[part].astype(np.int64), cosine_BP.data[part].astype(np.float64)
    if len(values) > 4 * count:
        kept = values >= np.partition(values, -count)[-count]
        columns, values = columns[kept], values[kept]
    order = np.lexsort((columns, -values))[:count]
    return columns[order], values[order]
