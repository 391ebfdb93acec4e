"""Calibration and thresholds."""

import numpy as np
import pytest

from embeddings.evaluation.linear_probe import macro_f1
from embeddings.grading.decision import Decision, StuffedTitles


def skewed(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that never favour the rare grade 0, though they rank it well; and the true grades."""
    grade_N = rng.choice(3, 3000, p=[0.15, 0.4, 0.45])
    logits_NC = rng.normal(size=(3000, 3)) * 0.7 + np.eye(3)[grade_N] * 1.2 - np.array([2.0, 0, 0])
    shares_NC = np.exp(logits_NC)
    return shares_NC / shares_NC.sum(axis=1, keepdims=True), grade_N


def test_offsets_raise_macro_f1_above_that_of_the_most_probable_grade() -> None:
    raw_NC, grade_N = skewed(np.random.default_rng(0))
    found = Decision.learn(raw_NC, grade_N)
    unseen_NC, truth_N = skewed(np.random.default_rng(1))
    probability_NC = found.probabilities(unseen_NC)
    assert (
        macro_f1(truth_N, found.grades(probability_NC)) > macro_f1(truth_N, unseen_NC.argmax(axis=1)) + 0.05
    )


def test_calibrated_probabilities_have_the_shares_of_the_grades() -> None:
    raw_NC, grade_N = skewed(np.random.default_rng(0))
    shares_C = Decision.learn(raw_NC, grade_N).probabilities(raw_NC).mean(axis=0)
    assert shares_C == pytest.approx(np.bincount(grade_N) / len(grade_N), abs=0.005)


def test_a_further_input_counts_whatever_its_scale_is() -> None:
    raw_NC, grade_N = skewed(np.random.default_rng(0))
    unseen_NC, truth_N = skewed(np.random.default_rng(1))
    rng = np.random.default_rng(2)
    f1 = []
    for scale in (1.0, 1e-3):
        more_N1, unseen_N1 = (
            scale * (grade[:, None] + rng.normal(size=(len(grade), 1))) for grade in (grade_N, truth_N)
        )
        found = Decision.learn(raw_NC, grade_N, more_N1)
        f1.append(macro_f1(truth_N, found.grades(found.probabilities(unseen_NC, unseen_N1))))
    without = Decision.learn(raw_NC, grade_N)
    assert min(f1) > macro_f1(truth_N, without.grades(without.probabilities(unseen_NC))) + 0.03


def test_without_a_grade_on_validation_queries_nothing_is_changed() -> None:
    raw_NC = np.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    found = Decision.learn(raw_NC, np.array([2, 1]))
    assert found.probabilities(raw_NC) == pytest.approx(raw_NC)
    assert found.grades(raw_NC).tolist() == [2, 0]
    further = Decision.learn(raw_NC, np.array([2, 1]), np.ones((2, 3)))
    assert further.probabilities(raw_NC, np.full((2, 3), 9.0)) == pytest.approx(raw_NC)


def test_stuffed_titles_turn_the_slopes_and_leave_the_shares_of_the_grades() -> None:
    """A cosine that people's pairs trust is high for titles that the model itself calls irrelevant."""
    rng = np.random.default_rng(0)

    def pairs(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        raw_NC, grade_N = skewed(rng)
        return raw_NC, grade_N, (grade_N + rng.normal(size=len(grade_N)))[:, None]

    def titles(count: int) -> tuple[np.ndarray, np.ndarray]:
        said_MC = np.exp(rng.normal(size=(count, 3)) * 0.7 + np.array([0.5, 0, 0]))
        return said_MC / said_MC.sum(axis=1, keepdims=True), 3 + rng.normal(size=(count, 1))

    raw_NC, grade_N, cosine_N1 = pairs(rng)
    stuffed = StuffedTitles(*titles(500), weight=0.5)
    naive = Decision.learn(raw_NC, grade_N, cosine_N1)
    wary = Decision.learn(raw_NC, grade_N, cosine_N1, stuffed=stuffed)
    assert wary.probabilities(raw_NC, cosine_N1).mean(axis=0) == pytest.approx(
        np.bincount(grade_N) / len(grade_N), abs=1e-3
    )
    unseen_NC, truth_N, unseen_N1 = pairs(np.random.default_rng(1))
    others = titles(500)
    fooled, f1 = [], []
    for found in (naive, wary):
        fooled.append(float((found.grades(found.probabilities(*others)) > 0).mean()))
        f1.append(macro_f1(truth_N, found.grades(found.probabilities(unseen_NC, unseen_N1))))
    assert fooled[1] < 0.1 < 0.2 < fooled[0]
    assert f1[1] > f1[0] - 0.03
