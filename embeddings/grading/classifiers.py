"""Probabilities of the three grades from features: two classifiers of scikit-learn, kept as plain arrays.

Nothing is pickled: a trained classifier is a dictionary of arrays, and predicting needs NumPy alone.

Shapes: N pairs, F features, C = 3 grades, R rounds, M nodes of all trees.
"""

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from embeddings.relevance.grades import GRADES

Arrays = dict[str, npt.NDArray[Any]]
FloatArray = npt.NDArray[np.float64]
Classifier = Literal["logistic", "boosting"]

#: Of the boosting: small trees and large leaves, as people's grades are noisy.
ROUNDS, LEARNING_RATE, LEAVES, LEAF_ROWS, L2 = 150, 0.06, 15, 60, 5.0


def fit(
    kind: Classifier,
    features_NF: npt.NDArray[np.floating],
    grade_N: npt.NDArray[np.integer],
    *,
    weight_N: npt.NDArray[np.floating] | None = None,
    seed: int = 0,
) -> Arrays:
    """Train; the result is what `probabilities` reads.

    Raises:
        ValueError: a grade does not occur.
    """
    refuse_missing_grades(grade_N)
    return (_fit_logistic if kind == "logistic" else _fit_boosting)(features_NF, grade_N, weight_N, seed)


def refuse_missing_grades(grade_N: npt.NDArray[np.integer]) -> None:
    """Refuse to learn from pairs some grade of which nobody gave.

    Raises:
        ValueError: names these grades.
    """
    missing = sorted({*range(len(GRADES))} - {*np.unique(grade_N).tolist()})
    if missing:
        names = ", ".join(GRADES[grade] for grade in missing)
        raise ValueError(f"a grader must learn from pairs of every grade, but none is graded {names}")


def probabilities(
    arrays: Mapping[str, npt.NDArray[Any]], features_NF: npt.NDArray[np.floating]
) -> FloatArray:
    """Probability [N, C] of each grade; rows sum to 1."""
    logits_NC = _logistic(arrays, features_NF) if "coefficients" in arrays else _boosted(arrays, features_NF)
    return softmax(logits_NC)


def softmax(logits_NC: FloatArray) -> FloatArray:
    """exp(logits) as shares of each row."""
    shifted_NC = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    return shifted_NC / shifted_NC.sum(axis=1, keepdims=True)


def fit_logistic_regression(
    features_NF: npt.NDArray[np.floating],
    grade_N: npt.NDArray[np.integer],
    weight_N: npt.NDArray[np.floating] | None = None,
    *,
    strength: float = 1.0,
) -> LogisticRegression:
    """Multinomial logistic regression, without a word where it stops early."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=strength, max_iter=500)
        return model.fit(features_NF, grade_N, sample_weight=weight_N)


def _fit_logistic(
    features_NF: npt.NDArray[np.floating],
    grade_N: npt.NDArray[np.integer],
    weight_N: npt.NDArray[np.floating] | None,
    seed: int,
) -> Arrays:
    mean_F, scale_F = features_NF.mean(axis=0), features_NF.std(axis=0)
    scale_F = np.where(scale_F > 0, scale_F, 1.0)
    model = fit_logistic_regression((features_NF - mean_F) / scale_F, grade_N, weight_N)
    return {
        "mean": mean_F.astype(np.float64),
        "scale": scale_F.astype(np.float64),
        "coefficients": model.coef_.astype(np.float64),
        "intercepts": model.intercept_.astype(np.float64),
    }


def _logistic(arrays: Mapping[str, npt.NDArray[Any]], features_NF: npt.NDArray[np.floating]) -> FloatArray:
    scaled_NF = (features_NF - arrays["mean"]) / arrays["scale"]
    return np.asarray(scaled_NF @ arrays["coefficients"].T + arrays["intercepts"], np.float64)


def _fit_boosting(
    features_NF: npt.NDArray[np.floating],
    grade_N: npt.NDArray[np.integer],
    weight_N: npt.NDArray[np.floating] | None,
    seed: int,
) -> Arrays:
    model = HistGradientBoostingClassifier(
        max_iter=ROUNDS,
        learning_rate=LEARNING_RATE,
        max_leaf_nodes=LEAVES,
        min_samples_leaf=LEAF_ROWS,
        l2_regularization=L2,
        max_features=0.5,
        early_stopping=False,
        random_state=seed,
    ).fit(features_NF, grade_N, sample_weight=weight_N)
    # scikit-learn has no public way to read these trees; a test compares ours with its own predictions.
    trees = [tree.nodes for round_ in model._predictors for tree in round_]
    sizes = np.array([len(nodes) for nodes in trees])
    nodes = np.concatenate(trees)
    root_of = np.repeat(np.cumsum(sizes) - sizes, sizes)
    return {
        "baseline": np.asarray(model._baseline_prediction, np.float64).reshape(-1),
        "roots": (np.cumsum(sizes) - sizes).astype(np.int64),
        "feature": np.where(nodes["is_leaf"], -1, nodes["feature_idx"]).astype(np.int64),
        "threshold": nodes["num_threshold"].astype(np.float64),
        "left": (nodes["left"] + root_of).astype(np.int64),
        "right": (nodes["right"] + root_of).astype(np.int64),
        "value": nodes["value"].astype(np.float64),
    }


def _boosted(arrays: Mapping[str, npt.NDArray[Any]], features_NF: npt.NDArray[np.floating]) -> FloatArray:
    """Sum of the leaves that each row falls into; tree t adds to grade t mod C."""
    feature_M, threshold_M, left_M, right_M, value_M = (
        arrays[name] for name in ("feature", "threshold", "left", "right", "value")
    )
    logits_NC = np.tile(arrays["baseline"], (len(features_NF), 1)).astype(np.float64)
    rows_N = np.arange(len(features_NF))
    for tree, root in enumerate(arrays["roots"].tolist()):
        node_N = np.full(len(features_NF), root, np.int64)
        inner = rows_N
        while len(inner := inner[feature_M[node_N[inner]] >= 0]):
            at = node_N[inner]
            goes_left = features_NF[inner, feature_M[at]] <= threshold_M[at]
            node_N[inner] = np.where(goes_left, left_M[at], right_M[at])
        logits_NC[:, tree % logits_NC.shape[1]] += value_M[node_N]
    return logits_NC
