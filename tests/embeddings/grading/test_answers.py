"""A run read as a grader says what its grader said, and nothing of pairs that it never saw."""

from pathlib import Path

import numpy as np
import pytest

from embeddings.catalog.holdout import TEST, VALIDATION
from embeddings.grading.agreement import gullibility
from embeddings.grading.answers import RunAnswers, open_grader
from embeddings.grading.graders import FeatureGrader
from embeddings.grading.pairs import GradingError, Pairs
from embeddings.grading.run import run_grader
from tests.embeddings.grading.small_world import read_small_world
from tests.embeddings.grading.test_run import LengthGrader, some_pairs


class Decided(LengthGrader):
    """Its grade is not the most probable one."""

    def grades(self, probabilities_NC: np.ndarray) -> np.ndarray:
        return ((probabilities_NC.argmax(axis=1) + 1) % 3).astype(np.int8)


def test_probabilities_and_grades_are_those_of_the_run(tmp_path: Path) -> None:
    pairs = some_pairs(9)
    grader = Decided(prompt_sha="p")
    run_grader(pairs, tmp_path / "run", grader, shard_pairs=4)
    answers = RunAnswers.load(tmp_path / "run")
    order = np.array([8, 0, 3, 5])
    found_NC = answers.probabilities(pairs.take(order))
    np.testing.assert_array_equal(found_NC, grader.probabilities(pairs).astype(np.float32)[order])
    assert answers.grades(found_NC).tolist() == [(row + 1) % 3 for row in order]
    assert (answers.name, answers.prompt_sha, answers.tokens_per_pair) == ("length", "p", 100)
    assert (answers.tokens, answers.remarks) == (0, "")


def test_the_offsets_of_a_trained_grader_are_kept(world: Path, stack: FeatureGrader, tmp_path: Path) -> None:
    _, graded = read_small_world(world)
    pairs = graded.of_role(VALIDATION).pairs + graded.of_role(TEST).pairs
    run_grader(pairs, tmp_path / "run", stack)
    answers = open_grader(tmp_path / "run")
    said = stack.grades(stack.probabilities(pairs))
    assert answers.grades(answers.probabilities(pairs)).tolist() == said.tolist()


def test_a_pair_or_text_that_was_not_graded_is_unanswered(tmp_path: Path) -> None:
    pairs = some_pairs(4)
    run_grader(pairs.take(np.arange(3)), tmp_path / "run", LengthGrader())
    answers = RunAnswers.load(tmp_path / "run")
    other = Pairs(pairs.queries, [*pairs.texts[:1], "other", *pairs.texts[2:]], pairs.product_ids)
    found_NC = answers.probabilities(other)
    assert np.isnan(found_NC).any(axis=1).tolist() == [False, True, False, True]
    assert "has no answer to 2 pairs" in answers.remarks
    assert "--people held-out" in answers.remarks


def test_how_gullible_a_grader_is_counts_what_it_answers_if_that_is_half(world: Path) -> None:
    catalogue, graded = read_small_world(world)
    queries = sorted({*graded.pairs.queries})

    class Partial(LengthGrader):
        def probabilities(self, pairs: Pairs) -> np.ndarray:
            rows = np.tile([0.1, 0.1, 0.8], (len(pairs), 1))
            rows[[query in self.unanswered for query in pairs.queries]] = np.nan
            return rows

    half = Partial(unanswered=frozenset(queries[: len(queries) // 2]))
    assert set(gullibility(half, queries, catalogue).values()) == {1.0}
    fewer = Partial(unanswered=frozenset(queries[: len(queries) // 2 + 1]))
    assert set(gullibility(fewer, queries, catalogue).values()) == {None}


def test_a_folder_is_opened_as_what_it_is(stack: FeatureGrader, tmp_path: Path) -> None:
    run_grader(some_pairs(2), tmp_path / "run", LengthGrader())
    assert isinstance(open_grader(tmp_path / "run"), RunAnswers)
    assert isinstance(open_grader(stack.folder), FeatureGrader)
    with pytest.raises(GradingError, match=r"neither a grader .* nor a run"):
        open_grader(tmp_path / "nothing")
    silent = LengthGrader(unanswered=frozenset({"q0", "q1"}))
    with pytest.raises(GradingError, match="stopped"):
        run_grader(some_pairs(2), tmp_path / "empty", silent)
    with pytest.raises(GradingError, match="holds no grades yet"):
        open_grader(tmp_path / "empty")
