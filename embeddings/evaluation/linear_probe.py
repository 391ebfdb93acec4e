"""A linear classifier on frozen features, and how sure its accuracy and macro F1 are.

Multinomial logistic regression on standardised features, all classes of equal weight, its strength of
regularisation chosen by the macro F1 of validation rows. It has no random part and is convex, so two sets of
vectors differ in what they know and not in how lucky the training was.

Shapes: N rows, F features, C classes, G groups drawn together, R resamples.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from embeddings.embedding_table import EmbeddingTable

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

#: Inverse strengths of regularisation that are tried, weakest last.
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
#: Quantiles of a score that are tried as cutoffs.
CUTOFFS = 101
#: More steps change nothing that the intervals could see.
MAX_STEPS = 300


@dataclass(frozen=True, eq=False)
class Probe:
    """What the probe says of each row it was not trained on, and the strength it chose."""

    predicted_N: IntArray
    strength: float


def linear_probe(
    features_NF: npt.NDArray[np.floating],
    classes_N: npt.NDArray[np.integer],
    *,
    train_N: npt.NDArray[np.bool_],
    validation_N: npt.NDArray[np.bool_],
) -> Probe:
    """Train on the train rows, choose on the validation rows, predict every row.

    Without validation rows the strongest regularisation but one is taken. A class that no train row has is
    never predicted. Features scaled or shifted beforehand give the same predictions.

    Raises:
        ValueError: the train rows have fewer than two classes.
    """
    found = np.unique(classes_N[train_N])
    if len(found) < 2:
        raise ValueError(
            f"a probe must be trained on two classes at least, but its {int(train_N.sum()):,} train rows "
            f"have {len(found)}; the split leaves too few rows"
        )
    scaler = StandardScaler().fit(features_NF[train_N])
    scaled_NF = scaler.transform(features_NF)
    best: tuple[float, float, IntArray] | None = None
    for strength in STRENGTHS if validation_N.any() else STRENGTHS[1:2]:
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=MAX_STEPS, tol=1e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(scaled_NF[train_N], classes_N[train_N])
        predicted_N = model.predict(scaled_NF).astype(np.int64)
        score = macro_f1(classes_N[validation_N], predicted_N[validation_N]) if validation_N.any() else 0.0
        if best is None or score > best[0]:
            best = score, strength, predicted_N
    assert best is not None
    return Probe(predicted_N=best[2], strength=best[1])


def best_cutoffs(score_N: npt.NDArray[np.floating], grade_N: npt.NDArray[np.integer]) -> tuple[float, float]:
    """Two cutoffs of a score that part three grades with the best macro F1; a score above both is the best.

    The balanced probe gives each grade the same weight, so it calls too much irrelevant where that is rare.
    Quantiles of the scores are tried, `CUTOFFS` of them.

    >>> low, high = best_cutoffs(np.array([0.1, 0.2, 0.4, 0.5, 0.8, 0.9]), np.array([0, 0, 1, 1, 2, 2]))
    >>> 0.2 <= low < 0.4, 0.5 <= high < 0.8
    (True, True)
    """
    tried_Q = np.unique(np.quantile(score_N, np.linspace(0, 1, CUTOFFS)))
    is_grade_NC = np.asarray(grade_N)[:, None] == np.arange(3)
    below_QC = np.array([is_grade_NC[score_N <= cutoff].sum(axis=0) for cutoff in tried_Q])
    low_I, high_I = np.triu_indices(len(tried_Q))
    below_low_IC, below_high_IC = below_QC[low_I], below_QC[high_I]
    labelled_C = is_grade_NC.sum(axis=0)
    f1_I = np.zeros(len(low_I))
    for grade, part_IC in enumerate((below_low_IC, below_high_IC - below_low_IC, labelled_C - below_high_IC)):
        f1_I += 2 * part_IC[:, grade] / (part_IC.sum(axis=1) + labelled_C[grade]).clip(1)
    best = int(f1_I.argmax())
    return float(tried_Q[low_I[best]]), float(tried_Q[high_I[best]])


def unit_vectors(table: EmbeddingTable, ids: pa.Array) -> npt.NDArray[np.float32]:
    """Vectors [N, F] of norm 1, zeros for ids that the table lacks."""
    vectors_NF = np.asarray(table.vectors_ND[table.rows_of(ids)], np.float32)
    norm_N1 = np.sqrt(np.square(vectors_NF).sum(axis=1, keepdims=True))
    return np.divide(vectors_NF, norm_N1, out=np.zeros_like(vectors_NF), where=norm_N1 > 0)


def macro_f1(classes_N: npt.ArrayLike, predicted_N: npt.ArrayLike) -> float:
    """Mean F1 over the classes that occur among the labels or the predictions, as scikit-learn's.

    F1 = 2 hits / (labelled + predicted). Always the one of two balanced classes gives 1/3.
    """
    classes_N = np.asarray(classes_N, np.int64)
    rows_N = np.zeros(len(classes_N), np.int64)
    counts = GroupedHits(classes_N, predicted_N, rows_N)
    return float(counts.macro_f1(np.ones((1, 1)))[0])


class GroupedHits:
    """Labels, predictions and hits by group and class: enough for any resampling of whole groups."""

    def __init__(self, classes_N: npt.ArrayLike, predicted_N: npt.ArrayLike, groups_N: npt.ArrayLike) -> None:
        classes_N, predicted_N = np.asarray(classes_N, np.int64), np.asarray(predicted_N, np.int64)
        groups_N = np.asarray(groups_N, np.int64)
        if not len(classes_N) == len(predicted_N) == len(groups_N) or len(classes_N) == 0:
            raise ValueError(
                "labels, predictions and groups must be of one length, at least 1; "
                f"got {len(classes_N)}, {len(predicted_N)} and {len(groups_N)}"
            )
        self.classes = int(max(classes_N.max(), predicted_N.max())) + 1
        self.groups = int(groups_N.max()) + 1
        cells = np.bincount(
            (groups_N * self.classes + classes_N) * self.classes + predicted_N,
            minlength=self.groups * self.classes**2,
        )
        self._confusion_GCC = cells.reshape(self.groups, self.classes, self.classes).astype(np.float64)
        self._labelled_GC = self._confusion_GCC.sum(axis=2)
        self._predicted_GC = self._confusion_GCC.sum(axis=1)
        self._hits_GC = np.diagonal(self._confusion_GCC, axis1=1, axis2=2)

    def confusion(self, weights_RG: FloatArray) -> FloatArray:
        """Weight of the rows of each label (first) and prediction [R, C, C]."""
        cells_RX = weights_RG @ self._confusion_GCC.reshape(self.groups, -1)
        return cells_RX.reshape(len(weights_RG), self.classes, self.classes)

    def kappa(self, weights_RG: FloatArray, *, quadratic: bool) -> FloatArray:
        """Cohen's kappa [R]: agreement beyond what the shares of labels and predictions bring by chance.

        Quadratic kappa counts a miss by two grades four times as much as one by one. NaN where labels or
        predictions leave nothing to chance, as when all are of one class.

        >>> hits = GroupedHits([0, 1, 2, 2], [0, 1, 2, 1], [0, 0, 0, 0])
        >>> hits.kappa(np.ones((1, 1)), quadratic=False).round(3).tolist()
        [0.636]
        """
        confusion_RCC = self.confusion(weights_RG)
        class_C = np.arange(self.classes)
        apart_CC = np.abs(class_C[:, None] - class_C[None, :]).astype(np.float64)
        cost_CC = apart_CC**2 if quadratic else (apart_CC > 0).astype(np.float64)
        by_chance_RCC = confusion_RCC.sum(axis=2)[:, :, None] * confusion_RCC.sum(axis=1)[:, None, :]
        rows_R = confusion_RCC.sum(axis=(1, 2))
        met_R = (confusion_RCC * cost_CC).sum(axis=(1, 2)) * rows_R
        chance_R = (by_chance_RCC * cost_CC).sum(axis=(1, 2))
        return 1 - np.divide(met_R, chance_R, out=np.full(len(rows_R), np.nan), where=chance_R > 0)

    def f1(self, weights_RG: FloatArray) -> FloatArray:
        """F1 of each class [R, C]; 0 where it is neither a label nor predicted."""
        both_RC = weights_RG @ (self._labelled_GC + self._predicted_GC)
        return np.divide(
            2 * (weights_RG @ self._hits_GC), both_RC, out=np.zeros_like(both_RC), where=both_RC > 0
        )

    def accuracy(self, weights_RG: FloatArray) -> FloatArray:
        """Share of hits [R] when each row weighs what its group does; NaN where nothing weighs."""
        rows_R = weights_RG @ self._labelled_GC.sum(axis=1)
        hits_R = weights_RG @ self._hits_GC.sum(axis=1)
        return np.divide(hits_R, rows_R, out=np.full(len(rows_R), np.nan), where=rows_R > 0)

    def recall(self, weights_RG: FloatArray) -> FloatArray:
        """Share of the rows of each class that are hits [R, C]; NaN for a class without rows."""
        labelled_RC, hits_RC = weights_RG @ self._labelled_GC, weights_RG @ self._hits_GC
        return np.divide(hits_RC, labelled_RC, out=np.full(hits_RC.shape, np.nan), where=labelled_RC > 0)

    def macro_f1(self, weights_RG: FloatArray) -> FloatArray:
        """Macro F1 [R] when each row weighs what its group does; NaN where nothing weighs."""
        both_RC = weights_RG @ (self._labelled_GC + self._predicted_GC)
        f1_RC = self.f1(weights_RG)
        present_R = (both_RC > 0).sum(axis=1)
        return np.divide(
            f1_RC.sum(axis=1), present_R, out=np.full(len(present_R), np.nan), where=present_R > 0
        )


def group_resamples(groups: int, resamples: int, rng: np.random.Generator) -> FloatArray:
    """How often each group is drawn [R, G] when as many as there are are drawn with replacement."""
    weights_RG = np.empty((resamples, groups))
    for resample in range(resamples):
        weights_RG[resample] = np.bincount(rng.integers(0, groups, size=groups), minlength=groups)
    return weights_RG
