"""The audit of people's grades: folds without leaks, thresholds by hand, and planted flips found."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embeddings.catalog.holdout import TEST
from embeddings.grading.audit import COLUMNS, audit_grades, folds_of, suspected, write_audit
from embeddings.grading.features import PairFeatures
from embeddings.grading.pairs import GradedPairs, GradingError
from tests.embeddings.grading.small_world import read_small_world


@pytest.fixture(scope="module")
def graded(world: Path) -> GradedPairs:
    return read_small_world(world)[1]


@pytest.fixture(scope="module")
def features_NF(world: Path, graded: GradedPairs) -> np.ndarray:
    return PairFeatures(read_small_world(world)[0]).of_many(graded.pairs)


def test_planted_flips_are_found_far_above_chance_in_test_queries_too(
    graded: GradedPairs, features_NF: np.ndarray, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    flipped_N = rng.random(len(graded)) < 0.08
    step_N = rng.integers(1, 3, len(graded))
    dirty = replace(graded, grade_N=np.where(flipped_N, (graded.grade_N + step_N) % 3, graded.grade_N))
    found = audit_grades(dirty, features_NF, folds=4)
    first = found.rows[: flipped_N.sum()]
    assert flipped_N[first].mean() > 0.75
    of_test = flipped_N & (graded.role_N == TEST)
    assert np.isin(np.flatnonzero(of_test), found.rows).mean() > 0.75
    assert (found.suggested_N[first] == graded.grade_N[first]).mean() > 0.75
    assert write_audit(found, dirty, tmp_path / "audit.csv", count=30) == 30
    with (tmp_path / "audit.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    top = int(found.rows[0])
    assert (rows[0]["query"], rows[0]["text"]) == (graded.pairs.queries[top], graded.pairs.texts[top])
    assert (rows[0]["given"], rows[0]["suggested"]) == (str(dirty.grade_N[top]), str(found.suggested_N[top]))
    assert float(rows[0]["probability"]) == pytest.approx(found.probability_NC[top].max(), abs=1e-3)
    assert {row["grade"] for row in rows} == {""}


def test_no_grade_of_an_intent_speaks_for_or_against_a_grade_of_that_intent(
    graded: GradedPairs, features_NF: np.ndarray
) -> None:
    """Five queries of one intent: flipping all grades of one leaves the probabilities of all as they were."""
    several = np.unique(graded.group_N)[[3, 20, 40, 50, 60]]
    intent_N = np.where(np.isin(graded.group_N, several), graded.intent_N.max() + 1, graded.intent_N)
    merged = replace(graded, intent_N=intent_N)
    mine, flipped = np.isin(graded.group_N, several), graded.group_N == several[0]
    poisoned = replace(merged, grade_N=np.where(flipped, 2 - graded.grade_N, graded.grade_N))
    clean, dirty = (
        audit_grades(one, features_NF, folds=3, classifier="logistic").probability_NC
        for one in (merged, poisoned)
    )
    assert np.array_equal(clean[mine], dirty[mine])
    fold_N = folds_of(intent_N, folds=3, seed=0)
    others = fold_N != fold_N[mine][0]
    assert not np.allclose(clean[others], dirty[others], atol=1e-4)


def test_folds_hold_whole_intents_and_are_of_like_size() -> None:
    intent_N = np.repeat(np.arange(11) * 7, 5)
    fold_N = folds_of(intent_N, folds=3, seed=0)
    assert all(len(np.unique(fold_N[intent_N == intent])) == 1 for intent in np.unique(intent_N))
    assert sorted(np.bincount(fold_N).tolist()) == [15, 20, 20]
    assert not np.array_equal(fold_N, folds_of(intent_N, folds=3, seed=1))


@pytest.mark.parametrize("folds", [1, 12])
def test_folds_that_cannot_be_are_refused(folds: int) -> None:
    with pytest.raises(GradingError, match="at most the 11 intents"):
        folds_of(np.arange(11), folds=folds, seed=0)


def test_suspicion_is_what_loops_say() -> None:
    rng = np.random.default_rng(0)
    probability_NC = rng.dirichlet([1, 1, 1], 200)
    grade_N = np.array([rng.choice(3, p=row) for row in probability_NC])
    thresholds = []
    for grade in range(3):
        of_grade = [row[grade] for row, given in zip(probability_NC, grade_N, strict=True) if given == grade]
        thresholds.append(sum(of_grade) / len(of_grade))
    expected = []
    for row, given in zip(probability_NC, grade_N, strict=True):
        sure = [grade for grade in range(3) if row[grade] >= thresholds[grade]]
        best = max(sure, key=lambda grade: row[grade], default=given)
        expected.append(best if row[best] > row[given] else -1)
    assert suspected(probability_NC, grade_N).tolist() == expected
    assert 0 < np.sum(np.array(expected) >= 0) < 200


def test_a_grade_that_is_given_too_freely_needs_more_to_stand_against_another() -> None:
    # High is thought likely of everything: its threshold is .7, so .6 says nothing against irrelevant.
    probability_NC = np.array([[0.4, 0.0, 0.6], [0.3, 0.0, 0.7], [0.2, 0.0, 0.8], [0.3, 0.0, 0.7]])
    assert suspected(probability_NC, np.array([0, 2, 0, 2])).tolist() == [-1, -1, 2, -1]


def test_folds_without_a_grade_are_named(graded: GradedPairs, features_NF: np.ndarray) -> None:
    rows = np.flatnonzero(graded.grade_N != 1)
    with pytest.raises(GradingError, match="none is graded moderate"):
        audit_grades(graded.take(rows), features_NF[rows], folds=3)
