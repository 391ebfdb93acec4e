"""Figures of agreement, by hand and by scikit-learn, and the human ceiling."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score

from embeddings.grading.agreement import (
    Graded,
    figures,
    human_ceiling,
    length_strata,
    segments_of,
    signed_error,
)
from tests.embeddings.small_grades import write_data


def drawn(seed: int = 0) -> Graded:
    rng = np.random.default_rng(seed)
    probability_NC = rng.dirichlet([1, 1, 1], 300)
    grade_N = np.array([rng.choice(3, p=row) for row in probability_NC])
    return Graded(grade_N, probability_NC.argmax(axis=1).astype(np.int8), probability_NC, np.arange(300) // 5)


def test_figures_are_those_of_scikit_learn() -> None:
    graded = drawn()
    found = {name: values[0] for name, values in figures(graded, np.ones((1, 60))).items()}
    truth, said = graded.grade_N, graded.predicted_N
    assert found["macro_f1"] == pytest.approx(f1_score(truth, said, average="macro"))
    assert found["f1_moderate"] == pytest.approx(f1_score(truth, said, average=None)[1])
    assert found["kappa"] == pytest.approx(cohen_kappa_score(truth, said))
    assert found["qwk"] == pytest.approx(cohen_kappa_score(truth, said, weights="quadratic"))


def test_a_query_drawn_twice_counts_as_its_pairs_repeated() -> None:
    graded = drawn()
    weights = np.ones((1, 60))
    weights[0, 7], weights[0, 8] = 2, 0
    rows = np.concatenate([np.arange(300)[np.arange(300) // 5 != 8], np.arange(35, 40)])
    repeated = Graded(
        graded.grade_N[rows], graded.predicted_N[rows], graded.probability_NC[rows], graded.group_N[rows]
    )
    for name, values in figures(graded, weights).items():
        assert values[0] == pytest.approx(figures(repeated, np.ones((1, 60)))[name][0]), name


def test_brier_and_calibration_error_by_hand() -> None:
    p_NC = np.array([[0.65, 0.35, 0.0], [0.0, 0.35, 0.65], [0.0, 0.0, 1.0]])
    graded = Graded(np.array([0, 1, 2]), np.array([0, 2, 2], np.int8), p_NC, np.zeros(3, np.int64))
    found = figures(graded, np.ones((1, 1)))
    brier = ((0.35**2 + 0.35**2) + (0.65**2 + 0.65**2) + 0) / 3
    assert found["brier"][0] == pytest.approx(brier)
    # Two pairs in the bin of 0.65, one of them right; the third is sure and right.
    assert found["calibration_error"][0] == pytest.approx(abs(1 - 2 * 0.65) / 3)


def test_the_ceiling_compares_two_people_of_a_pair_and_leaves_models_out(tmp_path: Path) -> None:
    rows = [("a", 1, 2, "human"), ("a", 1, 2, "human"), ("a", 2, 0, "human"), ("a", 2, 1, "human")]
    alone = [("b", 1, 0, "human"), ("b", 2, 0, "llm"), ("b", 2, 0, "llm")]
    found = human_ceiling(write_data(tmp_path / "several", [*rows, *alone]))
    assert found is not None
    assert found["pairs"] == 2
    # Labels 2 2 0 1 against 2 2 1 0: F1 of 1 for high, 0 for the others.
    assert found["macro_f1"] == pytest.approx(1 / 3)
    assert human_ceiling(write_data(tmp_path / "single", alone)) is None


def test_segments_by_words_and_by_numbers_each_cover_every_pair_once() -> None:
    found = segments_of(["lamp", "red lamp", "2 in screws", "large white oak door"])
    assert found["1 or 2 words"].tolist() == [True, True, False, False]
    assert found["with a number"].tolist() == [False, False, True, False]
    by_words = [rows for name, rows in found.items() if "word" in name]
    assert np.sum(by_words, axis=0).tolist() == [1, 1, 1, 1]


def test_thirds_of_lengths_part_the_pairs_and_equal_lengths_are_one() -> None:
    found = length_strata(["a b", "a b c", "a b, c d", "a b c d e", "a b", "a b c d e f g"])
    assert {name: rows.tolist() for name, rows in found.items()} == {
        "2 words": [True, False, False, False, True, False],
        "3 to 4 words": [False, True, True, False, False, False],
        "5 words or more": [False, False, False, True, False, True],
    }
    assert list(length_strata(["one", "two"])) == ["1 word"]


def test_the_signed_error_is_above_zero_for_a_grader_that_is_too_kind() -> None:
    graded = Graded(
        np.array([0, 0, 2]), np.array([2, 1, 1], np.int8), np.full((3, 3), 1 / 3), np.array([0, 0, 1])
    )
    weights_RG = np.array([[1.0, 1], [1, 0], [0, 2], [0, 0]])
    assert signed_error(graded, weights_RG)[:3] == pytest.approx([2 / 3, 1.5, -1])
    assert np.isnan(signed_error(graded, weights_RG)[3])
