"""Graders compared on queries of one role, and the page that says so."""

from pathlib import Path

import numpy as np
import pytest

from embeddings.catalog.holdout import TEST, VALIDATION
from embeddings.grading.pairs import GradingError, Pairs
from experiments.grading.report import GradingReport, measure_graders, to_markdown
from tests.embeddings.grading.small_world import HOLDOUT, read_small_world, write_small_world


class WordGrader:
    """High where every word is there, moderate where the last one is; gullible by construction."""

    name, prompt_sha, tokens, remarks = "words", None, 0, ""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def probabilities(self, pairs: Pairs) -> np.ndarray:
        self.asked += pairs.queries
        grade_N = []
        for query, text in zip(pairs.queries, pairs.texts, strict=True):
            found = [word in text.lower().split() for word in query.split()]
            grade_N.append(2 if all(found) else 1 if found[-1] else 0)
        return 0.7 * np.eye(3)[grade_N] + 0.1

    def grades(self, probabilities_NC: np.ndarray) -> np.ndarray:
        return probabilities_NC.argmax(axis=1).astype(np.int8)


class ShyGrader(WordGrader):
    """Says moderate of everything, and nothing of every other pair."""

    def probabilities(self, pairs: Pairs) -> np.ndarray:
        rows = np.tile([0.2, 0.6, 0.2], (len(pairs), 1))
        rows[1::2] = np.nan
        return rows

    def grades(self, probabilities_NC: np.ndarray) -> np.ndarray:
        return np.ones(len(probabilities_NC), np.int8)


def test_graders_are_compared_on_the_queries_of_one_role_alone(tmp_path: Path) -> None:
    world = write_small_world(tmp_path / "data")
    catalogue, graded = read_small_world(world)
    words = WordGrader()
    found = measure_graders(
        world, {"shy": ShyGrader(), "words": words}, graded, catalogue,
        role=VALIDATION, holdout=HOLDOUT, resamples=50,
    )  # fmt: skip
    kept = graded.of_role(VALIDATION)
    assert set(words.asked) == set(kept.pairs.queries)
    assert found.chosen == "words"
    best = found.graders["words"]
    assert best.figures["macro_f1"].mean == pytest.approx(1)
    assert np.trace(best.confusion) == np.sum(best.confusion) == found.pairs == len(kept)
    assert best.gullibility["appended"] == 1 > best.gullibility["none"]
    assert found.graders["shy"].unanswered == len(kept) // 2
    assert found.differences["words - shy"]["macro_f1"].mean > 0.5
    assert found.human_ceiling is None
    found.write(tmp_path / "choice.json")
    assert GradingReport.model_validate_json((tmp_path / "choice.json").read_text()) == found
    page = to_markdown(found)
    assert "**words**" in page
    assert "pairs got no answer" in page
    assert "100.0%" in page


def test_test_queries_choose_nothing(tmp_path: Path) -> None:
    world = write_small_world(tmp_path / "data")
    catalogue, graded = read_small_world(world)
    found = measure_graders(
        world, {"words": WordGrader()}, graded, catalogue, role=TEST, holdout=HOLDOUT, resamples=10
    )
    assert (found.queries_of, found.chosen) == ("test", None)


def test_a_role_without_pairs_is_refused(tmp_path: Path) -> None:
    world = write_small_world(tmp_path / "data")
    catalogue, graded = read_small_world(world)
    train = graded.of_role(0)
    with pytest.raises(GradingError, match="no test query"):
        measure_graders(world, {"words": WordGrader()}, train, catalogue, role=TEST, holdout=HOLDOUT)
