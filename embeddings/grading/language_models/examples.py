"""Examples chosen for each pair: graded pairs of the train queries whose letters are most like its query's.

A query is never shown grades of its own intent: a grader would look good by reading the answer. Pairs of
validation and test queries are no examples.

Shapes: Q train queries, T terms.
"""

import hashlib
import json
from functools import lru_cache

import numpy as np
import scipy.sparse as sp
from sklearn.feature_extraction.text import TfidfVectorizer

from embeddings.catalog.holdout import TRAIN, HoldoutConfig
from embeddings.catalog.intents import intent_groups
from embeddings.catalog.terms import character_tfidf
from embeddings.catalog.titles import normalise_text
from embeddings.grading.language_models.prompt import Example
from embeddings.grading.pairs import GradedPairs, GradingError
from embeddings.relevance.grades import GRADES

#: Near queries that are compared with one to see whether they ask the same.
_COMPARED = 50


class NearestExamples:
    """Up to `count` examples for any query.

    The nearest queries come in turn, each with its first pair of each grade, until there are enough. A query
    that no train query shares letters with gets fewer, or none.

    Args:
        holdout: what `graded` was divided by.

    Raises:
        GradingError: no train query has a graded pair with a letter or digit in its query.
    """

    def __init__(self, graded: GradedPairs, count: int, *, holdout: HoldoutConfig | None = None) -> None:
        self.holdout = holdout
        train = graded.of_role(TRAIN)
        rows = list(
            zip(
                train.pairs.queries,
                train.pairs.texts,
                train.grade_N.tolist(),
                train.intent_N.tolist(),
                strict=True,
            )
        )
        self._count = count
        self._examples: dict[str, dict[int, Example]] = {}
        intent_of: dict[str, int] = {}
        for query, text, grade, intent in rows:
            intent_of[query] = intent
            example = Example.model_validate({"query": query, "text": text, "grade": GRADES[grade]})
            self._examples.setdefault(query, {}).setdefault(grade, example)
        self._queries = list(self._examples)
        texts = [normalise_text(query) for query in self._queries]
        terms = character_tfidf(texts) if texts else None
        if terms is None:
            raise GradingError(
                "no train query has a pair graded by people, so there are no examples to choose"
            )
        self._terms: TfidfVectorizer = terms
        self._query_QT: sp.csr_matrix = terms.transform(texts)
        self._intent_Q = np.array([intent_of[query] for query in self._queries])
        #: Another set of examples is another prompt.
        self.sha256 = hashlib.sha256(json.dumps([row[:3] for row in rows]).encode()).hexdigest()
        characters = [len(query) + len(text) for query, text, *_ in rows]
        #: Of all examples of a pair, about.
        self.characters = round(count * sum(characters) / len(characters))
        # Pairs of one query come together, and an endpoint is asked by several threads.
        self.of = lru_cache(maxsize=10_000)(self._of)

    def _of(self, query: str) -> tuple[Example, ...]:
        """The examples of a query, the nearest last: next to the pair that is asked for."""
        text = normalise_text(query)
        cosine_Q = (self._query_QT @ self._terms.transform([text]).T).toarray()[:, 0]
        near = [place for place in np.argsort(-cosine_Q, kind="stable").tolist() if cosine_Q[place] > 0]
        own = self._intents_of(query, near[:_COMPARED])
        found: list[Example] = []
        for place in near:
            if len(found) >= self._count:
                break
            if self._intent_Q[place] not in own:
                found += self._examples[self._queries[place]].values()
        return tuple(reversed(found[: self._count]))

    def _intents_of(self, query: str, near: list[int]) -> set[int]:
        """Those of the near queries that ask for the same, the query itself among them where it is graded."""
        group = intent_groups([query, *(self._queries[place] for place in near)]).tolist()
        return {
            int(self._intent_Q[place]) for place, of in zip(near, group[1:], strict=True) if of == group[0]
        }
