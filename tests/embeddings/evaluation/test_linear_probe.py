"""The linear probe, and macro F1 and accuracy under resampling."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, recall_score

from embeddings.evaluation.linear_probe import (
    GroupedHits,
    best_cutoffs,
    group_resamples,
    linear_probe,
    macro_f1,
)

ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=40)


def test_always_one_of_two_balanced_classes_gives_a_third():
    assert macro_f1([0, 0, 1, 1], [0, 0, 0, 0]) == pytest.approx((2 * 2 / (2 + 4) + 0) / 2)


@settings(max_examples=25, deadline=None)  # scikit-learn takes its time for each
@given(ROWS)
def test_macro_f1_and_accuracy_equal_scikit_learn(rows):
    classes, predicted, groups = (list(column) for column in zip(*rows, strict=True))
    hits = GroupedHits(classes, predicted, groups)
    weights_RG = np.ones((1, hits.groups))
    expected = f1_score(classes, predicted, average="macro", zero_division=0)
    assert macro_f1(classes, predicted) == pytest.approx(expected)
    assert hits.macro_f1(weights_RG)[0] == pytest.approx(expected)
    assert hits.accuracy(weights_RG)[0] == pytest.approx(accuracy_score(classes, predicted))
    labels = sorted(set(classes))
    expected_L = recall_score(classes, predicted, labels=labels, average=None)
    assert hits.recall(weights_RG)[0, labels] == pytest.approx(expected_L)


@given(ROWS, st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_a_weight_counts_the_rows_of_a_group_that_often(rows, weights):
    repeated = [row for row in rows for _ in range(weights[row[2]])]
    hits = GroupedHits(*zip(*rows, strict=True))
    weights_RG = np.array([weights[: hits.groups]], float)
    if not repeated:
        assert np.isnan(hits.macro_f1(weights_RG)[0])
        return
    classes, predicted, _ = zip(*repeated, strict=True)
    assert hits.macro_f1(weights_RG)[0] == pytest.approx(macro_f1(classes, predicted))
    assert hits.accuracy(weights_RG)[0] == pytest.approx(np.equal(classes, predicted).mean())


def test_no_other_cutoffs_among_the_scores_have_a_better_macro_f1():
    rng = np.random.default_rng(0)
    grade_N = rng.choice(3, 80, p=[0.1, 0.3, 0.6])
    score_N = np.round(grade_N + rng.normal(0, 1.2, 80), 1)

    def by(low, high):
        return macro_f1(grade_N, np.searchsorted((low, high), score_N, side="left"))

    tried = np.unique(score_N)  # fewer than the quantiles that are tried
    best = max(by(low, high) for low in tried for high in tried if low <= high)
    assert by(*best_cutoffs(score_N, grade_N)) == pytest.approx(best)


def test_resamples_draw_as_many_groups_as_there_are_and_repeat_by_seed():
    first, second = (group_resamples(7, 50, np.random.default_rng(3)) for _ in range(2))
    assert (first.sum(axis=1) == 7).all()
    assert np.array_equal(first, second)
    assert first.std() > 0


def clusters(rows, generator):
    classes_N = generator.integers(0, 3, rows)
    centres_CF = np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]])
    return centres_CF[classes_N] + generator.normal(size=(rows, 2)), classes_N


def test_separated_clusters_are_told_apart_and_rows_out_of_training_do_not_matter():
    features_NF, classes_N = clusters(300, np.random.default_rng(0))
    train_N, validation_N = np.arange(300) < 150, (np.arange(300) >= 150) & (np.arange(300) < 200)
    probe = linear_probe(features_NF, classes_N, train_N=train_N, validation_N=validation_N)
    assert (probe.predicted_N[200:] == classes_N[200:]).mean() > 0.97
    other_N = np.where(train_N | validation_N, classes_N, 2 - classes_N)
    again = linear_probe(features_NF, other_N, train_N=train_N, validation_N=validation_N)
    assert np.array_equal(again.predicted_N, probe.predicted_N)


def test_scale_and_origin_of_the_features_do_not_matter():
    features_NF, classes_N = clusters(200, np.random.default_rng(1))
    train_N = np.arange(200) < 120
    probes = [
        linear_probe(moved_NF, classes_N, train_N=train_N, validation_N=~train_N)
        for moved_NF in (features_NF, features_NF * [100, 0.01] - 7)
    ]
    assert np.array_equal(probes[0].predicted_N, probes[1].predicted_N)


def test_a_single_class_in_training_is_refused():
    features_NF, rows_N = np.zeros((4, 2)), np.array([True, True, False, False])
    with pytest.raises(ValueError, match="its 2 train rows have 1"):
        linear_probe(features_NF, np.array([1, 1, 0, 0]), train_N=rows_N, validation_N=~rows_N)
