"""A grader of simulated pairs that looks for the query's words."""

import numpy as np

from embeddings.grading.pairs import Pairs


class WordGrader:
    """High where every word is there, moderate where the last one is; gullible by construction."""

    name, prompt_sha, holdout, remarks = "words", None, None, ""

    def __init__(self, *, tokens_a_pair: int = 0) -> None:
        self.asked: list[str] = []
        self.tokens = 0
        self._tokens_a_pair = tokens_a_pair

    def probabilities(self, pairs: Pairs) -> np.ndarray:
        self.asked += pairs.queries
        self.tokens += self._tokens_a_pair * len(pairs)
        grade_N = []
        for query, text in zip(pairs.queries, pairs.texts, strict=True):
            found = [word in text.lower().split() for word in query.split()]
            grade_N.append(2 if all(found) else 1 if found[-1] else 0)
        return 0.7 * np.eye(3)[np.array(grade_N, int)] + 0.1

    def grades(self, probabilities_NC: np.ndarray) -> np.ndarray:
        return probabilities_NC.argmax(axis=1).astype(np.int8)
