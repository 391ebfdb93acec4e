"""Classifiers kept as arrays predict what scikit-learn's own objects predict."""

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from embeddings.grading import classifiers
from embeddings.grading.classifiers import fit, probabilities


def rows(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features_NF = rng.normal(size=(600, 4)).astype(np.float32)
    score_N = features_NF[:, 0] + features_NF[:, 1] * features_NF[:, 2] + rng.normal(size=600) / 3
    return features_NF, np.digitize(score_N, [-0.6, 0.6])


def test_boosted_trees_predict_as_scikit_learn_does() -> None:
    features_NF, grade_N = rows()
    weight_N = np.linspace(0.5, 2, 600)
    model = HistGradientBoostingClassifier(
        max_iter=classifiers.ROUNDS,
        learning_rate=classifiers.LEARNING_RATE,
        max_leaf_nodes=classifiers.LEAVES,
        min_samples_leaf=classifiers.LEAF_ROWS,
        l2_regularization=classifiers.L2,
        max_features=0.5,
        early_stopping=False,
        random_state=3,
    ).fit(features_NF, grade_N, sample_weight=weight_N)
    arrays = fit("boosting", features_NF, grade_N, weight_N=weight_N, seed=3)
    unseen_NF, _ = rows(1)
    assert probabilities(arrays, unseen_NF) == pytest.approx(model.predict_proba(unseen_NF), abs=1e-9)


def test_the_logistic_regression_predicts_as_scikit_learn_does_on_standardised_features() -> None:
    features_NF, grade_N = rows()
    arrays = fit("logistic", features_NF, grade_N)
    scaled_NF = (features_NF - features_NF.mean(axis=0)) / features_NF.std(axis=0)
    model = LogisticRegression(max_iter=500).fit(scaled_NF, grade_N)
    assert probabilities(arrays, features_NF) == pytest.approx(model.predict_proba(scaled_NF), abs=1e-4)
